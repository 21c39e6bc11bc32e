"""Naming an option in words of one's own: what says B, and what beside it does not."""

import pytest
from posttrain.rewards import Completion, MultipleChoice

COLOURS = {"options": ["red", "blue", "green", "yellow"]}


def chosen(text: str, **reference: object) -> str:
    """The letters that earn the mark, of which there is at most one."""
    reward = MultipleChoice()
    return "".join(a for a in "ABCD" if reward(Completion(text=text), {"answer": a, **reference}).value == 1.0)


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is B because it is blue.", "B"),
        ("The answer is B since it is blue", "B"),
        ("The answer is B, because it is blue.", "B"),
        ("The answer is B because C is not", ""),
        ("The answer is B or C because both are", ""),
        ("It is B", "B"),
        ("It's (B).", "B"),
        ("I choose B", "B"),
        ("I would pick option B.", "B"),
        ("I'd go with B", "B"),
        ("So I choose B.", "B"),
        ("My answer is B.", "B"),
        ("It is B or C", ""),
        ("It is not B", ""),
        ("I choose neither B", ""),
        ("I choose B, C", ""),
        ("I choose between A and B", ""),
        ("本题选B", "B"),
        ("应选B", "B"),
        ("所以，应该选B。", "B"),
        ("因此本题选Ｂ。", "B"),
        ("不应选B", ""),
        ("本题选A或B", ""),
        ("### Answer\nB", "B"),
        ("It is not red.\n\n## Final Answer:\n\n(B) blue", "B"),
        ("**Answer**\nB", "B"),
        ("### Answer\nA\n### Answer\nB", "B"),
        ("### Answer\nA or B", ""),
        ("### Options\nB", ""),
        (r"\boxed{\mathrm{(B)}\ \text{blue}}", "B"),
        (r"\boxed{\text{(B)}\ \text{red}}", ""),
        (r"\boxed{B \quad C}", ""),
    ],
)
def test_an_option_is_named_in_words_of_ones_own(text: str, letter: str) -> None:
    assert chosen(text, **COLOURS) == letter
    if "red" not in text:
        assert chosen(text) == letter


@pytest.mark.parametrize(
    ("text", "letter"),
    [
        ("The answer is B. The sky is blue.", "B"),
        ("The answer is B. The sky has that colour.", "B"),
        ("B. The sky is red.", ""),  # the text of A
        ("B. The sky is not blue.", ""),
        ("B. No, wait a moment", ""),
        ("B. Or it is C", ""),
        ("B. It could be yellow", ""),
        ("B. blueish", ""),
        ("B. purple", ""),
        ("B. It may redden later", "B"),  # red is another option's text only as a word
    ],
)
def test_a_sentence_after_the_letter_may_not_speak_against_it(text: str, letter: str) -> None:
    assert chosen(text, **COLOURS) == letter


def test_an_options_text_may_hold_what_introduces_or_explains_an_answer() -> None:
    options = {"options": ["It is a cat", "He left because he was tired", "a cat or two", "I choose B"]}
    assert chosen("It is a cat", **options) == "A"
    assert chosen("He left because he was tired.", **options) == "B"
    assert chosen("It is a cat or two", **options) == "C"
    assert chosen("It is a dog", **options) == ""
