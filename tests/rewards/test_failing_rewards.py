"""Rewards that raise, hang, or return something else: each has one outcome, and it is never a 0."""

import logging
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from posttrain.rewards import BadRewardError, Completion, Score, TaskRewards, WeightedReward, make_reward, make_table
from posttrain.rewards.batching import BatchReward, score_many

from tests.waiting import HANG_S, comes_true

TEXTS = [Completion(text=str(number)) for number in range(64)]
NOTHING: list[Mapping[str, Any]] = [{}] * 64


@dataclass(frozen=True)
class Custom:
    """A user's reward object that gives whatever the function gives."""

    function: Any

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        return self.function(completion)

    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        return None


def test_one_odd_row_costs_the_others_nothing() -> None:
    calls: list[int] = []

    def lengths(completions) -> list[float]:
        calls.append(len(completions))
        texts = [turns[0]["content"] for turns in completions]
        if "41" in texts:
            raise KeyError("41\nis odd")
        return [float(text) for text in texts]

    scores = make_table({"t": lengths}).score_batch([("t", text, {}) for text in TEXTS])
    assert [score.value for score in scores] == [None if n == 41 else float(n) for n in range(64)]
    assert scores[41].reason == r"lengths: KeyError: '41\nis odd'" and scores[41].error
    assert not any(score.error for n, score in enumerate(scores) if n != 41)
    assert len(calls) == 1 + 2 * 6, "halves, not one call a row"


def test_a_function_that_always_raises_is_not_called_for_every_row(caplog: pytest.LogCaptureFixture) -> None:
    calls: list[int] = []

    def broken(completions) -> list[float]:
        calls.append(len(completions))
        raise OverflowError("too\nmuch")

    with caplog.at_level(logging.ERROR):
        scores = score_many(make_reward(broken), TEXTS, NOTHING, name="broken")
        score_many(make_reward(broken), TEXTS, NOTHING, name="broken")
    assert all(score.value is None and score.error and score.reason == "OverflowError: too much" for score in scores)
    assert len(calls) < 64
    (record,) = caplog.records
    assert "reward 'broken' raises" in record.getMessage() and "in broken" in caplog.text, "the first traceback, once"


def test_a_reward_object_that_raises_leaves_its_own_completion_unscored() -> None:
    custom = Custom(lambda completion: Score(value=1 / int(completion.text)))
    scores = score_many(custom, TEXTS[:3], NOTHING[:3])
    assert [score.value for score in scores] == [None, 1.0, 0.5]
    assert scores[0].reason == "ZeroDivisionError: division by zero" and scores[0].error


def test_a_score_that_is_not_finite_is_refused_where_it_is_made() -> None:
    scores = score_many(Custom(lambda completion: Score(value=float("nan"))), TEXTS[:1], NOTHING[:1])
    assert scores[0].error and "a reward must be a finite number, got nan" in scores[0].reason


@pytest.mark.parametrize("returned", [None, "1.0", 1.0, [Score(value=1.0)]])
def test_a_reward_object_that_gives_no_score_is_a_bug_and_named(returned: Any) -> None:
    with pytest.raises(BadRewardError, match="reward 'mine' must return a Score"):
        score_many(Custom(lambda completion: returned), TEXTS[:1], NOTHING[:1], name="mine")


@pytest.mark.parametrize(
    ("returned", "message"),
    [([], "0 scores for 2 completions"), (None, "None for 2"), ([Score(value=1.0), 2.0], "must return a Score")],
)
def test_a_batch_reward_that_gives_something_else_is_a_bug_and_named(returned: Any, message: str) -> None:
    class Batch(BatchReward):
        def score_batch(self, completions: Sequence[Completion], references: Any) -> list[Score]:
            return returned

        def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
            return None

    with pytest.raises(BadRewardError, match=message):
        score_many(Batch(), TEXTS[:2], NOTHING[:2], name="mine")


def test_ctrl_c_in_a_reward_is_no_verdict_of_it() -> None:
    def stop(completion: Completion) -> Score:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        score_many(Custom(stop), TEXTS[:1], NOTHING[:1])


def test_a_call_that_hangs_costs_one_deadline_and_is_not_tried_on_halves() -> None:
    never = threading.Event()
    calls: list[int] = []

    def hang(completions) -> list[float]:
        calls.append(len(completions))
        never.wait(HANG_S)
        return [1.0] * len(completions)

    task = TaskRewards((WeightedReward(make_reward(hang)),), deadline_s=0.2)
    scores = task.score_batch(TEXTS, NOTHING)
    assert comes_true(lambda: calls == [64])
    never.set()
    assert all(score.error and score.reason.endswith("no verdict within 0.2 s") for score in scores)


def test_a_deadline_does_not_change_what_is_quick() -> None:
    quick = Custom(lambda completion: Score(value=float(completion.text)))
    assert score_many(quick, TEXTS, NOTHING, deadline_s=HANG_S) == score_many(quick, TEXTS, NOTHING)


def test_a_batch_of_one_failing_and_one_sound_task_keeps_the_sound_scores() -> None:
    def broken(completions) -> list[float]:
        raise ValueError("no")

    table = make_table({"sound": lambda completions: [1.0] * len(completions), "broken": broken})
    scores = table.score_batch([("sound", TEXTS[0], {}), ("broken", TEXTS[1], {}), ("sound", TEXTS[2], {})])
    assert [score.value for score in scores] == [1.0, None, 1.0]
