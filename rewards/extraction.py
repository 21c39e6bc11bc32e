"""Finding the final answer in what a policy said: thoughts stripped, then the last tag, box or answer line.

Everything here takes time linear in the text, so that no completion can stall a run.
"""

import re
from collections.abc import Callable, Mapping
from typing import Literal

from .answer_lines import announced_answer

Extraction = Literal["marked", "tagged", "last_boxed", "last_line", "after_think", "whole"]
"""What counts as a task's answer; `EXTRACTIONS` says how each is found."""

MAX_ANSWER_CHARS = 1000
"""A longer "answer" is a dump of the reasoning: it counts as no answer."""
NO_ANSWER = f"no final answer of at most {MAX_ANSWER_CHARS} characters"
"""The reason that rewards give where `extract_answer` found nothing."""
MAX_LONG_ANSWER_CHARS = 100_000
"""Bound of an answer that may be a whole page, as in a transcription."""
MAX_BARE_CHARS = 100
"""A whole response of one line up to this long counts as an answer without any mark."""

_BOX = re.compile(r"\\boxed\s*(?:\{|(?P<bare>[+-]?\d++(?:[.,/]\d++)*+))")
_BRACE = re.compile(r"\\.|[{}]", re.DOTALL)


def extract_answer(text: str, *, max_chars: int = MAX_ANSWER_CHARS) -> str | None:
    r"""The final answer, stripped; None where there is none or it is empty or longer than `max_chars`.

    Thoughts never count. In what follows them, the first of these that occurs: the last `<answer>...</answer>`, the
    last `\boxed{...}`, what the last `####`, "answer is", "Answer:" or heading "Final Answer" announces, the whole
    text if it is one short line. A `\boxed{...}` inside the tag is opened too, unless there are several different ones
    in it: two answers are not one.
    """
    spoken = strip_thinking(text)
    if spoken is None:
        return None
    answer = _marked_answer(spoken)
    if answer is None:
        answer = spoken.strip()
        if "\n" in answer or len(answer) > MAX_BARE_CHARS or "\\boxed" in answer:  # a box that was never closed
            return None
    answer = answer.strip()
    return answer if 0 < len(answer) <= max_chars else None


def whole_answer(text: str) -> str | None:
    r"""The answer where all that was said may be one, as in a transcription; None where a thought was never closed.

    After the thoughts: the last `<answer>`, else the last `\boxed{...}`, else everything. Neither stripped nor bounded.
    """
    spoken = strip_thinking(text)
    if spoken is None:
        return None
    tagged = last_tagged(spoken)
    return next(reversed(all_boxed(spoken)), spoken) if tagged is None else tagged


def extract(text: str, extraction: Extraction) -> str | None:
    """The answer as `extraction` finds it after the thoughts, stripped; None for none, or one beyond its bound."""
    spoken = strip_thinking(text)
    if spoken is None:
        return None
    find, max_chars = EXTRACTIONS[extraction]
    answer = (find(spoken) or "").strip()
    return answer if 0 < len(answer) <= max_chars else None


def strip_thinking(text: str) -> str | None:
    """The text without `<think>...</think>`; None where a thought was never closed, so that nothing was said.

    A `</think>` without its opening tag closes a thought that the chat template opened: all before it is thought.
    """
    kept: list[str] = []
    position = 0
    while (start := text.find("<think>", position)) >= 0:
        end = text.find("</think>", start)
        if end < 0:
            return None
        kept.append(text[position:start])
        position = end + len("</think>")
    kept.append(text[position:])
    return "".join(kept).rpartition("</think>")[2]


def last_tagged(text: str, tag: str = "answer") -> str | None:
    """What stands in the last complete `<tag>...</tag>`, not stripped; None where there is none."""
    end = text.rfind(f"</{tag}>")
    start = text.rfind(f"<{tag}>", 0, max(end, 0))
    return text[start + len(tag) + 2 : end] if start >= 0 else None


def last_boxed(text: str) -> str | None:
    r"""What stands in the last outermost balanced `\boxed{...}`, braces nested to any depth; None without one."""
    boxes = all_boxed(text)
    return boxes[-1] if boxes else None


def all_boxed(text: str) -> list[str]:
    r"""The contents of every outermost balanced `\boxed{...}`, and of `\boxed 7`, in order."""
    contents: list[str] = []
    if "\\boxed" not in text:
        return contents
    closing = _closing_braces(text)
    position = 0
    while match := _BOX.search(text, position):
        if match["bare"]:
            contents.append(match["bare"])
            position = match.end()
            continue
        brace = match.end() - 1
        end = closing.get(brace)
        if end is not None:
            contents.append(text[brace + 1 : end])
        position = match.end() if end is None else end
    return contents


def _marked_answer(spoken: str) -> str | None:
    tagged = last_tagged(spoken)
    boxes = all_boxed(spoken if tagged is None else tagged)
    if tagged is not None and len(set(boxes)) > 1:
        return tagged
    if boxes:
        return boxes[-1]
    if tagged is not None:
        return tagged
    return announced_answer(spoken)


def _closing_braces(text: str) -> dict[int, int]:
    r"""Position of each `{` to that of its `}`. `\{` and `\}` are printed braces, which need not balance."""
    closing: dict[int, int] = {}
    open_braces: list[int] = []
    for match in _BRACE.finditer(text):
        if match[0] == "{":
            open_braces.append(match.start())
        elif match[0] == "}" and open_braces:
            closing[open_braces.pop()] = match.start()
    return closing


def _last_line(spoken: str) -> str:
    return spoken.strip().rpartition("\n")[2]


EXTRACTIONS: Mapping[Extraction, tuple[Callable[[str], str | None], int]] = {
    "marked": (extract_answer, MAX_ANSWER_CHARS),
    "tagged": (last_tagged, MAX_ANSWER_CHARS),
    "last_boxed": (last_boxed, MAX_ANSWER_CHARS),
    "last_line": (_last_line, MAX_ANSWER_CHARS),
    "after_think": (str, MAX_LONG_ANSWER_CHARS),
    "whole": (whole_answer, MAX_LONG_ANSWER_CHARS),
}
"""Name -> (what finds it in a text without thoughts, its bound in characters)."""
