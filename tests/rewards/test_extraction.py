"""Finding the final answer."""

import time
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.rewards.extraction import (
    EXTRACTIONS,
    MAX_ANSWER_CHARS,
    Extraction,
    extract,
    extract_answer,
    last_boxed,
    strip_thinking,
)


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"so \boxed{5} no, \boxed{3}", "3"),
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{4} and \boxed{5", "4"),
        (r"\boxed{\boxed{5}}", r"\boxed{5}"),
        (r"\boxed {7}", "7"),
        ("<answer>1</answer> <answer> 2 </answer>", "2"),
        (r"<answer>it is \boxed{9}</answer>", "9"),
        (r"\boxed{1} <answer>2</answer>", "2"),
        (r"<think>\boxed{1}</think>\boxed{2}", "2"),
        (r"<think>\boxed{1}", None),
        (r"\boxed{1}</think>", None),
        (r"opened by the template: \boxed{1}</think>\boxed{2}", "2"),
        ("2 + 2 = 4\n#### 1,080\n", "1,080"),
        ("**Answer:** B.", "B"),
        ("I think.\nThe answer is 12. Sure.", "12. Sure"),
        ("先算一下。\n答案是 42。", "42"),
        ("正确答案：3\n所以答案为：\n四", "四"),
        ("Answer：7", "7"),
        ("72", "72"),
        ("several\nlines", None),
        ("", None),
        (r"\boxed{}", None),
        (r"\boxed{" + "1" * (MAX_ANSWER_CHARS + 1) + "}", None),
    ],
)
def test_the_final_answer_is_found(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


def test_thoughts_are_stripped_wherever_they_stand() -> None:
    assert strip_thinking("a<think>b</think>c<think>d</think>e") == "ace"
    assert strip_thinking("<think>a<think>b</think>c</think>d") == "d"
    assert strip_thinking("a<think>b</think>c<think>d") is None


@given(st.text(alphabet="\\{}boxed<>/thinkanswer# 1\n答案是故选：", max_size=300))
def test_extraction_never_raises_and_a_box_is_part_of_the_text(text: str) -> None:
    extract_answer(text)
    boxed = last_boxed(text)
    assert boxed is None or boxed in text


@given(st.recursive(st.just("x"), lambda inner: st.lists(inner, max_size=3).map(lambda xs: "{" + "".join(xs) + "}")))
def test_any_balanced_content_of_a_box_is_found_whole(content: str) -> None:
    assert last_boxed(rf"{{ \boxed{{{content}}} }} }}") == content


@pytest.mark.parametrize(
    "piece", ["<think>", "</think>", r"\boxed{", "<answer>", "answer is ", "{", "####", "answer    "]
)
def test_time_is_linear_in_hostile_text(piece: str) -> None:
    started = time.process_time()
    extract_answer(piece * 20_000)
    assert time.process_time() - started < 1.0  # a quadratic scan takes minutes


SAID = "<think>\\boxed{0}</think>So <answer>1</answer>, that is \\boxed{2}.\n\nIt is 3"


@pytest.mark.parametrize(
    ("extraction", "answer"),
    [
        ("marked", "1"),
        ("tagged", "1"),
        ("last_boxed", "2"),
        ("last_line", "It is 3"),
        ("after_think", "So <answer>1</answer>, that is \\boxed{2}.\n\nIt is 3"),
        ("whole", "1"),
    ],
)
def test_each_extraction_finds_its_own_answer_after_the_thoughts(extraction: Any, answer: str) -> None:
    assert extract(SAID, extraction) == answer
    assert extract("<think>" + SAID.replace("</think>", ""), extraction) is None, "a thought that was never closed"
    assert extract("", extraction) is None


@pytest.mark.parametrize("extraction", EXTRACTIONS)
def test_every_extraction_is_bounded(extraction: Any) -> None:
    _, bound = EXTRACTIONS[extraction]
    written = {"tagged": "<answer>{}</answer>", "last_boxed": r"\boxed{{{}}}", "marked": "<answer>{}</answer>"}
    pattern = written.get(extraction, "{}")
    assert extract(pattern.format("7" * bound), extraction) == "7" * bound
    assert extract(pattern.format("7" * (bound + 1)), extraction) is None


def test_several_different_boxes_in_one_answer_are_not_one_answer() -> None:
    assert extract_answer(r"<answer>\boxed{3} or \boxed{4}</answer>") == r"\boxed{3} or \boxed{4}"
    assert extract_answer(r"<answer>\boxed{4}, again \boxed{4}</answer>") == "4"


def test_every_extraction_that_is_named_can_be_done() -> None:
    assert set(EXTRACTIONS) == set(get_args(Extraction))
