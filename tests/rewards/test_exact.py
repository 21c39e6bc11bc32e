"""Exact match and multiple choice."""

import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.rewards import BadReferenceError, Completion, ExactMatch, MultipleChoice

OPTIONS = {"options": ["Paris", "Rome", "C. elegans", "None of these"]}


@pytest.mark.parametrize(
    ("answer", "text", "value"),
    [
        ("Zürich", "  Zürich\n", 1),
        ("Zu\u0308rich", "Z\u00fcrich", 1),
        ("ABC", "ＡＢＣ", 1),
        ("Paris", "paris", 0),
        ("Paris", "Paris, France", 0),
        ("Paris", "<think>Rome</think>Paris", 1),
        ("Paris", "<think>Paris", 0),
        ("Paris", "I say <answer>Paris</answer>.", 1),
        ("7", r"so \boxed{7}", 1),
        (7, "7", 1),
        (["a", "b"], "b", 1),
        (["a", "b"], "c", 0),
    ],
)
def test_exact_match(answer: object, text: str, value: int) -> None:
    assert ExactMatch()(Completion(text=text), {"answer": answer}).value == value


def test_case_can_be_ignored() -> None:
    assert ExactMatch(ignore_case=True)(Completion(text="STRASSE"), {"answer": "Straße"}).value == 1.0


@pytest.mark.parametrize("answer", [None, "", "  ", [], True, {}])
def test_exact_match_refuses_an_empty_reference(answer: object) -> None:
    with pytest.raises(BadReferenceError):
        ExactMatch().perfect_answer({"answer": answer})


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("B", 1),
        ("(B)", 1),
        ("b", 1),
        ("B.", 1),
        ("**B**", 1),
        ("B. Rome", 1),
        ("(b) Rome", 1),
        ("Rome", 1),
        (r"\boxed{\text{B}}", 1),
        ("<answer>B</answer>", 1),
        ("Answer: B", 1),
        ("It was not A.\nThe answer is (B).", 1),
        ("<think>A</think>B", 1),
        ("A", 0),
        ("B. Paris", 0),
        ("A, B", 0),
        ("A or B", 0),
        ("AB", 0),
        ("B or A", 0),
        ("<answer>A</answer><answer>B</answer>", 1),
        ("The answer is not B", 0),
        ("E", 0),
        ("Because B is a letter\nand so on", 0),
        ("", 0),
        ("[B]", 1),
        ("（B）", 1),
        ("Option B", 1),
        ("The answer is option (B).", 1),
        ("The correct choice is B: Rome", 1),
        ("B is correct.", 1),
        ("(B) is the right answer", 1),
        ("答案是B", 1),
        ("故选B。", 1),
        ("not (B)", 0),
        ("not Rome", 0),
        ("B is wrong", 0),
        ("B isn't right", 0),
        ("B. is wrong", 0),
        ("anything but B", 0),
        ("B and C", 0),
        ("both A and B", 0),
        ("Option A or B", 0),
        ("B, not A", 0),
        ("B/A", 0),
        ("b or c", 0),
        ("b) c)", 0),
        ("b. or c", 0),
        ("Rome or Paris", 0),
        ("I see a B", 0),
        ("A. B. C. D.", 0),
    ],
)
def test_multiple_choice(text: str, value: int) -> None:
    assert MultipleChoice()(Completion(text=text), {"answer": "B", **OPTIONS}).value == value
    assert MultipleChoice()(Completion(text=text), {"answer": "Rome", **OPTIONS}).value == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(("B", 1), ("B. a cat", 1), ("B: I see a dog", 1), ("Option B", 1), ("B is correct", 1), ("B. Not enough", 1)),
        *(("B. or C", 0), ("B) and A", 0), ("B, C", 0), ("Rome", 0), ("b) c)", 0), ("b. or c", 0), ("not B", 0)),
        *(("B: is not right", 0), ("B: not correct", 0), ("b is the letter", 0), ("a cat", 0)),
    ],
)
def test_multiple_choice_without_options(text: str, value: int) -> None:
    assert MultipleChoice()(Completion(text=text), {"answer": "B"}).value == value


def test_an_option_may_look_like_a_letter_and_options_may_carry_theirs() -> None:
    assert MultipleChoice()(Completion(text="C. elegans"), {"answer": "C", **OPTIONS}).value == 1.0
    lettered = {"options": {"A": "A. Paris", "B": "(B) Rome"}, "answer": "B"}
    assert MultipleChoice()(Completion(text="Rome"), lettered).value == 1.0
    assert MultipleChoice()(Completion(text="B. Rome"), lettered).value == 1.0
    numbers = {"options": ["2", "3", "5"], "answer": 3}
    assert MultipleChoice()(Completion(text="B"), numbers).value == 1.0


@pytest.mark.parametrize(
    "reference", [{}, {"answer": "Rome"}, {"answer": "E", **OPTIONS}, {"answer": "A", "options": 4}]
)
def test_multiple_choice_refuses_a_reference_that_names_no_option(reference: dict) -> None:
    with pytest.raises(BadReferenceError):
        MultipleChoice().perfect_answer(reference)


@given(st.text(alphabet="ABCDabcd().,:orand \n<>/answer\\boxed{}", max_size=60))
def test_multiple_choice_never_raises_and_names_at_most_one_option(text: str) -> None:
    scores = [MultipleChoice()(Completion(text=text), {"answer": a, **OPTIONS}).value for a in "ABCD"]
    assert sum(score or 0.0 for score in scores) <= 1
