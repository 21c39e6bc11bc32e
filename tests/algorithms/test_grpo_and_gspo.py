"""GRPO's clip per token and GSPO's per sequence, by hand and against their formulas."""

import math

import numpy as np
import pytest
import torch
from posttrain.algorithms import clipped, grpo_token_losses, gspo_token_losses, sequence_ratios

RATIOS = [0.5, 0.9, 1.0, 1.1, 1.5]


@pytest.mark.parametrize(
    ("advantage", "losses", "moves"),
    [
        (2.0, [-1.0, -1.8, -2.0, -2.2, -2.4], [True, True, True, True, False]),
        (-2.0, [1.6, 1.8, 2.0, 2.2, 3.0], [False, True, True, True, True]),
    ],
)
def test_grpo_clips_only_the_side_on_which_the_policy_already_moved_too_far(advantage, losses, moves):
    logprobs_T = torch.tensor(RATIOS).log().requires_grad_()
    others = {"old_logprobs_T": torch.zeros(5), "advantages_T": torch.full((5,), advantage)}
    losses_T = grpo_token_losses(logprobs_T=logprobs_T, **others)
    losses_T.sum().backward()
    assert losses_T.tolist() == pytest.approx(losses, rel=1e-6)
    expected = [-ratio * advantage if moved else 0.0 for ratio, moved in zip(RATIOS, moves, strict=True)]
    assert logprobs_T.grad.tolist() == pytest.approx(expected, rel=1e-6)
    assert clipped(logprobs_T=logprobs_T, **others).tolist() == [not moved for moved in moves]


def test_the_asymmetric_clip_of_dapo_lets_rare_tokens_rise_further():
    others = {"old_logprobs_T": torch.zeros(1), "advantages_T": torch.ones(1), "clip_high": 0.28}
    logprobs_T = torch.tensor([1.25]).log()
    assert float(grpo_token_losses(logprobs_T=logprobs_T, **others)) == pytest.approx(-1.25)
    assert not clipped(logprobs_T=logprobs_T, **others).any()


def test_nothing_is_called_clipped_where_the_advantage_is_zero():
    logprobs_T = torch.tensor([3.0, -3.0])
    assert not clipped(logprobs_T=logprobs_T, old_logprobs_T=torch.zeros(2), advantages_T=torch.zeros(2)).any()


def test_the_sequence_ratio_of_gspo_is_the_geometric_mean_of_the_token_ratios():
    logprobs_T, old_T = torch.tensor([0.1, 0.3, -0.2]), torch.zeros(3)
    ratios_S = sequence_ratios(logprobs_T, old_T, torch.tensor([0, 0, 1]), 2)
    assert ratios_S.tolist() == pytest.approx([math.exp(0.2), math.exp(-0.2)], rel=1e-6)


def test_gspo_equals_its_formula_in_float64():
    rng = np.random.default_rng(0)
    sequence_T = np.repeat([0, 1, 2, 3], [3, 5, 2, 4])
    logprobs, old = rng.normal(-1, 0.3, 14), rng.normal(-1, 0.3, 14)
    advantages_S = np.array([1.0, -0.5, 2.0, -1.0])
    low, high = 0.05, 0.08
    logprobs_T = torch.tensor(logprobs, dtype=torch.float32, requires_grad=True)
    losses_T = gspo_token_losses(
        logprobs_T=logprobs_T,
        old_logprobs_T=torch.tensor(old, dtype=torch.float32),
        advantages_T=torch.tensor(advantages_S[sequence_T], dtype=torch.float32),
        sequence_index_T=torch.tensor(sequence_T),
        num_sequences=4,
        clip_low=low,
        clip_high=high,
    )
    lengths_T = np.bincount(sequence_T)[sequence_T]
    (losses_T / torch.tensor(lengths_T)).sum().backward()
    num_clipped = 0
    for s, advantage in enumerate(advantages_S):
        tokens = sequence_T == s
        ratio = np.exp((logprobs - old)[tokens].mean())
        unclipped, kept = ratio * advantage, np.clip(ratio, 1 - low, 1 + high) * advantage
        assert losses_T.detach().numpy()[tokens] == pytest.approx(-min(unclipped, kept), rel=1e-5)
        # d/dlogp_t of -s A is -s A / |y| for every token of the sequence, and 0 where it is clipped
        slope = -ratio * advantage / tokens.sum() if unclipped <= kept else 0.0
        num_clipped += unclipped > kept
        assert logprobs_T.grad.numpy()[tokens] == pytest.approx(slope, rel=1e-5, abs=1e-9)
    assert 0 < num_clipped < 4  # both cases are in the data
