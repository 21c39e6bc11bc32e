"""A reward function that reads TRL's objects is told where its verdict belongs here."""

from typing import Any

import pytest
from posttrain.rewards import BadRewardError, Completion, make_reward


def wants(environments: Any, **columns: Any) -> list[float]:
    return [environment.reward for environment in environments]


def would_go_without(completions: Any, environments: Any = None, **columns: Any) -> list[float]:
    return [1.0 for _ in completions]


@pytest.mark.parametrize("function", [wants, would_go_without])
def test_there_are_no_objects(function: Any) -> None:
    reward: Any = make_reward(function)
    with pytest.raises(BadRewardError, match="get_reward return what it read there, which the reward 'environment_sc"):
        reward.score_batch([Completion(text="4")], [{"answer": "4"}])


def test_a_column_of_that_name_is_a_column() -> None:
    reward: Any = make_reward(would_go_without)
    (score,) = reward.score_batch([Completion(text="4")], [{"environments": "x"}])
    assert score.value == 1.0
