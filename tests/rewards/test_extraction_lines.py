"""Answers in the lines that announce them: bold type, endings, headings."""

import time

import pytest
from posttrain.rewards import Completion, MathReward, extract_answer

VERDICTS = [
    ("4", "**4**", 1),
    ("4", "<answer>**4**</answer>", 1),
    ("4", "#### **4**", 1),
    ("7", "**The answer is 7**.", 1),
    ("4", "The answer is **4** apples.", 1),
    ("4", "**5**", 0),
    ("4", "**4** or **5**", 0),
    ("4", "<answer>**4** or **5**</answer>", 0),
    ("4", "**Answer:** 4", 1),
    ("4", "**Answer: 4**", 1),
    ("4", "The answer is *4*.", 1),
    ("4", "Answer: __4__", 1),
    ("9", "3**2", 1),
    ("x^2", "x**2", 1),
    ("4", "The answer is **4.**", 1),
    ("8", "The answer is 2**3.", 1),
    ("-4", "**-4**", 1),
    ("4", "The answer is **not** 4", 0),
    ("4", "The answer is: **$4$**.", 1),
    ("4", "Final Answer: The final answer is $4$. I hope it is correct.", 1),
    ("4", "The answer is 4. This is because 2+2=4.", 1),
    ("4", "The answer is 4. This is because...", 1),
    ("4", "The answer is 4, which means...", 1),
    ("4", "The answer is 4, which means there are 4 cats.", 1),
    ("4", "The answer is 4. I hope the answer is right.", 1),
    ("4", "The answer is therefore 4", 1),
    ("4", "The answer would be 4", 1),
    ("4", "The answer to the question is 4.", 1),
    ("4", "The answer is 4. But it could be 5.", 0),
    ("4", "The answer is 4, which might also be 5.", 0),
    ("4", "The answer is 4 or 5. I hope it is correct.", 0),
    ("4", "The answer is 5. I hope it is correct.", 0),
    ("4", "The answer is 4, or 5.", 0),
    ("4", "The answer is 4, 5.", 0),
    ("4", "The answer is not 4.", 0),
    ("4", "The answer is not 4. I hope it is correct.", 0),
    ("4", "The answer is 4. This is wrong, it is 5.", 0),
    ("4", "The answer is 4. This is because it is 5 or 4.", 0),
    ("4", "The answer is 4. No, 5.", 0),
    ("4", "The answer is 4, since 5 is the answer", 0),
    ("4.5", "The answer is 4.5. This is because...", 1),
    ("4", "The answer is 4.5. This is because...", 0),
    ("4", "The answer to this problem is $4$", 1),
    ("4", "The answer is thus 4.", 1),
    ("4", "The answer is 4 because 2+2=4", 1),
    ("4", "The answer is 4. Hope this helps!", 1),
    ("4", "Final Answer: The final answer is $4$. I hope it is correct.\n", 1),
    ("4", "The answer is 4\n\nI hope my answer is correct.", 1),
    ("4", "The answer is at least 4.", 0),
    ("4", "The answer is maybe 4.", 0),
    ("4", "#### Step 1: compute\n2+2=4\n\nThe answer is 4.", 1),
    ("4", "#### Final Answer\n\n4", 1),
    ("42", "**Final Answer**\n\n42", 1),
    ("42", "## Answer\n42", 1),
    ("42", "### **Final Answer:**\n\n**42**", 1),
    ("42", "**Final Answer**\n\n\\[\n42\n\\]", 1),
    ("42", "**Final Answer**\n\n$$\n42\n$$", 1),
    ("4", "The answer is 4.\n#### 5", 0),
    ("5", "The answer is 4.\n#### 5", 1),
    ("5", "#### 4\nThe answer is 5.", 1),
    ("4", "#### 4\nThe answer is 5.", 0),
    ("4", "#### Answer: 4", 1),
    ("4", "#### The answer is 4", 1),
    ("4", "**Final Answer**\n\n4 or 5", 0),
    ("4", "**Final Answer**", 0),
    ("4", "#### Final Answer\n\n5\n4", 0),
    ("4", "### 最终答案\n\n4", 1),
    ("4", "**答案**\n4", 1),
    ("4", "因此，答案为4个。", 1),
    ("5", "因此，答案为4个。", 0),
    ("7", r"\boxed 7", 1),
    ("7", r"So $\boxed 7$.", 1),
    ("12", r"So $\boxed 12$.", 1),
    ("7", r"\boxed 8", 0),
    ("7", r"\boxed7", 1),
    ("4", "The answer is 4 (four).", 1),
    ("12", r"\boxed 12 or \boxed 13", 0),
    ("13", r"<answer>\boxed 12 or \boxed 13</answer>", 0),
    ("7", r"use \boxed to write 7", 0),
]


@pytest.mark.parametrize(("gold", "text", "value"), VERDICTS)
def test_the_announced_answer_counts(gold: str, text: str, value: int) -> None:
    assert MathReward(deadline_s=600)(Completion(text=text), {"answer": gold}).value == value


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("The answer is B. This is because C is too small.", "B. This is because C is too small"),
        ("The answer is B. This is because it is blue.", "B"),
        ("The answer is B, because it is blue.", "B"),
        ("The answer is C. elegans", "C. elegans"),
        ("The answer is J. Smith.", "J. Smith"),
        ("The answer is right. I hope the answer is correct.", "right"),
        ("The answer is 2**3.", "2**3"),
        ("**Answer:** **B**: blue", "B: blue"),
        ("**Final Answer**", None),
    ],
)
def test_only_reasons_and_wishes_are_cut_off(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    "piece", [" ", "Answer\n", "**a", "# ", "answer is 4, because ", ". I hope it ", "hope the answer is "]
)
def test_time_is_linear_in_hostile_lines(piece: str) -> None:
    started = time.process_time()
    extract_answer("The answer is 4" + piece * 20_000 + "!")
    assert time.process_time() - started < 30.0  # a quadratic scan takes minutes
