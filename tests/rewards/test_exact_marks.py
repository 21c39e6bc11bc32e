"""Which text `exact_match` compares: a marked answer, or all that was said, in plain type."""

import pytest
from posttrain.rewards import Completion, ExactMatch


@pytest.mark.parametrize(
    ("answer", "text", "value"),
    [
        ("red", "Answer: red", 1),
        ("red", "The answer is red", 1),
        ("red", "It looks warm.\n**Answer:** red.", 1),
        ("red", "The answer is **red**.", 1),
        ("red", "#### red", 1),
        ("red", "red.", 1),
        ("red", "**red**", 1),
        ("red", "*red*", 1),
        ("红色", "答案是**红色**。", 1),
        ("red", r"<answer>\boxed{red}</answer>", 1),
        ("red", "Answer: red\nAnswer: blue", 0),
        ("red", "The answer is not red", 0),
        ("red", "The answer is red or blue", 0),
        ("red", "Answer: red, blue", 0),
        ("red", "It is red", 0),
        ("red", "red blue", 0),
        ("red", "red..", 0),
        ("red", r"<answer>\boxed{red} \boxed{blue}</answer>", 0),
        ("red", "<answer>blue</answer> Answer: red", 0),
        ("red", "<think>Answer: red</think>blue", 0),
        ("red", "<think>Answer: red", 0),
        ("Mr. Li.", "Mr. Li.", 1),
        ("Mr. Li.", "Mr. Li", 0),  # the reference's own full stop counts
        ("The answer is 42.", "The answer is 42.", 1),
        ("42", "The answer is 42.", 1),
        ("234", "2*3*4", 0),
        ("234", "2**3**4", 0),
        ("init", "__init__", 0),
        ("**", "**", 1),
    ],
)
def test_the_marked_answer_is_compared(answer: str, text: str, value: int) -> None:
    assert ExactMatch()(Completion(text=text), {"answer": answer}).value == value
