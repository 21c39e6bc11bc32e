"""The boxes or points at the end of an answer, as JSON or as a Python literal; brackets in remarks are passed over.

Everything here takes time about linear in the text, whatever a policy writes.
"""

import ast
import json
import math
import re
from typing import Any

from .extraction import all_boxed, last_tagged, strip_thinking

MAX_LITERAL_CHARS = 262_144
"""A longer literal is not read."""
MAX_DEPTH = 8
"""A list of boxes nests three deep; deeper nesting is an attack on the parser."""
MAX_REMARKS = 64
"""So many brackets after the answer are passed over; behind more, no answer is found."""

_FENCE = re.compile(r"```(?:json|python)?[ \t]*\n?", re.IGNORECASE)
_BRACKET = re.compile(r"""[\[\]{}"'\n]|\\.""")
_PAIRS = {"]": "[", "}": "{"}


def answer_items(text: str, key: str, size: int, *, max_chars: int = MAX_LITERAL_CHARS) -> list[Any] | None:
    """`items_in` the last `<answer>`, or where there is none, in what follows the thoughts.

    A thought that was not closed leaves nothing to read.
    """
    spoken = strip_thinking(text)
    if spoken is None:
        return None
    tagged = last_tagged(spoken)
    if tagged is not None and len({box.strip() for box in all_boxed(tagged)}) > 1:
        return None  # two answers are not one
    return items_in(spoken if tagged is None else tagged, key, size, max_chars=max_chars)


def items_in(text: str, key: str, size: int, *, max_chars: int = MAX_LITERAL_CHARS) -> list[Any] | None:
    r"""The items of the text's last literal that holds such, `[]` where it is empty, None without one.

    An item is a mapping with `key` (`bbox_2d`, `point_2d`) or a list of `size` numbers; a literal is one item or a list
    of them, and its items may still be malformed. It is looked for in the last `\boxed{...}`, then in the last code
    fence, or where there is none, in the text. Other brackets after it (`[1]`, `[x1, y1]`) are passed over. Pairs of
    numbers give way to mappings before them: `[0, 1000]` in a remark is a range, and no point.
    """
    boxed = all_boxed(text)
    places = [boxed[-1].replace("\\{", "{").replace("\\}", "}")] if boxed else []
    for place in (*places, _last_fence(text)):
        pairs: list[Any] | None = None
        for literal in reversed(_brackets(place)[-MAX_REMARKS:]):
            if len(literal) > max_chars:
                return pairs
            items = _items(literal, key, size)
            if items is None:
                continue
            if size > 2 or any(isinstance(item, dict) for item in items):
                return items
            pairs = items if pairs is None else pairs
        if pairs is not None:
            return pairs
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


def _items(literal: str, key: str, size: int) -> list[Any] | None:
    """The items that a literal holds; None where it holds none, being a remark."""
    value = _value(literal)
    if isinstance(value, str):
        return [None] if key in value else None  # an item that was begun and cannot be read
    if isinstance(value, dict):
        return [value] if key in value else None
    if not isinstance(value, list):
        return None
    if _is_numbers(value, size):
        return [value]
    is_meant = not value or any(_is_numbers(item, size) or (isinstance(item, dict) and key in item) for item in value)
    return value if is_meant else None


def _is_numbers(value: Any, size: int) -> bool:
    """Whether it is a list of as many things, one of them a number; one that is malformed spoils the answer."""
    return (
        isinstance(value, list | tuple) and len(value) == size and any(isinstance(item, int | float) for item in value)
    )


def _value(literal: str) -> Any:
    """What a literal writes; the literal itself where it cannot be read."""
    try:
        return json.loads(literal)
    except ValueError:  # not JSON, or a whole number too long to read
        pass
    try:
        return ast.literal_eval(literal)
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):  # all that its documentation names
        return literal


def _last_fence(text: str) -> str:
    """What stands in the last code fence, whether or not it was closed; the text itself without one."""
    marks = list(_FENCE.finditer(text))
    if not marks:
        return text
    opening = marks[-2] if len(marks) % 2 == 0 else marks[-1]
    closing = text.find("```", opening.end())
    return text[opening.end() : closing if closing >= 0 else len(text)]


def _brackets(text: str) -> list[str]:
    """Every outermost balanced [...] and {...}, up to `MAX_DEPTH` deep; brackets in quoted text do not count."""
    found: list[str] = []
    start, quote = 0, ""
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
                found.append(text[start : match.end()])
        if len(stack) > MAX_DEPTH:
            return []
    return found
