"""`reward_funcs` of the trainers: the layouts that they take, and how `reward_weights` falls on them."""

import pytest

from posttrain.errors import ConfigError
from posttrain.trainers import _table


def test_a_recipes_layout_keeps_its_keys_and_weights() -> None:
    rewards = [{"name": "math", "weight": 0.9, "options": {"deadline_s": 9.0}}, {"name": "format", "weight": 0.1}]
    table = _table({"sums": {"rewards": rewards, "clip": [0, 1]}, "default": "exact_match"}, None)
    made = table.rewards_for("sums")
    assert made.clip == (0, 1) and [reward.weight for reward in made.rewards] == [0.9, 0.1]
    assert [reward.name for reward in table.rewards_for("words").rewards] == ["exact_match"]
    again = _table(table, None)
    assert again is table


def test_weights_take_the_place_of_those_in_the_layout() -> None:
    made = _table(["math", {"name": "format", "weight": 5.0}], [1.0, 0.5]).rewards_for("any")
    assert [reward.weight for reward in made.rewards] == [1.0, 0.5]
    with pytest.raises(ConfigError, match="2 rewards have 1 reward_weights"):
        _table(["math", "format"], [1.0])
    with pytest.raises(ConfigError, match="reward_weights: a reward's weight must be 0 or more"):
        _table(["math", "format"], [1.0, -1.0])
    with pytest.raises(ConfigError, match="reward_funcs: task 'sums': there is no reward 'maths'"):
        _table({"sums": {"rewards": ["maths"]}}, None)
