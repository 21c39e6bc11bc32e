"""The literal at the end of an answer: which one holds boxes or points, and which is a remark."""

import json
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.rewards.literals import MAX_DEPTH, MAX_REMARKS, answer_items, finite_numbers, items_in

KEYED = '{"k": [1, 2, 3]}'


def triples(text: str) -> list | None:
    """Items with the key k, or of three numbers."""
    return answer_items(text, "k", 3)


@pytest.mark.parametrize(
    ("text", "items"),
    [
        ("[1, 2, 3]", [[1, 2, 3]]),
        ("[[1, 2, 3], [4, 5, 6]]", [[1, 2, 3], [4, 5, 6]]),
        ("[(1, 2, 3)]", [(1, 2, 3)]),
        (KEYED, [{"k": [1, 2, 3]}]),
        ("{'k': 1} or [4, 5, 6]", [[4, 5, 6]]),
        ("```json\n[1, 2, 3]\n``` but [4, 5, 6]", [[1, 2, 3]]),
        ("<think>[1, 2, 3]</think>[4, 5, 6]", [[4, 5, 6]]),
        ("[1, 2, 3]<think>[4, 5, 6]", None),
        ("<answer>[1, 2, 3]</answer>[4, 5, 6]", [[1, 2, 3]]),
        ("<answer>1</answer>[1, 2, 3]", None),
        ("[]", []),
        ("[1, 2, 3] []", []),
        ("\ud800[1, 2, 3]", [[1, 2, 3]]),
        (r"\boxed{[1, 2, 3]}", [[1, 2, 3]]),
        (r"\boxed{{'k': 1}}", [{"k": 1}]),
        (r"\boxed{\{'k': 1\}}", [{"k": 1}]),
        (r"\boxed{[1, 2, 3]} \boxed{[4, 5, 6]} [7, 8, 9]", [[4, 5, 6]]),
        (r"<answer>\boxed{[1, 2, 3]} \boxed{[4, 5, 6]}</answer>", None),
        (r"[1, 2, 3], so there is \boxed{1}", [[1, 2, 3]]),
        ("[1, 2, 3, 4]", None),
        ("[null]", None),
        ("{'j': [1, 2, 3]}", None),
        ("[1, 2, 3", None),
        ("[1, 2, 3)]", None),
        ("[f(1), 2, 3]", None),
        ("[" * 10_000 + "]" * 10_000, None),
        ('{"k":' * 10_000 + "1" + "}" * 10_000, None),
    ],
)
def test_the_last_literal_with_items_is_read(text: str, items: object) -> None:
    assert triples(text) == items


@pytest.mark.parametrize(
    "remark",
    [
        "(see [1])",
        "in [0, 1000]",
        "as [x, y, z]",
        "[see above]",
        "{note}",
        "labels [\"a\", 'b', 'c']",
        "[ ]x{}",
        r"\{1\}",
    ],
)
def test_brackets_after_the_answer_are_passed_over(remark: str) -> None:
    if "[ ]" in remark:  # an empty list says that there are none
        assert triples(f"{KEYED} {remark}") == []
    else:
        assert triples(f"{KEYED}\n\n{remark}") == [{"k": [1, 2, 3]}]
        assert triples(f"[1, 2, 3] {remark}") == [[1, 2, 3]]


@pytest.mark.parametrize("spoilt", ['[{"k": [1, 2]}]', "{'k': oops}", "[[4, 5, 6], [7]]", "[4, '5', 6]", "[4, NaN, 6]"])
def test_an_item_that_is_malformed_is_no_remark(spoilt: str) -> None:
    items = triples(f"{KEYED} {spoilt}")
    assert items is not None and {"k": [1, 2, 3]} not in items


def test_pairs_give_way_to_mappings_and_more_numbers_do_not() -> None:
    assert items_in("{'k': [5, 5]} in [0, 1000]", "k", 2) == [{"k": [5, 5]}]
    assert items_in("[5, 5] or [6, 6]", "k", 2) == [[6, 6]]
    assert items_in("[] or [6, 6]", "k", 2) == [[6, 6]]
    assert items_in("{'k': [5, 5]} or {'k': [6, 6]}", "k", 2) == [{"k": [6, 6]}]
    assert items_in("{'k': [5, 5, 5]} in [0, 0, 9]", "k", 3) == [[0, 0, 9]]


def test_a_literal_that_is_too_long_hides_what_stands_before_it() -> None:
    long = str([[1, 2, 3]] * 20)
    assert answer_items(f"[4, 5, 6] {long}", "k", 3, max_chars=len(long) - 1) is None
    assert triples("[4, 5, 6]" + "[x]" * (MAX_REMARKS - 1)) == [[4, 5, 6]]
    assert triples("[4, 5, 6]" + "[x]" * MAX_REMARKS) is None


@pytest.mark.parametrize(
    "piece",
    ["[", "]", "[]", "{", '{"', "'", "\\", "```", "```json\n", "[1,", "[x]", "<answer>", "<think>", r"\boxed{", "[1]"],
)
def test_a_megabyte_of_anything_is_read_in_little_time(piece: str) -> None:
    started = time.process_time()
    triples(piece * (2**20 // len(piece)))
    assert time.process_time() - started < 30  # a quadratic scan takes hours


@given(st.recursive(st.integers() | st.text(max_size=5) | st.none(), lambda inner: st.lists(inner, max_size=3)))
def test_what_json_writes_after_prose_is_read_back(value: object) -> None:
    text = json.dumps([[1, 2, 3], value], ensure_ascii=False)
    if text.count("[") <= MAX_DEPTH and not (isinstance(value, str) and "```" in value):
        assert triples(f"Here, it's this: {text}") == [[1, 2, 3], value]


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
