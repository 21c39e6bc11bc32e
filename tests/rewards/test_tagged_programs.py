"""Where a program is looked for: in the answer's tag first, though a fence there does not begin its line."""

import pytest
from posttrain.rewards.coding import last_program


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("<think>a</think><answer>```python\na\n```</answer>", "a\n"),
        ("<answer>\n```python\na\n```\n</answer>", "a\n"),
        ("<answer>```python\na\n```</answer>\n```python\nb\n```", "a\n"),
        ("```python\na\n```\n<answer>done</answer>", "a\n"),
        ("```python\nprint('<answer>1</answer>')\n```", "print('<answer>1</answer>')\n"),
        ("<think><answer>```python\na\n```</answer></think>", None),
        ("<think><answer>```python\na\n```</answer>", None),
        ("<answer>```bash\nls\n```</answer>", None),
        ("<answer>```python\na</answer>", None),
        ("so ```python\na\n```", None),
    ],
)
def test_the_answer_is_opened_first(text: str, program: str | None) -> None:
    assert last_program(text) == program
