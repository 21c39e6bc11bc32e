"""The list or mapping at the end of an answer."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.rewards.literals import MAX_DEPTH, answer_literal, finite_numbers, last_literal


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("so {'a': 1} and [2]", [2]),
        ("[1] and {'a': [2]}", {"a": [2]}),
        ("```json\n[1]\n``` but [2]", [1]),
        ("<think>[1]</think>[2]", [2]),
        ("[1]<think>[2]", None),
        ("<answer>[1]</answer>[2]", [1]),
        ("<answer>1</answer>[2]", None),
        ("[null]", [None]),
        ("[None]", [None]),
        ("[1, 2", None),
        ("[1)]", None),
        ("[f(1)]", None),
        ("\ud800[1]", [1]),
        ("[" * MAX_DEPTH + "]" * MAX_DEPTH, [[[[[[[[]]]]]]]]),
        ("[" * (MAX_DEPTH + 1) + "]" * (MAX_DEPTH + 1), None),
        ("[" * 10_000 + "]" * 10_000, None),
        ('{"a":' * 10_000 + "1" + "}" * 10_000, None),
    ],
)
def test_the_last_literal_is_read(text: str, value: object) -> None:
    assert answer_literal(text) == value


@pytest.mark.parametrize(
    "piece", ["[", "]", "[]", "{", '{"', "'", "\\", "```", "```json\n", "[1,", "<answer>", "<think>"]
)
def test_a_megabyte_of_anything_is_read_in_little_time(piece: str) -> None:
    started = time.process_time()
    answer_literal(piece * (2**20 // len(piece)))
    assert time.process_time() - started < 3.0  # a quadratic scan takes hours


@given(st.recursive(st.integers() | st.text(max_size=5) | st.none(), lambda inner: st.lists(inner, max_size=3)))
def test_what_json_writes_after_prose_is_read_back(value: object) -> None:
    text = json.dumps([value], ensure_ascii=False)
    if text.count("[") <= MAX_DEPTH:
        assert last_literal(f"Here, it's this: {text}") == [value]


@pytest.mark.parametrize(
    ("value", "numbers"),
    [
        ([1, 2.5], (1.0, 2.5)),
        ((1, 2), (1.0, 2.0)),
        ([1, 2, 3], None),
        ([1, True], None),
        ([1, "2"], None),
        ([1, float("nan")], None),
        ([1, float("inf")], None),
        ([1, 10**400], None),
        ("12", None),
        (None, None),
    ],
)
def test_only_finite_numbers_are_numbers(value: object, numbers: tuple[float, ...] | None) -> None:
    assert finite_numbers(value, 2) == numbers
