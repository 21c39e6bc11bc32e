"""Objectives: the streams they read, the weights of a mismatched engine, KL to a reference, and what they measure."""

import math
from typing import Any

import pytest
import torch
from posttrain.algorithms import Reduction
from posttrain.model import HeadOutput

from posttrain.config import GRPOStage, GSPOStage, SAPOStage, SFTStage
from posttrain.objectives import (
    ADVANTAGES,
    OLD_LOGPROBS,
    REFERENCE_LOGPROBS,
    ROLLOUT_LOGPROBS,
    Grpo,
    Gspo,
    PolicyGradient,
    Sapo,
    Supervised,
    Tokens,
)

SAPO = Sapo(tau_positive=1.0, tau_negative=1.05)
NEW = torch.tensor([-1.0, -2.0, -0.5, -3.0])


def tokens(**streams: list[float]) -> Tokens:
    plain = {
        ADVANTAGES: [1.0, 1.0, -1.0, -1.0],
        OLD_LOGPROBS: [-1.0, -2.5, -0.5, -2.0],
        ROLLOUT_LOGPROBS: [-1.0, -2.5, -0.5, -2.0],
    }
    held = {name: torch.tensor(values) for name, values in (plain | streams).items()}
    return Tokens(streams=held, sequence_index_T=torch.tensor([0, 0, 1, 1]), num_sequences=2)


def output(logprobs_T: torch.Tensor) -> HeadOutput:
    ones = torch.ones_like(logprobs_T)
    return HeadOutput(loss=ones.sum(), logprobs_T=logprobs_T, entropies_T=2 * ones, is_top1_T=ones > 0)


def test_supervised_loss_is_the_negative_log_likelihood() -> None:
    objective = Supervised()
    assert objective.reduction is Reduction.TOKEN_MEAN
    assert torch.equal(objective.token_losses(NEW, tokens()), -NEW)
    metrics = objective.metrics(output(NEW), tokens())
    assert metrics["nll"].value == pytest.approx(1.625) and metrics["token_accuracy"].value == 1.0
    assert metrics["entropy"].value == 2.0 and not objective.histograms(output(NEW), tokens())


def test_an_engine_that_differs_weights_tokens_by_the_capped_ratio() -> None:
    exact = PolicyGradient(surrogate=SAPO, importance_cap=2.0).token_losses(NEW, tokens())
    plain = PolicyGradient(surrogate=SAPO).token_losses(NEW, tokens())
    assert torch.equal(exact, plain), "an engine that agrees has weight 1"
    gaps = [math.log(0.5), math.log(1.5), math.log(2.0), math.log(50.0)]
    rollout = [old - gap for old, gap in zip([-1.0, -2.5, -0.5, -2.0], gaps, strict=True)]
    weighted = PolicyGradient(surrogate=SAPO, importance_cap=2.0).token_losses(
        NEW, tokens(**{ROLLOUT_LOGPROBS: rollout})
    )
    assert (weighted / plain).tolist() == pytest.approx([0.5, 1.5, 2.0, 2.0], rel=1e-5)


def test_the_weight_of_an_engine_has_no_gradient() -> None:
    logprobs = NEW.clone().requires_grad_()
    objective = PolicyGradient(surrogate=SAPO, importance_cap=2.0)
    objective.token_losses(logprobs, tokens(**{ROLLOUT_LOGPROBS: [-2.0, -2.0, -2.0, -2.0]})).sum().backward()
    plain = NEW.clone().requires_grad_()
    PolicyGradient(surrogate=SAPO).token_losses(plain, tokens()).sum().backward()
    weights = (torch.tensor([-1.0, -2.5, -0.5, -2.0]) + 2).exp().clamp(max=2.0)
    assert logprobs.grad is not None and plain.grad is not None
    assert torch.allclose(logprobs.grad, plain.grad * weights)


def test_kl_adds_its_estimate_and_is_zero_at_the_reference() -> None:
    plain = PolicyGradient(surrogate=SAPO).token_losses(NEW, tokens())
    objective = PolicyGradient(surrogate=SAPO, kl_coefficient=0.3)
    same = tokens(**{REFERENCE_LOGPROBS: NEW.tolist()})
    assert torch.equal(objective.token_losses(NEW, same), plain)
    assert objective.metrics(output(NEW), same)["kl_reference"].value == 0.0
    shifted = tokens(**{REFERENCE_LOGPROBS: (NEW + math.log(2)).tolist()})
    assert torch.allclose(objective.token_losses(NEW, shifted) - plain, torch.full((4,), 0.3 * (1 - math.log(2))))
    assert objective.metrics(output(NEW), shifted)["kl_reference"].value == pytest.approx(1 - math.log(2), rel=1e-5)


