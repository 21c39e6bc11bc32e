"""The trainer against a plain loop written from the formulas, and the laws that an update has to keep."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from posttrain.algorithms import Reduction
from posttrain.model import Budget, PackedPolicy, TokenSequence, rope_positions
from posttrain.model.loading import load_model
from posttrain.model.parts import part_of
from torch import Tensor, nn

from posttrain.data import SceneSource, SceneSpec
from posttrain.objectives import (
    ADVANTAGES,
    OLD_LOGPROBS,
    ROLLOUT_LOGPROBS,
    Grpo,
    Gspo,
    PolicyGradient,
    Sapo,
    Supervised,
)
from posttrain.optimizers import schedule_factor

SAPO = PolicyGradient(surrogate=Sapo(tau_positive=1.0, tau_negative=1.05), importance_cap=2.0)
LEARNING_RATE, WEIGHT_DECAY, BETAS = 1e-3, 0.1, (0.9, 0.95)


@pytest.fixture(scope="module")
def examples() -> list[Any]:
    scenes = [SceneSource(SceneSpec(task=task, size=4)) for task in ("ground", "arith")]
    return [source[i] for i in range(3) for source in scenes]


@pytest.fixture
def sft_sequences(workshop: Any, examples: list[Any]) -> list[TokenSequence]:
    renderer = workshop.renderer(workshop.load())
    return [sequence for example in examples for sequence in renderer.render_training(example)]


@pytest.fixture
def rl_sequences(workshop: Any, examples: list[Any]) -> list[TokenSequence]:
    """Three groups of three answers of random tokens; old and rollout log-probabilities near the policy's own."""
    loaded = workshop.load()
    renderer, random = workshop.renderer(loaded), np.random.default_rng(0)
    sequences = []
    for example in examples[:3]:
        prompt = renderer.render_prompt(example)
        for member in range(3):
            said = random.integers(20, 250, size=3 + 2 * member)
            ids = np.concatenate([prompt.token_ids, said])
            mask = np.arange(len(ids)) >= len(prompt.token_ids)
            sequences.append(
                TokenSequence(
                    token_ids=ids,
                    mask=mask,
                    images=prompt.images,
                    prefix_length=len(prompt.token_ids),
                    streams={ADVANTAGES: np.full(len(ids), member - 1.0 + 0.1, dtype=np.float32)},
                )
            )
    found = loaded.policy.logprobs(sequences, Budget(tokens=10**9))
    made = []
    for sequence, logprobs in zip(sequences, found, strict=True):
        streams = dict(sequence.streams)
        for name, spread in ((OLD_LOGPROBS, 0.3), (ROLLOUT_LOGPROBS, 0.6)):
            stream = np.zeros(sequence.num_tokens, dtype=np.float32)
            stream[sequence.mask] = logprobs.numpy() + random.normal(0, spread, len(logprobs))
            streams[name] = stream
        made.append(
            TokenSequence(
                token_ids=sequence.token_ids,
                mask=sequence.mask,
                images=sequence.images,
                prefix_length=sequence.prefix_length,
                streams=streams,
            )
        )
    return made


def plain_logprobs(model: nn.Module, facts: Any, sequence: TokenSequence) -> Tensor:
    """One unpacked, unpadded pass through the transformers model; float64."""
    ids = torch.from_numpy(sequence.token_ids)[None]
    grids = [image.grid_thw for image in sequence.images]
    positions, _ = rope_positions(
        sequence.token_ids, grids, image_token_id=facts.image_token_id, merge_size=facts.merge_size, rows=3
    )
    vision: dict[str, Tensor] = {}
    if grids:
        pixels = torch.cat([image.pixel_values_PD for image in sequence.images]).double()
        vision = {"pixel_values": pixels, "image_grid_thw": torch.tensor(grids)}
    logits = model(input_ids=ids, position_ids=torch.from_numpy(positions)[:, None], use_cache=False, **vision).logits[
        0
    ]
    logprobs = logits[:-1].log_softmax(-1).gather(-1, ids[0, 1:, None])[:, 0]
    return logprobs[torch.from_numpy(sequence.mask)[1:]]


