"""The table of tasks and weighted rewards."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import pytest
from posttrain.rewards import (
    BadReferenceError,
    Completion,
    RewardTable,
    Score,
    TaskRewards,
    WeightedReward,
    make_reward,
    make_table,
)


@dataclass(frozen=True)
class Fixed:
    """Gives the same score to everything."""

    value: float | None
    perfect: str | None = None

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        return Score(value=self.value, parts={"detail": 3.0}, reason="" if self.value is not None else "judge is down")

    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        return self.perfect


ANY = Completion(text="anything")


def table(*weighted: WeightedReward, **options: Any) -> RewardTable:
    return RewardTable({"task": TaskRewards(weighted, **options)})


def test_the_score_is_the_weighted_sum_with_named_parts() -> None:
    score = table(WeightedReward(Fixed(0.5), 2.0, "a"), WeightedReward(Fixed(-1.0), 0.25, "b")).score("task", ANY, {})
    assert score.value == pytest.approx(2.0 * 0.5 - 0.25)
    assert score.parts == {"a": 0.5, "a/detail": 3.0, "b": -1.0, "b/detail": 3.0}


def test_an_unscored_reward_leaves_the_whole_unscored_unless_it_only_logs() -> None:
    silent = table(WeightedReward(Fixed(1.0), 1.0, "a"), WeightedReward(Fixed(None), 0.1, "judge"))
    score = silent.score("task", ANY, {})
    assert (score.value, score.reason) == (None, "judge: judge is down")
    assert score.parts == {"a": 1.0, "a/detail": 3.0, "judge/detail": 3.0}
    logged = table(WeightedReward(Fixed(1.0), 1.0, "a"), WeightedReward(Fixed(None), 0.0, "judge"))
    assert logged.score("task", ANY, {}).value == 1.0


@pytest.mark.parametrize(("truncated", "value"), [("score", 1.0), ("zero", 0.0), ("unscored", None)])
def test_truncated_completions_get_what_the_option_says(truncated: str, value: float | None) -> None:
    rewards = table(WeightedReward(Fixed(1.0), 1.0, "a"), truncated=truncated)
    cut = Completion(text="anyth", truncated=True)
    assert [s.value for s in rewards.score_batch([("task", ANY, {}), ("task", cut, {})])] == [1.0, value]


def test_a_batch_over_tasks_gives_the_single_scores_in_order() -> None:
    rewards = make_table(
        {
            "sum": [
                {"name": "math", "deadline_s": 60, "weight": 0.9},
                {"name": "format", "pattern": "boxed", "weight": 0.1},
            ],
            "word": "exact_match",
            "default": "grounding_iou",
        }
    )
    items = [
        ("sum", Completion(text=r"\boxed{1+x}"), {"answer": "x+1"}),
        ("word", Completion(text="cat"), {"answer": "cat"}),
        ("sum", Completion(text="x+1"), {"answer": "x+1"}),
        ("boxes", Completion(text="[0, 0, 10, 10]"), {"bbox_2d": [0, 0, 10, 10]}),
        ("word", Completion(text="dog"), {"answer": "cat"}),
        ("sum", Completion(text=r"\boxed{x}"), {"answer": "]["}),
    ]
    scores = rewards.score_batch(items)
    assert [s.value if s.value is None else round(s.value, 6) for s in scores] == [1.0, 1.0, 0.9, 1.0, 0.0, None]
    assert scores == [rewards.score(*item) for item in items]
    assert scores[5].reason.startswith("math: bad reference: ")
    assert rewards.score_batch([]) == []


def test_check_proves_that_each_reward_pays_for_its_own_perfect_answer() -> None:
    rewards = make_table(
        {"sum": ["math", {"name": "format", "pattern": "boxed", "weight": 0.1}], "box": "grounding_iou"}
    )
    assert rewards.full_score("sum") == pytest.approx(1.1)
    assert rewards.check("sum", {"answer": "#### 1,234"}) == []
    assert rewards.check("box", {"bbox_2d": [0, 0, 10, 10]}) == []
    (problem,) = rewards.check("box", {"bbox_2d": [0, 0, 1920, 1080]})
    assert problem.startswith("grounding_iou: 'bbox_2d' [0, 0, 1920, 1080] is not in 0-1000")
    (problem,) = rewards.check("sum", {"answer": "]["})
    assert problem == "math: 'answer' '][' is not mathematics that math-verify can read"


def test_check_names_a_reward_that_underpays() -> None:
    rewards = table(
        WeightedReward(Fixed(0.5, perfect="p"), 1.0, "a"), WeightedReward(Fixed(None, perfect="p"), 1.0, "b")
    )
    assert rewards.check("task", {}) == [
        "a: its own perfect answer 'p' earns 0.5, not 1",
        "b: its own perfect answer 'p' earns unscored (judge is down), not 1",
    ]


def test_an_unknown_task_is_refused_with_the_nearest_and_served_by_a_default() -> None:
    with pytest.raises(ValueError, match="no rewards for task 'gsm8'; did you mean 'gsm8k'"):
        make_table({"gsm8k": "math"}).score("gsm8", ANY, {})
    assert make_table({"default": Fixed(1.0)}).score("gsm8", ANY, {}).value == 1.0


@pytest.mark.parametrize(
    ("tasks", "message"),
    [
        ({}, "at least one task"),
        ({"t": []}, "a weight above 0, got no reward"),
        ({"t": {"name": "math", "weight": 0}}, "a weight above 0"),
        ({"t": {"name": "math", "weight": -1}}, "task 't': a reward's weight must be 0 or more"),
        ({"t": {"name": "math", "weight": "1"}}, "weight must be a number"),
        ({"t": ["math", "math"]}, "two rewards of one task are named 'math'"),
        ({"t": "mth"}, "task 't': there is no reward 'mth'; did you mean 'math'"),
    ],
)
def test_a_wrong_table_is_refused(tasks: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_table(tasks)


def test_rewards_are_named_after_what_they_are_or_as_told() -> None:
    def closeness(completions, **rows):
        return [0.0]

    assert WeightedReward(make_reward("math")).name == "math"
    assert WeightedReward(make_reward(closeness)).name == "closeness"
    assert WeightedReward(Fixed(1.0)).name == "Fixed"
    both = make_table({"t": ["format", {"name": "format", "pattern": "boxed", "label": "box"}]}).rewards_for("t")
    assert [weighted.name for weighted in both.rewards] == ["format", "box"]


def test_bad_references_of_simple_rewards_do_not_end_a_batch() -> None:
    rewards = make_table({"t": "exact_match"})
    with pytest.raises(BadReferenceError):
        make_reward("exact_match")(ANY, {})
    scores = rewards.score_batch([("t", ANY, {}), ("t", ANY, {"answer": "anything"})])
    assert [score.value for score in scores] == [None, 1.0]
