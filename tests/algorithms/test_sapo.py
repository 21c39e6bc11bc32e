"""SAPO: the laws of its gate, the paper's numbers, and finite gradients at any ratio."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from posttrain.algorithms import gate, sapo_token_losses

taus = st.floats(0.05, 20)
log_ratios = st.floats(-5, 5)


def gradient_and_gate(log_ratio, advantage, tau):
    """d loss / d logprob of one token, and its gate, at a given log-ratio; float64 in, float32 inside."""
    logprobs_T = torch.tensor([log_ratio - 3.0], requires_grad=True)
    others = {"old_logprobs_T": torch.tensor([-3.0]), "advantages_T": torch.tensor([advantage])}
    others |= {"tau_positive": tau, "tau_negative": tau}
    sapo_token_losses(logprobs_T=logprobs_T, **others).sum().backward()
    return float(logprobs_T.grad), float(gate(logprobs_T=logprobs_T.detach(), **others))


def coefficient(ratio, tau):
    """w r in float64, by the definition."""
    p = 1 / (1 + math.exp(-tau * (ratio - 1)))
    return 4 * p * (1 - p) * ratio


@given(tau=taus, advantage=st.sampled_from([-2.0, -0.5, 0.5, 2.0]))
def test_the_gate_is_one_on_policy_for_every_tau_and_the_gradient_is_the_policy_gradient(tau, advantage):
    gradient, weight = gradient_and_gate(0.0, advantage, tau)
    assert weight == pytest.approx(1.0, abs=1e-6)
    assert gradient == pytest.approx(-advantage, rel=1e-6)


@given(tau=taus, log_ratio=log_ratios)
def test_the_gate_is_the_squared_hyperbolic_secant(tau, log_ratio):
    _, weight = gradient_and_gate(log_ratio, 1.0, tau)
    x = tau / 2 * (math.exp(log_ratio) - 1)
    # absolute: p (1 - p) in float32 loses relative precision where p is near 1, and the gate is near 0 there
    assert weight == pytest.approx(0 if abs(x) > 300 else 1 / math.cosh(x) ** 2, abs=2e-6)


@given(tau=st.floats(0.3, 3), log_ratio=st.floats(-2, 1), advantage=st.sampled_from([-1.5, 0.7]))
def test_the_gradient_is_gate_times_ratio_times_advantage(tau, log_ratio, advantage):
    gradient, _ = gradient_and_gate(log_ratio, advantage, tau)
    expected = -coefficient(math.exp(log_ratio), tau) * advantage
    assert gradient == pytest.approx(expected, rel=1e-3, abs=1e-5)


@pytest.mark.parametrize(("tau", "peak", "where"), [(1.0, 1.5747, 2.060), (1.05, 1.5363, 1.992)])
def test_a_token_moves_at_most_about_one_and_a_half_times_as_far_as_on_policy(tau, peak, where):
    ratios_T = torch.arange(0.001, 20, 0.001, dtype=torch.float64)
    logprobs_T = ratios_T.log().float().requires_grad_()
    ones_T = torch.ones(len(ratios_T))
    losses_T = sapo_token_losses(
        logprobs_T=logprobs_T, old_logprobs_T=0 * ones_T, advantages_T=ones_T, tau_positive=tau, tau_negative=tau
    )
    losses_T.sum().backward()
    coefficients_T = -logprobs_T.grad
    assert float(coefficients_T.max()) == pytest.approx(peak, abs=1e-4)
    assert float(ratios_T[coefficients_T.argmax()]) == pytest.approx(where, abs=0.01)


@pytest.mark.parametrize("tau", [0.5, 1.0, 1.05, 4.0])
@pytest.mark.parametrize(("level", "threshold"), [(0.9, 0.655), (0.5, 1.763)])
def test_the_gate_crosses_its_levels_at_the_papers_distances_from_one(tau, level, threshold):
    distance = threshold / tau
    for ratio in [1 + distance] + ([1 - distance] if distance < 1 else []):
        for nudge, above in ((-1e-3, True), (1e-3, False)):
            moved = 1 + (ratio - 1) * (1 + nudge)
            _, weight = gradient_and_gate(math.log(moved), 1.0, tau)
            assert (weight > level) == above


def test_at_the_clip_range_of_grpo_the_gate_still_lets_99_percent_through():
    for ratio in (0.8, 1.2):
        assert gradient_and_gate(math.log(ratio), 1.0, 1.0)[1] == pytest.approx(0.990, abs=1e-3)


def test_tau_follows_the_sign_of_the_advantage_and_zero_contributes_nothing():
    others = {"old_logprobs_T": torch.zeros(3), "advantages_T": torch.tensor([1.0, -1.0, 0.0])}
    logprobs_T = torch.full((3,), math.log(2.0), requires_grad=True)
    weights_T = gate(logprobs_T=logprobs_T.detach(), **others)
    expected = [1 / math.cosh(0.5) ** 2, 1 / math.cosh(0.525) ** 2, 1 / math.cosh(0.525) ** 2]
    assert weights_T.tolist() == pytest.approx(expected, rel=1e-6)
    losses_T = sapo_token_losses(logprobs_T=logprobs_T, **others)
    losses_T.sum().backward()
    # f(2) = 4 / tau sigmoid(tau): 2.924234 at tau 1, 2.822000 at tau 1.05
    assert losses_T.tolist() == pytest.approx([-2.924234, 2.822000, 0.0], abs=1e-5)
    assert logprobs_T.grad[2] == 0


@pytest.mark.parametrize("log_ratio", [-1000.0, -100.0, 100.0, 1000.0])
@pytest.mark.parametrize("advantage", [-1.0, 1.0])
def test_an_overflowing_ratio_gives_a_finite_loss_and_no_gradient(log_ratio, advantage):
    logprobs_T = torch.tensor([log_ratio, 0.0], requires_grad=True)
    losses_T = sapo_token_losses(
        logprobs_T=logprobs_T, old_logprobs_T=torch.zeros(2), advantages_T=torch.tensor([advantage, advantage])
    )
    losses_T.sum().backward()
    assert losses_T.isfinite().all()
    assert logprobs_T.grad.tolist() == [0.0, -advantage]


def test_without_the_clamp_the_same_ratio_would_give_nan():
    """The hazard that the clamp answers: it must not be taken for caution."""
    logprob = torch.tensor(1000.0, requires_grad=True)
    torch.sigmoid(logprob.exp() - 1).backward()
    assert logprob.grad.isnan()


@given(log_ratio=st.floats(-2, 2))
def test_as_tau_goes_to_zero_the_gradient_is_that_of_unclipped_importance_sampling(log_ratio):
    gradient, weight = gradient_and_gate(log_ratio, 1.0, 1e-2)
    assert weight == pytest.approx(1.0, abs=2e-3)
    assert gradient == pytest.approx(-math.exp(log_ratio), rel=5e-3)


def test_as_tau_goes_to_infinity_only_on_policy_tokens_are_left():
    gradients = [gradient_and_gate(log_ratio, 1.0, 1e4)[0] for log_ratio in (-0.1, 0.0, 0.1)]
    assert gradients == pytest.approx([0.0, -1.0, 0.0], abs=1e-6)


def test_bfloat16_log_probabilities_are_taken_into_float32():
    """The ratio of two bfloat16 numbers near -3 is off by up to 1.6 percent: its arithmetic must not add to that."""
    logprobs_T = torch.tensor([-3.0, -2.984375], dtype=torch.bfloat16)
    losses_T = sapo_token_losses(
        logprobs_T=logprobs_T, old_logprobs_T=torch.full((2,), -3.0), advantages_T=torch.ones(2)
    )
    assert losses_T.dtype == torch.float32
    assert float(losses_T[1]) == pytest.approx(-4 / (1 + math.exp(-(math.exp(0.015625) - 1))), rel=1e-6)
