"""What a teacher says when it is asked instead of scored: the text of one answer, its thought inside."""

import re
from dataclasses import dataclass

from posttrain.records import Trajectory

_OPEN, _CLOSE = "<think>", "</think>"


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer of a teacher to one example."""

    text: str
    """All that was said, a thought in <think>...</think> before the answer proper; without the end-of-turn token."""
    finished: bool
    """True = the teacher ended its turn; False = it was cut at a limit, or broke."""
    episode: Trajectory | None = None
    """Of a task with an environment: the turns, tool calls and observations; `text` is all that was said in them."""


def whole_text(reasoning: str, content: str) -> str:
    """The text of an answer that a server may have split into a thought and the answer proper.

    Written as Qwen's templates write it, whatever blank lines the splitting lost. A thought that was cut short stays
    open; one that a template opened before the answer began (`...</think> 4`) is opened again.
    """
    if reasoning.strip():
        reasoning, content = reasoning.strip("\n"), content.lstrip("\n")
        return f"{_OPEN}\n{reasoning}\n{_CLOSE}\n\n{content}" if content else f"{_OPEN}\n{reasoning}"
    if _CLOSE in content and not re.match(rf"\s*{_OPEN}", content):
        return f"{_OPEN}\n" + content.lstrip("\n")
    return content
