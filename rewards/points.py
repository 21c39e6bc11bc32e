"""Points as Qwen3-VL writes them: `{"point_2d": [x, y], "label": "..."}` in thousandths of the image's sides."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .literals import MAX_LITERAL_CHARS, answer_items, finite_numbers, items_in

MAX_POINTS = 2048
"""An answer with more points than this is spam, and is not read."""


@dataclass(frozen=True, slots=True)
class Point:
    """One point; nothing is promised about whether it lies in the image."""

    x: float
    y: float
    label: str = ""


def parse_points(text: str, *, max_points: int = MAX_POINTS, max_chars: int = MAX_LITERAL_CHARS) -> list[Point] | None:
    """The points of an answer: `[]` where it says that there are none, None where it cannot be read.

    They are looked for as `parse_boxes` looks for boxes. It is a list of `{"point_2d": [x, y], "label": "..."}` or of
    bare pairs, or one of either. One malformed, infinite or NaN point spoils the answer.
    """
    return _points(answer_items(text, "point_2d", 2, max_chars=max_chars), max_points)


def points_in(text: str) -> list[Point] | None:
    """`parse_points` of a piece of an answer, read as it stands."""
    return _points(items_in(text, "point_2d", 2), MAX_POINTS)


def write_points(points: Sequence[Point]) -> str:
    """Points as Qwen3-VL writes them: a list in a ```json fence, whole numbers without a decimal point."""
    items = []
    for point in points:
        place = [int(v) if float(v).is_integer() else v for v in (point.x, point.y)]
        items.append({"point_2d": place, "label": point.label} if point.label else {"point_2d": place})
    return f"```json\n{json.dumps(items, ensure_ascii=False)}\n```"


def _points(items: Sequence[Any] | None, max_points: int) -> list[Point] | None:
    if items is None or len(items) > max_points:
        return None
    points = [_to_point(item) for item in items]
    found = [point for point in points if point is not None]
    return found if len(found) == len(points) else None


def _to_point(item: Any) -> Point | None:
    label = ""
    if isinstance(item, dict):
        label, item = item.get("label", ""), item.get("point_2d")
    place = finite_numbers(item, 2)
    return Point(place[0], place[1], label) if place is not None and isinstance(label, str) else None
