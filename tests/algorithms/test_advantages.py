"""Group advantages: hand-computed, scale-free, and exactly 0 where a group says nothing."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from posttrain.algorithms import AdvantageKind, group_advantages, has_signal

rewards = st.lists(st.floats(-10, 10, width=32), min_size=2, max_size=16)


def test_grpo_divides_by_the_unbiased_standard_deviation():
    advantages_G = group_advantages(torch.tensor([1.0, 0.0, 0.0, 1.0]), AdvantageKind.GRPO)
    assert advantages_G.tolist() == pytest.approx([0.5 / (0.577350 + 1e-4), *[-0.5 / (0.577350 + 1e-4)] * 2, 0.865875])


def test_dr_grpo_only_takes_the_mean_away():
    assert group_advantages(torch.tensor([3.0, 0.0, 0.0]), AdvantageKind.DR_GRPO).tolist() == [2.0, -1.0, -1.0]


@given(rewards)
def test_leave_one_out_is_the_reward_less_the_mean_of_the_others(values):
    advantages_G = group_advantages(torch.tensor(values), AdvantageKind.LEAVE_ONE_OUT)
    for i, advantage in enumerate(advantages_G.tolist()):
        others = values[:i] + values[i + 1 :]
        assert advantage == pytest.approx(values[i] - sum(others) / len(others), abs=1e-4)


@given(rewards, st.sampled_from(AdvantageKind))
def test_advantages_sum_to_zero(values, kind):
    advantages_G = group_advantages(torch.tensor(values), kind)
    assert float(advantages_G.sum()) == pytest.approx(0, abs=1e-4 * max(1.0, float(advantages_G.abs().max())))


@given(rewards)
def test_grpo_ignores_the_scale_and_the_offset_of_the_reward(values):
    rewards_G = torch.tensor(values, dtype=torch.float64)
    if float(rewards_G.std()) < 0.1:
        return  # there the epsilon speaks
    plain = group_advantages(rewards_G, AdvantageKind.GRPO, epsilon=0)
    moved = group_advantages(rewards_G * 4 + 2, AdvantageKind.GRPO, epsilon=0)
    assert torch.allclose(plain, moved, atol=1e-4)


@given(st.floats(-1e6, 1e6, width=32), st.integers(1, 16), st.sampled_from(AdvantageKind))
def test_equal_rewards_give_exactly_zero(value, group, kind):
    """Not 1e-8 / epsilon: the mean of equal float32 numbers may be off by a rounding."""
    advantages_G = group_advantages(torch.full((group,), value), kind)
    assert advantages_G.tolist() == [0.0] * group
    assert not has_signal(advantages_G)


@pytest.mark.parametrize("kind", AdvantageKind)
def test_unscored_members_get_zero_and_leave_the_statistics_alone(kind):
    nan = float("nan")
    advantages_G = group_advantages(torch.tensor([1.0, nan, 0.0, nan, 0.5]), kind)
    scored = group_advantages(torch.tensor([1.0, 0.0, 0.5]), kind)
    assert advantages_G[[0, 2, 4]].tolist() == scored.tolist()
    assert advantages_G[[1, 3]].tolist() == [0.0, 0.0]
    assert has_signal(advantages_G)


@pytest.mark.parametrize("values", [[], [float("nan")] * 3, [1.0], [1.0, float("nan")]])
def test_fewer_than_two_scores_say_nothing(values):
    assert group_advantages(torch.tensor(values), AdvantageKind.GRPO).tolist() == [0.0] * len(values)
