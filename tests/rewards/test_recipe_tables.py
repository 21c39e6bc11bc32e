"""Tables given to Python in the shape that they have in a recipe."""

from typing import Any

import pytest
import yaml
from posttrain.rewards import Completion, FormatReward, MathReward, TaskRewards, make_table

RECIPE = """
sums:
  aggregation: gate_by_correctness
  answer: last_line
  clip: [0, 1.1]
  deadline_s: 30
  error: 0
  min_scored: 3
  truncated: zero
  rewards:
    - {name: exact_match, label: right, gate: true, options: {ignore_case: true}}
    - {name: format, label: layout, weight: 0.2, options: {pattern: boxed}}
default: {rewards: [{name: exact_match}]}
"""


def test_a_recipes_table_is_what_the_same_task_made_by_hand_is() -> None:
    table = make_table(yaml.safe_load(RECIPE))
    made = table.rewards_for("sums")
    assert [(w.name, w.weight, w.gate) for w in made.rewards] == [("right", 1.0, True), ("layout", 0.2, False)]
    assert (made.aggregation, made.answer, made.clip) == ("gate_by_correctness", "last_line", (0, 1.1))
    assert (made.error, made.deadline_s, made.min_scored, made.truncated) == (0, 30, 3, "zero")
    assert made.rewards[1].reward == FormatReward(pattern="boxed", deadline_s=30)
    said = Completion(text="so it is\n" + r"\boxed{RED}")
    assert table.score("sums", said, {"answer": "red"}).value == 1.1  # 1.2, clipped
    assert table.score("any", Completion(text="red"), {"answer": "red"}).value == 1.0


def test_options_stand_beside_the_name_or_under_options() -> None:
    nested = make_table({"t": {"name": "math", "options": {"deadline_s": 7.0}, "weight": 0.5}})
    assert nested == make_table({"t": {"name": "math", "deadline_s": 7.0, "weight": 0.5}})
    assert make_table({"t": {"rewards": ["math"]}}) == make_table({"t": "math"})
    assert make_table({"t": {"rewards": ["math"], "deadline_s": 9}}).rewards_for("t").rewards[0].reward == MathReward(
        deadline_s=9
    )


def test_a_tables_own_truncated_is_the_default_of_its_tasks() -> None:
    table = make_table({"a": {"rewards": ["math"]}, "b": {"rewards": ["math"], "truncated": "score"}}, truncated="zero")
    assert [table.rewards_for(task).truncated for task in "ab"] == ["zero", "score"]
    finished = TaskRewards(table.rewards_for("b").rewards)
    assert make_table({"a": finished}, truncated="zero").rewards_for("a") is finished


@pytest.mark.parametrize(
    ("task", "message"),
    [
        ({"rewards": ["math"], "agregation": "weighted_sum"}, "task 't': a task has no key 'agregation'; did you mean"),
        ({"rewards": ["math"], "clip": [0]}, "task 't': 'clip' got"),
        ({"rewards": ["math"], "clip": "0"}, "task 't': 'clip' got"),
        ({"rewards": ["math"], "deadline_s": "9"}, "task 't': 'deadline_s' got '9'"),
        ({"rewards": ["math"], "answer": "last"}, "task 't': 'answer' got 'last'"),
        ({"rewards": "math"}, "task 't': a task's 'rewards' must be a list, got 'math'"),
        ({"rewards": []}, "a weight above 0, got no reward"),
        ({"rewards": [{"name": "math", "options": {"deadlin_s": 1}}]}, "has no option 'deadlin_s'; did you mean"),
        ({"name": "math", "deadline_s": 1.0, "options": {"deadline_s": 2.0}}, "'deadline_s' stands both beside"),
        ({"agregation": "weighted_sum"}, "a reward's mapping needs a 'name'"),
    ],
)
def test_a_wrong_task_is_refused_by_name(task: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_table({"t": task})
