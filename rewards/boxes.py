"""Boxes as Qwen3-VL writes them: parsing its JSON, and how far two boxes overlap.

Coordinates are `x1, y1, x2, y2` in thousandths of the image's width and height, 0 at the top left.
"""

import ast
import json
import math
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .extraction import last_tagged, strip_thinking

MAX_BOXES = 256
"""An answer with more boxes than this is spam, and is not read."""
MAX_CHARS = 32_768
"""A longer list is not read."""
MAX_DEPTH = 8
"""A list of boxes nests three deep; deeper nesting is an attack on the parser."""

_FENCE = re.compile(r"```(?:json|python)?[ \t]*\n?", re.IGNORECASE)
_BRACKET = re.compile(r"""[\[\]{}"'\n]|\\.""")
_PAIRS = {"]": "[", "}": "{"}


@dataclass(frozen=True, slots=True)
class Box:
    """One box; nothing is promised about the order of its corners, nor that they lie in the image."""

    x1: float
    y1: float
    x2: float
    y2: float
    label: str = ""


def area(box: Box) -> float:
    """Area of what lies in the image, in square thousandths; 0 for swapped corners, NaN or a box outside."""
    x1, y1, x2, y2 = _clamped(box)
    return (x2 - x1) * (y2 - y1) if x2 > x1 and y2 > y1 else 0.0


def iou(first: Box, second: Box) -> float:
    """Intersection over union in [0, 1], after clamping to the image; 0 where either box is empty or swapped."""
    if min(area(first), area(second)) <= 0:
        return 0.0
    shared, union = _shared_and_union(first, second)
    return shared / union


def giou(first: Box, second: Box) -> float:
    """Generalised IoU in (-1, 1], which tells near misses from far ones (Rezatofighi et al. 2019, arXiv 1902.09630).

    IoU - (|C| - |U|) / |C| with C the smallest box around both; -1 where either box is empty or swapped.
    """
    if min(area(first), area(second)) <= 0:
        return -1.0
    shared, union = _shared_and_union(first, second)
    ax1, ay1, ax2, ay2 = _clamped(first)
    bx1, by1, bx2, by2 = _clamped(second)
    hull = (max(ax2, bx2) - min(ax1, bx1)) * (max(ay2, by2) - min(ay1, by1))
    return shared / union - (hull - union) / hull


def same_label(first: str, second: str) -> bool:
    """Whether two labels say the same, whatever their case, spacing and Unicode form."""
    return _plain(first) == _plain(second)


def parse_boxes(text: str, *, max_boxes: int = MAX_BOXES, max_chars: int = MAX_CHARS) -> list[Box] | None:
    """The boxes of an answer: `[]` where it says that there are none, None where it cannot be read.

    Read is the last balanced `[...]` or `{...}` of the last ```json fence, else of the last `<answer>`, else of the
    text; never the thoughts. It is a list of `{"bbox_2d": [x1, y1, x2, y2], "label": "..."}` or of bare coordinates, or
    one of either, in JSON or as a Python literal. One malformed, infinite or NaN box spoils the answer.
    """
    value = _parsed_literal(text, max_chars)
    if isinstance(value, dict) or _is_coordinates(value):
        value = [value]
    if not isinstance(value, list) or len(value) > max_boxes:
        return None
    boxes = [_to_box(item) for item in value]
    found = [box for box in boxes if box is not None]
    return found if len(found) == len(boxes) else None


def write_boxes(boxes: Sequence[Box]) -> str:
    """Boxes as Qwen3-VL writes them: a list in a ```json fence, whole numbers without a decimal point."""
    items = []
    for box in boxes:
        corners = [int(v) if float(v).is_integer() else v for v in (box.x1, box.y1, box.x2, box.y2)]
        items.append({"bbox_2d": corners, "label": box.label} if box.label else {"bbox_2d": corners})
    return f"```json\n{json.dumps(items, ensure_ascii=False)}\n```"


def _to_box(item: Any) -> Box | None:
    label = ""
    if isinstance(item, dict):
        label, item = item.get("label", ""), item.get("bbox_2d")
    if not _is_coordinates(item) or not isinstance(label, str):
        return None
    try:
        x1, y1, x2, y2 = (float(value) for value in item)
    except OverflowError:  # an integer of hundreds of digits
        return None
    if not all(math.isfinite(value) for value in (x1, y1, x2, y2)):
        return None
    return Box(x1, y1, x2, y2, label)


def _is_coordinates(value: Any) -> bool:
    if not isinstance(value, list | tuple) or len(value) != 4:
        return False
    return all(isinstance(item, int | float) and not isinstance(item, bool) for item in value)


def _parsed_literal(text: str, max_chars: int) -> Any:
    spoken = strip_thinking(text)
    if spoken is None:
        return None
    tagged = last_tagged(spoken)
    literal = _last_literal(_last_fence(spoken if tagged is None else tagged))
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


def _last_fence(text: str) -> str:
    """What stands in the last code fence, whether or not it was closed; the text itself without one."""
    marks = list(_FENCE.finditer(text))
    if not marks:
        return text
    opening = marks[-2] if len(marks) % 2 == 0 else marks[-1]
    closing = text.find("```", opening.end())
    return text[opening.end() : closing if closing >= 0 else len(text)]


def _last_literal(text: str) -> str | None:
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


def _shared_and_union(first: Box, second: Box) -> tuple[float, float]:
    ax1, ay1, ax2, ay2 = _clamped(first)
    bx1, by1, bx2, by2 = _clamped(second)
    width, height = min(ax2, bx2) - max(ax1, bx1), min(ay2, by2) - max(ay1, by1)
    shared = max(width, 0.0) * max(height, 0.0)
    return shared, area(first) + area(second) - shared


def _clamped(box: Box) -> tuple[float, float, float, float]:
    x1, y1, x2, y2 = (min(max(value, 0.0), 1000.0) for value in (box.x1, box.y1, box.x2, box.y2))
    return x1, y1, x2, y2


def _plain(label: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", label).casefold().split())
