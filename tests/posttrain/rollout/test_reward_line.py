"""Rewards on a thread of their own."""

import threading
import time

import numpy as np
import pytest
from posttrain.rewards import Score

from posttrain.records import Example, Status, Trajectory
from posttrain.rollout.reward_line import RewardLine
from tests.waiting import PATIENCE_S


def trajectory(text: str, status: Status = Status.FINISHED) -> Trajectory:
    nothing = np.zeros(0, np.int64)
    return Trajectory(
        example=Example(id=text, task="t", messages=({"role": "user", "content": "?"},)),
        token_ids=nothing,
        mask=nothing.astype(np.bool_),
        logprobs=nothing.astype(np.float32),
        prompt_length=0,
        text=text,
        status=status,
        error="broke" if status is Status.ERROR else "",
    )


def test_scores_stand_at_the_place_of_their_group_and_broken_episodes_are_never_scored() -> None:
    asked: list[str] = []

    def scoring(trajectories) -> list[Score]:
        asked.extend(t.text for t in trajectories)
        return [Score(value=float(t.text)) for t in trajectories]

    line = RewardLine(scoring)
    line.add(1, [trajectory("3"), trajectory("4")])
    line.add(0, [trajectory("5"), trajectory("never", Status.ERROR)])
    scores = line.scores()
    assert [score.value for score in scores[1]] == [3.0, 4.0] and scores[0][0].value == 5.0
    assert scores[0][1].reason == "broke" and "never" not in asked


def test_what_the_scoring_raises_reaches_who_waits_for_the_scores() -> None:
    def scoring(trajectories) -> list[Score]:
        raise RuntimeError("the judge has gone")

    line = RewardLine(scoring)
    line.add(0, [trajectory("1")])
    with pytest.raises(RuntimeError, match="the judge has gone"):
        line.scores()


def test_a_line_that_is_closed_scores_nothing_more() -> None:
    """After an engine has died, no judge is paid for what nobody trains on."""
    is_asked, may_answer, asked = threading.Event(), threading.Event(), []

    def scoring(trajectories) -> list[Score]:
        asked.append(len(trajectories))
        is_asked.set()
        may_answer.wait(PATIENCE_S)
        return [Score(value=1.0) for _ in trajectories]

    line = RewardLine(scoring)
    line.add(0, [trajectory("1")])
    assert is_asked.wait(PATIENCE_S)
    for place in range(1, 6):
        line.add(place, [trajectory("1")])
    line.close()
    may_answer.set()
    time.sleep(0.1)
    assert asked == [1]
