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
        ("The answer is B, because the city is Rome.", 1),
        ("The answer is B, because A is wrong but C, too", 0),
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


CHINESE = ["红色", "蓝色", "绿色", "黄色"]


@pytest.mark.parametrize(
    ("text", "value"),
    [
        *(
            ("答案是Ｂ", 1),
            ("答案是：B。", 1),
            ("答案是（Ｂ）蓝色", 1),
            ("【答案】B", 1),
            ("答案应选B", 1),
            ("答案为B选项", 1),
        ),
        *(("图中的车是蓝色的。\n所以答案是Ｂ。", 1), ("首先观察。\n\n答案：\n（Ｂ）", 1), ("**答案：** B", 1)),
        *(
            ("A是错的\n故选：B", 1),
            ("因此，选B。", 1),
            ("综上，本题选Ｂ．", 1),
            ("我选择B", 1),
            ("选项Ｂ是正确的。", 1),
        ),
        *(("正确选项是【B】", 1), ("正确答案为：Ｂ、蓝色", 1), ("答案是蓝色。", 1), ("Answer：B", 1), ("（Ｂ）", 1)),
        *(("<answer>Ｂ．蓝色</answer>", 1), ("<answer>B\n蓝色</answer>", 1), ("<answer>\n蓝色\n</answer>", 1)),
        *(("答案是Ｂ，因为车是蓝色的。", 1), ("答案是A\n不对，答案是B", 1), ("答案是C\n答案是选项B", 1)),
        *(("答案是B\n不对，答案是A", 0), ("答案不是B", 0), ("答案是C，不是B", 0), ("答案是A或B", 0), ("B不对", 0)),
        *(("<answer>B、C</answer>", 0), ("<answer>B\nC</answer>", 0), ("<answer>ＡＢ</answer>", 0), ("B和C", 0)),
        *(
            ("选项\nB", 0),
            ("选项A：红色\n选项B：蓝色", 0),
            ("A、B、C、D", 0),
            ("答案是B，因为A不对但是C也对", 0),
            ("B对吗", 0),
        ),
    ],
)
def test_multiple_choice_in_chinese_on_any_line_and_in_full_width(text: str, value: int) -> None:
    lines = "A. 红色\nＢ．蓝色\n（C）绿色\nD、黄色\n"
    for options in (CHINESE, dict(zip("ABCD", CHINESE, strict=True)), lines, lines.splitlines()):
        assert MultipleChoice()(Completion(text=text), {"answer": "B", "options": options}).value == value
    if "蓝色" not in text or "B" in text:
        assert MultipleChoice()(Completion(text=text), {"answer": "Ｂ"}).value == value


def test_what_is_said_of_a_chinese_option_may_take_it_back_but_its_text_may_be_a_denial() -> None:
    said = {"B. 不变": 1, "B：错误": 1, "B. 是": 1, "B、不对": 0, "B：是错的": 0, "B. 不是正确答案": 0}
    assert {text: MultipleChoice()(Completion(text=text), {"answer": "B"}).value for text in said} == said


def test_options_in_one_text_must_be_lettered_in_order() -> None:
    right = {"answer": "B", "options": "A. a cat. B. is a dog\nB. a dog"}
    assert MultipleChoice()(Completion(text="a dog"), right).value == 1.0
    for wrong in ("red, blue", "A. red\nC. blue", "B. red\nA. blue", ""):
        with pytest.raises(BadReferenceError, match="or lines like 'A. text'"):
            MultipleChoice().perfect_answer({"answer": "B", "options": wrong})


@pytest.mark.parametrize(
    "reference", [{}, {"answer": "Rome"}, {"answer": "E", **OPTIONS}, {"answer": "A", "options": 4}]
)
def test_multiple_choice_refuses_a_reference_that_names_no_option(reference: dict) -> None:
    with pytest.raises(BadReferenceError):
        MultipleChoice().perfect_answer(reference)


@given(st.text(alphabet="ABCDabcd().,:orand \n<>/answer\\boxed{}答案是选项故、，：（）【】ＡＢ不对因为", max_size=60))
def test_multiple_choice_never_raises_and_names_at_most_one_option(text: str) -> None:
    scores = [MultipleChoice()(Completion(text=text), {"answer": a, **OPTIONS}).value for a in "ABCD"]
    assert sum(score or 0.0 for score in scores) <= 1