def test_sapo_shows_its_gate_by_the_sign_of_the_advantage() -> None:
    objective = PolicyGradient(surrogate=SAPO)
    assert objective.separable and objective.reduction is Reduction.SEQUENCE_MEAN
    metrics = objective.metrics(output(NEW), tokens())
    # log-ratios 0, 0.5, 0, -1; gates sech^2(tau/2 (r - 1))
    positive = (1 + 1 / math.cosh(0.5 * (math.exp(0.5) - 1)) ** 2) / 2
    negative = (1 + 1 / math.cosh(0.525 * (math.exp(-1.0) - 1)) ** 2) / 2
    assert metrics["gate/positive_mean"].value == pytest.approx(positive, rel=1e-5)
    assert metrics["gate/negative_mean"].value == pytest.approx(negative, rel=1e-5)
    assert metrics["log_ratio/mean_abs"].value == pytest.approx(1.5 / 4, rel=1e-5)
    histograms = objective.histograms(output(NEW), tokens())
    assert {name: float(h.sum()) for name, h in histograms.items()} == {"gate/positive": 2.0, "gate/negative": 2.0}
    assert all(len(h) == 20 for h in histograms.values())


def test_the_engines_gap_is_shown_where_it_is_known() -> None:
    known = PolicyGradient(surrogate=SAPO, importance_cap=2.0)
    metrics = known.metrics(output(NEW), tokens(**{ROLLOUT_LOGPROBS: [-1.0, -2.5, -0.5, -2.4]}))
    assert metrics["rollout_gap/mean"].value == pytest.approx(0.1, rel=1e-5)
    assert metrics["rollout_gap/above_0.1_frac"].value == 0.25
    assert "rollout_gap/mean" not in PolicyGradient(surrogate=SAPO).metrics(output(NEW), tokens())


def test_grpo_and_gspo_show_what_they_clip() -> None:
    grpo = PolicyGradient(surrogate=Grpo(clip_low=0.2, clip_high=0.2))
    assert grpo.separable
    # ratios 1, e^0.5 (A > 0, clipped), 1, e^-1 (A < 0, clipped)
    assert grpo.metrics(output(NEW), tokens())["clip/frac"].value == 0.5
    assert grpo.token_losses(NEW, tokens()).tolist() == pytest.approx([-1.0, -1.2, 1.0, 0.8])
    gspo = PolicyGradient(surrogate=Gspo(clip_low=3e-4, clip_high=4e-4))
    assert not gspo.separable
    assert gspo.metrics(output(NEW), tokens())["clip/outside_frac"].value == 1.0
    assert gspo.token_losses(NEW, tokens()).tolist() == pytest.approx([-1.0004, -1.0004, 0.9997, 0.9997])


@pytest.mark.parametrize(
    ("stage", "surrogate"),
    [
        (SAPOStage, Sapo(tau_positive=1.0, tau_negative=1.05)),
        (GRPOStage, Grpo(clip_low=0.2, clip_high=0.2)),
        (GSPOStage, Gspo(clip_low=3e-4, clip_high=4e-4)),
    ],
)
def test_a_stage_becomes_its_objective(stage: Any, surrogate: Any) -> None:
    from posttrain.build import objective_of

    section = stage(
        steps=1,
        data=[{"scenes": {"task": "count"}}],
        reduction="constant",
        max_new_tokens=77,
        temperature=0.9,
        kl_coefficient=0.2,
        importance_cap=3.0,
    )
    assert objective_of(section) == PolicyGradient(
        surrogate=surrogate,
        reduction=Reduction.CONSTANT,
        constant_length=77,
        temperature=0.9,
        kl_coefficient=0.2,
        importance_cap=3.0,
    )


def test_an_sft_stage_becomes_a_supervised_objective() -> None:
    from posttrain.build import objective_of

    section = SFTStage(steps=1, data=[{"scenes": {"task": "count"}}], reduction="sequence_mean")  # type: ignore[list-item]
    assert objective_of(section) == Supervised(reduction=Reduction.SEQUENCE_MEAN)
