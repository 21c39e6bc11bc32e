"""The format reward."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.rewards import Completion, FormatReward


@pytest.mark.parametrize(
    ("pattern", "text", "value"),
    [
        ("think_answer", "<think>a\nb</think>\n<answer>c</answer>", 1),
        ("think_answer", "<think>a</think> so <answer>c</answer>", 0),
        ("think_answer", "<think>a</think><answer>c</answer> more", 0),
        ("think_answer", "<think>a</think><answer>c</answer><answer>d</answer>", 0),
        ("think_answer", "<answer>c</answer><think>a</think>", 0),
        ("think_answer", "<think><answer>c</think></answer>", 0),
        ("boxed", r"so \boxed{\frac{1}{2}}.", 1),
        ("boxed", r"\boxed{1} \boxed{2}", 0),
        ("boxed", r"<think>\boxed{1}</think>1", 0),
        ("boxed", r"\boxed{ }", 0),
        ("json", '```json\n[{"a": 1}]\n```', 1),
        ("json", '<think>x</think>{"a": 1}', 1),
        ("json", '{"a": 1', 0),
        ("json", "[" * 100_000, 0),
        ("json", "7", 0),
        (r"A.*Z", "A\nZ", 1),
        (r"A.*Z", "A\nZ!", 0),
    ],
)
def test_layout(pattern: str, text: str, value: int) -> None:
    assert FormatReward(pattern=pattern, deadline_s=60)(Completion(text=text), {}).value == value


def test_a_regular_expression_that_backtracks_for_ever_is_unscored() -> None:
    score = FormatReward(pattern="(a+)+b", deadline_s=0.5)(Completion(text="a" * 40), {})
    assert not score.is_scored and "deadline" in score.reason


def test_a_wrong_pattern_is_refused_with_the_nearest_layout() -> None:
    with pytest.raises(ValueError, match="did you mean 'think_answer'"):
        FormatReward(pattern="think_anser")
    with pytest.raises(ValueError, match="no regular expression"):
        FormatReward(pattern="(a")


@given(st.sampled_from(["think_answer", "boxed", "json"]), st.text(alphabet='<>/thinkanswerboxed\\{}[]"1,:`json\n'))
def test_layouts_never_raise(pattern: str, text: str) -> None:
    assert FormatReward(pattern=pattern)(Completion(text=text), {}).value in (0.0, 1.0)