def sft_loss(logprobs: Sequence[Tensor], sequences: Sequence[TokenSequence]) -> Tensor:
    """Mean over all trained tokens."""
    return -torch.cat(list(logprobs)).mean()


def sapo_loss(logprobs: Sequence[Tensor], sequences: Sequence[TokenSequence]) -> Tensor:
    """SAPO, eq. 5-8, with truncated importance weights; mean over tokens, then over sequences."""
    means = []
    for x, sequence in zip(logprobs, sequences, strict=True):
        streams = {name: torch.from_numpy(s[sequence.mask]).double() for name, s in sequence.streams.items()}
        ratio = (x - streams[OLD_LOGPROBS]).exp()
        weight = (streams[OLD_LOGPROBS] - streams[ROLLOUT_LOGPROBS]).exp().clamp(max=2.0)
        tau = torch.where(streams[ADVANTAGES] > 0, 1.0, 1.05).double()
        means.append((-weight * 4 / tau * torch.sigmoid(tau * (ratio - 1)) * streams[ADVANTAGES]).mean())
    return torch.stack(means).mean()


@pytest.mark.parametrize("kind", ["sft", "sapo"])
def test_two_updates_equal_a_plain_loop_with_adamw_written_out(
    kind: str, workshop: Any, tools: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    sequences = request.getfixturevalue("sft_sequences" if kind == "sft" else "rl_sequences")
    loss_of, objective = (sft_loss, Supervised()) if kind == "sft" else (sapo_loss, SAPO)
    half = len(sequences) // 2
    mini_batches = [sequences[:half], sequences[half:]]

    loaded = workshop.load()
    trainer = workshop.trainer(
        loaded,
        tools.GivenBatches([mini_batches]),
        tmp_path,
        objective=objective,
        steps=1,
        weight_decay=WEIGHT_DECAY,
        max_grad_norm=0.5,
    )
    row = trainer.train_step()

    model: Any = load_model(workshop.model, dtype=torch.float64)
    parameters = dict(model.named_parameters())
    first = {name: torch.zeros_like(p) for name, p in parameters.items()}
    second = {name: torch.zeros_like(p) for name, p in parameters.items()}
    losses, norms, smallest = [], [], {name: torch.full_like(p, math.inf) for name, p in parameters.items()}
    for step, batch in enumerate(mini_batches, start=1):
        model.zero_grad()
        loss = loss_of([plain_logprobs(model, loaded.facts, s) for s in batch], batch)
        loss.backward()
        norm = torch.stack([p.grad.norm() for p in parameters.values()]).norm()
        losses.append(float(loss.detach()))
        norms.append(float(norm))
        scale = min(1.0, 0.5 / (float(norm) + 1e-6))
        with torch.no_grad():
            for name, p in parameters.items():
                gradient = p.grad * scale
                smallest[name] = torch.minimum(smallest[name], gradient.abs())
                first[name] = BETAS[0] * first[name] + (1 - BETAS[0]) * gradient
                second[name] = BETAS[1] * second[name] + (1 - BETAS[1]) * gradient**2
                step_size = first[name] / (1 - BETAS[0] ** step)
                spread = (second[name] / (1 - BETAS[1] ** step)).sqrt() + 1e-8
                decay = WEIGHT_DECAY if p.ndim > 1 else 0.0
                p.mul_(1 - LEARNING_RATE * decay).sub_(LEARNING_RATE * step_size / spread)

    assert row["loss"] == pytest.approx(sum(losses) / 2, abs=2e-5)
    assert row["grad_norm"] == pytest.approx(sum(norms) / 2, rel=2e-4)
    moved = dict(loaded.policy.model.named_parameters())
    assert moved.keys() == parameters.keys()
    for name, wanted in parameters.items():
        # Adam divides by the gradient's size: where that is lost in float32's noise, so is the update.
        clear = smallest[name] > 1e-5
        gap = (moved[name].detach().double() - wanted.detach()).abs()[clear]
        assert gap.numel() == 0 or float(gap.max()) < 0.02 * LEARNING_RATE, name
    assert sum(int((s > 1e-5).sum()) for s in smallest.values()) > 50_000


@pytest.mark.parametrize("objective", [Supervised(), SAPO], ids=["sft", "sapo"])
def test_gradients_do_not_depend_on_how_sequences_fall_into_micro_batches(
    objective: Any, workshop: Any, tools: Any, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    sequences = request.getfixturevalue("sft_sequences" if objective is not SAPO else "rl_sequences")
    found = []
    for place, budget in enumerate((Budget(tokens=10**9), Budget(tokens=60))):
        loaded = workshop.load()
        # Adam's first step has almost the same size for every gradient: what is compared is what it divides.
        trainer = workshop.trainer(
            loaded, tools.GivenBatches([[sequences]]), tmp_path / str(place), objective=objective, budget=budget
        )
        kept: dict[str, Tensor] = {}
        names = {id(p): name for name, p in loaded.policy.named_parameters()}

        def remember(optimizer: Any, *_: Any, kept: dict = kept, names: dict = names) -> None:  # type: ignore[type-arg]
            kept.update({names[id(p)]: p.grad.clone() for g in optimizer.param_groups for p in g["params"]})

        trainer._raw_optimizers[0].register_step_pre_hook(remember)
        row = trainer.train_step()
        found.append((row, kept))
    (one, one_gradients), (many, many_gradients) = found
    assert one["rows"] == 1 and many["rows"] >= 3
    for name in one.keys() - {"rows", "tokens_per_s"}:
        if not name.startswith("time/"):
            assert many[name] == pytest.approx(one[name], rel=1e-5, abs=1e-6, nan_ok=True), name
    for name, gradient in one_gradients.items():
        assert torch.allclose(gradient, many_gradients[name], atol=1e-6), name


@pytest.mark.parametrize(
    "surrogate", [Grpo(clip_low=0.2, clip_high=0.2), Gspo(clip_low=3e-4, clip_high=4e-4)], ids=["grpo", "gspo"]
)
def test_grpo_and_gspo_take_the_same_step_whatever_the_budget(
    surrogate: Any, rl_sequences: list[TokenSequence], workshop: Any, tools: Any, tmp_path: Path
) -> None:
    rows = []
    for tokens in (10**9, 60):
        trainer = workshop.trainer(
            workshop.load(),
            tools.GivenBatches([[rl_sequences]]),
            tmp_path / str(tokens),
            objective=PolicyGradient(surrogate=surrogate),
            budget=Budget(tokens=tokens),
        )
        rows.append(trainer.train_step())
    assert rows[0]["loss"] == pytest.approx(rows[1]["loss"], abs=1e-6)
    assert rows[0]["grad_norm"] == pytest.approx(rows[1]["grad_norm"], rel=1e-4)


def test_a_mini_batch_without_a_trained_token_is_counted_and_changes_nothing(
    sft_sequences: list[TokenSequence], workshop: Any, tools: Any, tmp_path: Path
) -> None:
    silent = TokenSequence(token_ids=sft_sequences[0].token_ids[:4], mask=np.zeros(4, dtype=np.bool_))
    loaded = workshop.load()
    before = {name: p.detach().clone() for name, p in loaded.policy.named_parameters()}
    trainer = workshop.trainer(loaded, tools.GivenBatches([[[silent], []]]), tmp_path)
    row = trainer.train_step()
    assert row["empty_updates"] == 1.0
    assert all(torch.equal(before[name], p) for name, p in loaded.policy.named_parameters())
    half = workshop.trainer(workshop.load(), tools.GivenBatches([[[silent], sft_sequences]]), tmp_path / "half")
    assert half.train_step()["empty_updates"] == 0.5


def test_each_mini_batch_is_one_optimiser_step(
    sft_sequences: list[TokenSequence], workshop: Any, tools: Any, tmp_path: Path
) -> None:
    trainer = workshop.trainer(workshop.load(), tools.GivenBatches([[sft_sequences[i::3] for i in range(3)]]), tmp_path)
    trainer.train_step()
    optimizer = trainer._raw_optimizers[0]
    assert {float(state["step"]) for state in optimizer.state.values()} == {3.0}


def test_a_gradient_that_is_not_finite_skips_the_update_and_leaves_the_optimiser_alone(
    rl_sequences: list[TokenSequence], workshop: Any, tools: Any, tmp_path: Path
) -> None:
    broken = [
        TokenSequence(
            token_ids=s.token_ids,
            mask=s.mask,
            images=s.images,
            prefix_length=s.prefix_length,
            streams={**s.streams, ADVANTAGES: np.full(s.num_tokens, np.nan, dtype=np.float32)},
        )
        for s in rl_sequences
    ]
    loaded = workshop.load()
    before = {name: p.detach().clone() for name, p in loaded.policy.named_parameters()}
    trainer = workshop.trainer(loaded, tools.GivenBatches([[broken]]), tmp_path, objective=SAPO)
    row = trainer.train_step()
    assert row["skipped_updates"] == 1.0
    assert all(torch.equal(before[name], p) for name, p in loaded.policy.named_parameters())
    assert not trainer._raw_optimizers[0].state
    trainer.batches = tools.GivenBatches([[rl_sequences]])
    assert trainer.train_step()["skipped_updates"] == 0.0
    assert not all(torch.equal(before[name], p) for name, p in loaded.policy.named_parameters())


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_each_part_has_its_own_rate_and_frozen_parts_do_not_move(
    optimizer: str, sft_sequences: list[TokenSequence], workshop: Any, tools: Any, tmp_path: Path
) -> None:
    from posttrain.model.parts import freeze

    loaded = workshop.load()
    freeze(loaded.policy.model, loaded.facts, ["vision"])
    before = {name: p.detach().clone() for name, p in loaded.policy.model.named_parameters()}
    trainer = workshop.trainer(
        loaded,
        tools.GivenBatches([[sft_sequences]]),
        tmp_path,
        optimizer=optimizer,
        learning_rate=1e-3,
        learning_rates={"merger": 1e-5},
    )
    trainer.train_step()
    largest: dict[str, float] = {}
    for name, p in loaded.policy.model.named_parameters():
        part = part_of(name, loaded.facts).value
        largest[part] = max(largest.get(part, 0.0), float((p.detach() - before[name]).abs().max()))
    assert largest["vision"] == 0.0
    assert largest["merger"] == pytest.approx(1e-5, rel=1.0)
    assert largest["language"] > 20 * largest["merger"]


def test_only_the_adapter_changes_under_lora(
    sft_sequences: list[TokenSequence], workshop: Any, tools: Any, tmp_path: Path
) -> None:
    loaded = workshop.load(lora={"rank": 2, "alpha": 4})
    before = {name: p.detach().clone() for name, p in loaded.policy.named_parameters()}
    workshop.trainer(loaded, tools.GivenBatches([[sft_sequences]]), tmp_path).train_step()
    moved = {name for name, p in loaded.policy.named_parameters() if not torch.equal(before[name], p)}
    assert moved and all(".lora_" in name for name in moved)


def test_metrics_of_every_step_are_written_and_finite(
    rl_sequences: list[TokenSequence], workshop: Any, tools: Any, tmp_path: Path
) -> None:
    trainer = workshop.trainer(workshop.load(), tools.GivenBatches([[rl_sequences]]), tmp_path, objective=SAPO, steps=3)
    trainer.train()
    rows = tools.metrics_of(tmp_path)
    assert [row["step"] for row in rows] == [0, 1, 2]
    wanted = {"loss", "grad_norm", "learning_rate", "entropy", "log_ratio/mean_abs", "rollout_gap/mean"}
    assert wanted | {"gate/positive_mean", "gate/negative_mean"} <= rows[0].keys()
    for row in rows:
        assert all(value is not None and math.isfinite(value) for value in row.values()), row
    histograms = (tmp_path / "histograms.jsonl").read_text().splitlines()
    assert len(histograms) == 6


def test_supervised_loss_falls_when_the_same_rows_are_repeated(
    sft_sequences: list[TokenSequence], workshop: Any, tools: Any, tmp_path: Path
) -> None:
    trainer = workshop.trainer(
        workshop.load(), tools.GivenBatches([[sft_sequences]]), tmp_path, steps=6, learning_rate=5e-3
    )
    trainer.train()
    losses = [row["nll"] for row in tools.metrics_of(tmp_path)]
    assert losses == sorted(losses, reverse=True) and losses[-1] < 0.8 * losses[0]


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_schedules_rise_to_the_peak_and_end_where_they_should(schedule: Any) -> None:
    def at(progress: float) -> float:
        return schedule_factor(progress, schedule, warmup_frac=0.1, final_frac=0.2)

    rising = [at(p) for p in np.linspace(0, 0.1, 20, endpoint=False)]
    assert rising == sorted(rising) and rising[0] > 0 and at(0.05) == pytest.approx(0.5)
    assert at(0.1) == pytest.approx(1.0)
    after = [at(p) for p in np.linspace(0.1, 1, 50)]
    assert after == sorted(after, reverse=True)
    assert after[-1] == pytest.approx(1.0 if schedule == "constant" else 0.2)
    if schedule != "constant":
        assert at(0.55) == pytest.approx(0.6), "half way between peak and end, half way down"


def test_a_schedule_without_a_warm_up_starts_at_the_peak() -> None:
    assert schedule_factor(0.0, "cosine", warmup_frac=0.0, final_frac=0.0) == 1.0


def test_the_learning_rate_of_a_mini_batch_is_the_schedule_at_its_place(
    sft_sequences: list[TokenSequence], workshop: Any, tools: Any, tmp_path: Path
) -> None:
    trainer = workshop.trainer(
        workshop.load(),
        tools.GivenBatches([[sft_sequences[:2], sft_sequences[2:4]]]),
        tmp_path,
        steps=2,
        schedule="linear",
        learning_rate=1.0e-3,
    )
    trainer.train()
    # progress 0 and 1/4 in the first step, 1/2 and 3/4 in the second
    assert [row["learning_rate"] for row in tools.metrics_of(tmp_path)] == pytest.approx([0.875e-3, 0.375e-3])


def test_dropout_of_a_step_depends_on_seed_and_step_alone(
    sft_sequences: list[TokenSequence], workshop: Any, tools: Any, tmp_path: Path
) -> None:
    def losses(seed: int, noise: int) -> list[float]:
        loaded = workshop.load(lora={"rank": 2, "alpha": 4, "dropout": 0.5, "parts": ["language"]})
        with torch.no_grad():
            for name, p in loaded.policy.named_parameters():
                if "lora_B" in name:
                    p.fill_(0.1)
        folder = tmp_path / f"{seed}-{noise}"
        trainer = workshop.trainer(loaded, tools.GivenBatches([[sft_sequences]]), folder, seed=seed)
        torch.manual_seed(noise)
        trainer.train()
        return [row["loss"] for row in tools.metrics_of(folder)]

    assert losses(0, 1) == losses(0, 2)
    assert losses(0, 1) != losses(1, 1)


def test_packed_policies_reduce_by_sequence_where_asked(
    sft_sequences: list[TokenSequence], workshop: Any, tools: Any, tmp_path: Path
) -> None:
    loaded = workshop.load()
    assert isinstance(loaded.policy, PackedPolicy)
    found = loaded.policy.logprobs(sft_sequences, Budget(tokens=10**9))
    objective = Supervised(reduction=Reduction.SEQUENCE_MEAN)
    trainer = workshop.trainer(loaded, tools.GivenBatches([[sft_sequences]]), tmp_path, objective=objective)
    wanted = -float(torch.stack([x.mean() for x in found]).mean())
    assert trainer.train_step()["loss"] == pytest.approx(wanted, abs=1e-5)
