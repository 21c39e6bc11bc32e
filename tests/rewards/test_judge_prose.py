"""What `judge_accuracy` shows of an answer that marks nothing, and what it still does not ask about."""

from collections.abc import Iterator
from typing import Any

import pytest
from posttrain.rewards import Completion, JudgeAccuracy, RuleThenJudge

from tests.rewards.judge_server import JudgeServerFake, says
from tests.waiting import PATIENCE_S

PROSE = "It is red and big.\n\nIt is a car."


@pytest.fixture
def fake() -> Iterator[JudgeServerFake]:
    server = JudgeServerFake()
    server.say = says(correct=True)
    yield server
    server.stop()


def options(fake: JudgeServerFake) -> dict[str, Any]:
    return {"url": fake.url, "retries": 0, "backoff_s": 0.0, "timeout_s": PATIENCE_S}


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (PROSE, "| It is red and big.\n|\n| It is a car."),
        (f"<think>A plan.</think>{PROSE}", "| It is red and big.\n|\n| It is a car."),
        (f"{PROSE}\nThe answer is: a car", "| a car"),
        (f"{PROSE} <answer>car</answer>", "| car"),
    ],
)
def test_prose_is_shown_where_it_marks_no_answer(fake: JudgeServerFake, text: str, shown: str) -> None:
    assert JudgeAccuracy(server=options(fake))(Completion(text=text), {"answer": "car"}).value == 1.0
    assert fake.asked[0].judged("answer").replace("| \n", "|\n") == shown


@pytest.mark.parametrize(
    "text",
    [
        f"<think>{PROSE}",
        f"{PROSE} <answer></answer>",
        f"{PROSE} <answer>car",
        rf"{PROSE} \boxed{{car",
        rf"{PROSE} \boxed{{}}",
        "It is a car.\n" * 80,
    ],
)
def test_an_empty_or_open_mark_and_a_long_text_are_no_answer(fake: JudgeServerFake, text: str) -> None:
    assert JudgeAccuracy(server=options(fake))(Completion(text=text), {"answer": "car"}).value == 0.0
    assert fake.asked == []


def test_the_judge_decides_about_prose_that_the_rule_cannot_read(fake: JudgeServerFake) -> None:
    judge = {"name": "judge_accuracy", "server": options(fake)}
    reward = RuleThenJudge(rule={"name": "exact_match", "ignore_case": True}, judge=judge)
    assert reward(Completion(text=PROSE), {"answer": "car"}).value == 1.0
    assert reward(Completion(text="Car."), {"answer": "car"}).value == 1.0
    assert len(fake.asked) == 1
