"""`json_valid` wants one object or list: what beside it is another, and what is not."""

import time

import pytest
from posttrain.rewards import Completion, JSONMatch, JSONValid


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('{"a": 1} {"b": 2}', 0),
        ('{"a": 1}\n{"b": 2}', 0),
        ('{"a": 1} [2]', 0),
        ('Either {"a": 1} or {"b": 2}.', 0),
        ('```json\n{"a": 1}\n{"b": 2}\n```', 0),
        ('<answer>{"a": 1} {"b": 2}</answer>', 0),
        ('[{"a": 1}, {"b": 2}]', 1),
        ('As {name} says: {"a": 1}', 1),  # no JSON
        ('{"a": 1, "b": "} {"}', 1),
        ('<think>{"a": 1}</think>{"b": 2}', 1),
        ('{"a": 1} <answer>{"b": 2}</answer>', 1),
        ('First {"a": 1}, and mended:\n```json\n{"b": 2}\n```', 1),  # the last mark wins
    ],
)
def test_several_objects_are_not_one(text: str, value: int) -> None:
    assert JSONValid()(Completion(text=text), {}).value == value


def test_the_refusal_says_so_and_the_rewards_of_content_keep_to_the_last_one() -> None:
    two = Completion(text='{"a": 1} {"a": 2}')
    assert "several JSON objects" in JSONValid()(two, {}).reason
    assert JSONMatch()(two, {"answer": {"a": 2}}).value == 1.0


@pytest.mark.parametrize("piece", ["{x}", "[1]", "{}", '{"a": x}'])
def test_looking_for_others_takes_little_time(piece: str) -> None:
    started = time.process_time()
    JSONValid()(Completion(text=piece * (2**18 // len(piece))), {})
    assert time.process_time() - started < 30  # a quadratic scan takes minutes
