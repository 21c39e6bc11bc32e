"""Boxes as Qwen3-VL writes them: parsing its JSON, and how far two boxes overlap.

Coordinates are `x1, y1, x2, y2` in thousandths of the image's width and height, 0 at the top left.
"""

import json
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .literals import MAX_LITERAL_CHARS, answer_items, finite_numbers

if TYPE_CHECKING:  # numpy loads for a tenth of a second; most runs have no boxes
    import numpy as np

MAX_BOXES = 2048
"""An answer with more boxes than this is spam, and is not read."""
MAX_REFERENCE_BOXES = 512
"""The matching is cubic in the shorter list: with these limits the worst answer takes about a second."""


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


def iou_matrix(first: Sequence[Box], second: Sequence[Box]) -> "np.ndarray":
    """`iou` of every box of `first` (rows) with every one of `second` (columns), float64."""
    import numpy as np

    corners = [np.array([(b.x1, b.y1, b.x2, b.y2) for b in boxes]).reshape(-1, 4) for boxes in (first, second)]
    rows, columns = (np.clip(values, 0.0, 1000.0).T for values in corners)
    row_areas, column_areas = (_areas(values) for values in (rows, columns))
    (ax1, ay1, ax2, ay2), (bx1, by1, bx2, by2) = rows[:, :, None], columns[:, None, :]
    widths = np.maximum(np.minimum(ax2, bx2) - np.maximum(ax1, bx1), 0.0)
    heights = np.maximum(np.minimum(ay2, by2) - np.maximum(ay1, by1), 0.0)
    shared = widths * heights
    unions = row_areas[:, None] + column_areas - shared
    both = (row_areas[:, None] > 0) & (column_areas > 0)
    return np.divide(shared, unions, out=np.zeros_like(shared), where=both & (shared > 0))


def label_matrix(first: Sequence[str], second: Sequence[str], *, wild: bool) -> "np.ndarray":
    """Whether each label of `first` (rows) is the `same_label` as each of `second`; `wild`: "" in `second` fits all."""
    import numpy as np

    plain = {label: _plain(label) for label in {*first, *second}}
    numbers = {text: number for number, text in enumerate(set(plain.values()))}
    codes = [np.array([numbers[plain[label]] for label in labels], dtype=np.int64) for labels in (first, second)]
    same = codes[0][:, None] == codes[1]
    return same | np.array([not label for label in second], dtype=bool) if wild else same


def parse_boxes(text: str, *, max_boxes: int = MAX_BOXES, max_chars: int = MAX_LITERAL_CHARS) -> list[Box] | None:
    r"""The boxes of an answer: `[]` where it says that there are none, None where it cannot be read.

    Read is the last `[...]` or `{...}` with boxes in the last `<answer>`, else in what follows the thoughts; there in
    the last `\boxed{...}`, else in the last code fence, else anywhere (`items_in`). It is a list of
    `{"bbox_2d": [x1, y1, x2, y2], "label": "..."}` or of bare coordinates, or one of either, in JSON or as a Python
    literal. One malformed, infinite or NaN box spoils the answer.
    """
    items = answer_items(text, "bbox_2d", 4, max_chars=max_chars)
    if items is None or len(items) > max_boxes:
        return None
    boxes = [_to_box(item) for item in items]
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
    corners = finite_numbers(item, 4)
    if corners is None or not isinstance(label, str):
        return None
    x1, y1, x2, y2 = corners
    return Box(x1, y1, x2, y2, label)


def _areas(corners: "np.ndarray") -> "np.ndarray":
    """`area` of clamped boxes, given as rows x1, y1, x2, y2."""
    import numpy as np

    x1, y1, x2, y2 = corners
    return np.where((x2 > x1) & (y2 > y1), (x2 - x1) * (y2 - y1), 0.0)


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
