"""Reading the list or mapping at the end of an answer, as JSON or as a Python literal: boxes, points.

Everything here takes time about linear in the text, whatever a policy writes.
"""

import ast
import json
import math
import re
from typing import Any

from .extraction import last_tagged, strip_thinking

MAX_LITERAL_CHARS = 262_144
"""A longer literal is not read."""
MAX_DEPTH = 8
"""A list of boxes nests three deep; deeper nesting is an attack on the parser."""

_FENCE = re.compile(r"```(?:json|python)?[ \t]*\n?", re.IGNORECASE)
_BRACKET = re.compile(r"""[\[\]{}"'\n]|\\.""")
_PAIRS = {"]": "[", "}": "{"}


def answer_literal(text: str, *, max_chars: int = MAX_LITERAL_CHARS) -> Any:
    """The value of the answer's literal, or None: that of the last `<answer>`, or where there is none, of the text.

    The thoughts are never read, and a thought that was not closed leaves nothing to read.
    """
    spoken = strip_thinking(text)
    if spoken is None:
        return None
    tagged = last_tagged(spoken)
    return last_literal(spoken if tagged is None else tagged, max_chars=max_chars)


def last_literal(text: str, *, max_chars: int = MAX_LITERAL_CHARS) -> Any:
    """The value of the last balanced `[...]` or `{...}` of the last code fence, else of the text; None without one."""
    literal = _last_brackets(_last_fence(text))
    if literal is None or len(literal) > max_chars:
        return None
    try:
        return json.loads(literal)
    except ValueError:  # not JSON, or a whole number too long to read
        pass
    try:
        return ast.literal_eval(literal)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that its documentation names
        return None


def finite_numbers(value: Any, count: int) -> tuple[float, ...] | None:
    """The numbers of a list of `count` finite ones; None for anything else. True and False are no numbers."""
    if not isinstance(value, list | tuple) or len(value) != count:
        return None
    if not all(isinstance(item, int | float) and not isinstance(item, bool) for item in value):
        return None
    try:
        numbers = tuple(float(item) for item in value)
    except OverflowError:  # an integer of hundreds of digits
        return None
    return numbers if all(math.isfinite(number) for number in numbers) else None


def _last_fence(text: str) -> str:
    """What stands in the last code fence, whether or not it was closed; the text itself without one."""
    marks = list(_FENCE.finditer(text))
    if not marks:
        return text
    opening = marks[-2] if len(marks) % 2 == 0 else marks[-1]
    closing = text.find("```", opening.end())
    return text[opening.end() : closing if closing >= 0 else len(text)]


def _last_brackets(text: str) -> str | None:
    """The last outermost balanced [...] or {...}, up to `MAX_DEPTH` deep; brackets in quoted text do not count."""
    found, start, quote = None, 0, ""
    stack: list[str] = []
    for match in _BRACKET.finditer(text):
        mark = match[0]
        if quote:
            quote = "" if mark in (quote, "\n") else quote
        elif stack and mark in "\"'":
            quote = mark
        elif mark in "[{":
            start = start if stack else match.start()
            stack.append(mark)
        elif mark in "]}" and stack:
            if stack.pop() != _PAIRS[mark]:
                stack.clear()
            elif not stack:
                found = text[start : match.end()]
        if len(stack) > MAX_DEPTH:
            return None
    return found
