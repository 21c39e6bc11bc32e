"""GDPO's advantages: hand-computed, against a NumPy version, and the case that it was made for."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from posttrain.algorithms import AdvantageKind, batch_deviation, decoupled_advantages, group_advantages

NAN = float("nan")
groups = st.lists(st.lists(st.floats(-5, 5, width=16), min_size=2, max_size=2), min_size=4, max_size=4)


def test_each_reward_is_normalised_before_the_sum():
    """Reward a: 1, 0, 0, 1 (std 1/sqrt 3); reward b: 0, 0, 0, 8 (mean 2, std 4); weights 1 and 0.5."""
    rewards_GK = torch.tensor([[1.0, 0.0], [0.0, 0.0], [0.0, 0.0], [1.0, 8.0]])
    a = 0.5 * 3**0.5
    wanted = [a - 0.25, -a - 0.25, -a - 0.25, a + 0.75]
    assert decoupled_advantages(rewards_GK, torch.tensor([1.0, 0.5]), epsilon=0.0).tolist() == pytest.approx(wanted)


def test_equal_sums_of_different_rewards_keep_different_advantages():
    """(1, 0) and (0, 1) are one and the same to the sum; where one reward is rarer, it weighs more."""
    three = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 0.0], [0.0, 1.0]])
    summed, apart = group_advantages(three.sum(dim=1), AdvantageKind.GRPO), decoupled_advantages(three, torch.ones(2))
    assert summed[0] == summed[1] and apart[0] > apart[1] + 0.1


@given(groups, st.floats(0.1, 5), st.floats(-3, 3))
def test_scale_and_offset_of_a_reward_do_not_matter(rows, scale, offset):
    rewards_GK, weights_K = torch.tensor(rows), torch.tensor([1.0, 0.3])
    if any(0 < float(c.std()) < 0.05 for c in rewards_GK.T):
        return  # there rounding and the epsilon speak
    moved_GK = rewards_GK * torch.tensor([scale, 1.0]) + torch.tensor([offset, 0.0])
    if any(bool((c == c[0]).all()) for c in (*rewards_GK.T, *moved_GK.T)):
        return
    plain = decoupled_advantages(rewards_GK, weights_K, epsilon=0.0)
    assert torch.allclose(plain, decoupled_advantages(moved_GK, weights_K, epsilon=0.0), atol=1e-2)
    assert float(plain.sum()) == pytest.approx(0.0, abs=1e-4)


def test_one_reward_is_grpo():
    rewards_G = torch.tensor([0.1, 0.9, 0.4, NAN])
    wanted = group_advantages(rewards_G, AdvantageKind.GRPO)
    assert decoupled_advantages(rewards_G[:, None], torch.ones(1)).tolist() == wanted.tolist()


def test_a_member_without_one_of_its_rewards_leaves_the_statistics_of_all():
    rewards_GK = torch.tensor([[1.0, 2.0], [100.0, NAN], [0.0, 0.0], [1.0, 1.0]])
    weights_K = torch.tensor([1.0, 0.5])
    found = decoupled_advantages(rewards_GK, weights_K)
    assert found[1] == 0.0
    assert found[[0, 2, 3]].tolist() == decoupled_advantages(rewards_GK[[0, 2, 3]], weights_K).tolist()


def test_a_batch_is_what_the_published_formula_gives():
    """As TRL's `normalize_then_sum` does it, in float64: normalise by group, weight, sum, normalise over the batch."""
    rewards_SGK = np.random.default_rng(0).normal(size=(3, 4, 2))
    weights_K = np.array([1.0, 0.5])
    normal = (rewards_SGK - rewards_SGK.mean(1, keepdims=True)) / (rewards_SGK.std(1, ddof=1, keepdims=True) + 1e-4)
    sums = (normal * weights_K).sum(-1)
    wanted = (sums - sums.mean()) / (sums.std(ddof=1) + 1e-4)
    ours = torch.stack([decoupled_advantages(torch.tensor(g), torch.tensor(weights_K)) for g in rewards_SGK])
    deviation = batch_deviation(float((ours.double() ** 2).sum()), ours.numel())
    assert (ours / (deviation + 1e-4)).numpy() == pytest.approx(wanted, abs=1e-5)


@pytest.mark.parametrize("count", [0, 1])
def test_fewer_than_two_have_no_deviation(count):
    assert batch_deviation(1.0, count) == 0.0


def test_a_weight_for_every_reward_is_wanted():
    with pytest.raises(ValueError, match="2 rewards have"):
        decoupled_advantages(torch.zeros(4, 2), torch.ones(3))
