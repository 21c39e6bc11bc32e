"""The layout `think_answer`: the opening tag may stand in the prompt, and neither half may be empty."""

import pytest
from posttrain.rewards import Completion, FormatReward


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("<think>I add.</think><answer>4</answer>", 1),
        ("I add.\n</think>\n\n<answer>4</answer>", 1),
        ("<think></think><answer></answer>", 0),
        ("<think> \n</think><answer>4</answer>", 0),
        ("<think>I add.</think><answer> </answer>", 0),
        ("</think><answer>4</answer>", 0),
        ("I add.</think>So <answer>4</answer>", 0),
        ("I add.</think><answer>4</answer> as I said", 0),
        ("I add. <think>And again.</think><answer>4</answer>", 0),
        ("<think>I <think>add.</think><answer>4</answer>", 0),
        ("I add.</think>And again.</think><answer>4</answer>", 0),
        ("<answer>3</answer> I add.</think><answer>4</answer>", 0),
        ("I add.<answer></think>4</answer>", 0),
        ("I add. <answer>4</answer>", 0),
    ],
)
def test_a_thought_and_an_answer_and_nothing_else(text: str, value: int) -> None:
    assert FormatReward(pattern="think_answer")(Completion(text=text), {}).value == value
