"""Regions that a point can hit: boxes, polygons, run-length masks, discs around a reference point. All in 0-1000."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any, Protocol

from .boxes import Box
from .grounding import reference_boxes
from .literals import finite_numbers
from .points import Point
from .references import reference_field
from .score import BadReferenceError

if TYPE_CHECKING:  # numpy loads for a tenth of a second; most runs have no regions
    import numpy as np

MAX_REGIONS = 512
"""A reference holds at most this many regions: matching is bounded in time."""
MAX_VERTICES = 4096
"""Of one polygon, over all its rings."""
MAX_MASK_PIXELS = 2**28
"""Of one mask; a run-length mask is never unfolded, but its runs are counted."""


class Region(Protocol):
    """Something with an inside."""

    @property
    def label(self) -> str: ...

    def holds(self, xs: "np.ndarray", ys: "np.ndarray") -> "np.ndarray":
        """For each point, float64 in thousandths, whether it lies inside."""
        ...

    def inner_point(self) -> Point:
        """A point that lies inside."""
        ...


@dataclass(frozen=True, slots=True)
class BoxRegion:
    """The inside of a box, with its edge."""

    box: Box

    @property
    def label(self) -> str:
        return self.box.label

    def holds(self, xs: "np.ndarray", ys: "np.ndarray") -> "np.ndarray":
        return (self.box.x1 <= xs) & (xs <= self.box.x2) & (self.box.y1 <= ys) & (ys <= self.box.y2)

    def inner_point(self) -> Point:
        return Point((self.box.x1 + self.box.x2) / 2, (self.box.y1 + self.box.y2) / 2, self.label)


@dataclass(frozen=True, slots=True)
class Disc:
    """All that lies within `radius` thousandths of a point."""

    centre: Point
    radius: float

    @property
    def label(self) -> str:
        return self.centre.label

    def holds(self, xs: "np.ndarray", ys: "np.ndarray") -> "np.ndarray":
        return (xs - self.centre.x) ** 2 + (ys - self.centre.y) ** 2 <= self.radius**2

    def inner_point(self) -> Point:
        return self.centre


@dataclass(frozen=True, slots=True)
class Polygon:
    """What the rings enclose by the even-odd rule, so that a ring within a ring is a hole."""

    rings: tuple[tuple[tuple[float, float], ...], ...]
    label: str = ""

    def holds(self, xs: "np.ndarray", ys: "np.ndarray") -> "np.ndarray":
        import numpy as np

        inside = np.zeros(len(xs), dtype=bool)
        for ring in self.rings:
            for (x1, y1), (x2, y2) in zip(ring, ring[1:] + ring[:1], strict=True):
                if y1 != y2:  # a ray to the right of the point crosses this edge
                    inside ^= ((y1 > ys) != (y2 > ys)) & (xs < x1 + (ys - y1) * ((x2 - x1) / (y2 - y1)))
        return inside

    def inner_point(self) -> Point:
        """The middle of the widest stretch inside, over lines half-way between neighbouring vertices (up to 64)."""
        levels = sorted({y for ring in self.rings for _, y in ring})
        between = [(low + high) / 2 for low, high in pairwise(levels)]
        best = (0.0, 0.0, 0.0)
        for level in between[:: len(between) // 64 + 1]:
            crossings = sorted(
                x1 + (level - y1) * ((x2 - x1) / (y2 - y1))
                for ring in self.rings
                for (x1, y1), (x2, y2) in zip(ring, ring[1:] + ring[:1], strict=True)
                if (y1 > level) != (y2 > level)
            )
            for left, right in zip(crossings[::2], crossings[1::2], strict=True):
                best = max(best, (right - left, (left + right) / 2, level))
        if best[0] <= 0:
            raise BadReferenceError("a 'polygon' has no inside")
        return Point(best[1], best[2], self.label)


@dataclass(frozen=True, slots=True)
class RunLengthMask:
    """A mask in COCO's run-length code: lengths of alternating runs of 0 and 1, down one column after the other."""

    height: int
    width: int
    counts: tuple[int, ...]
    label: str = ""

    def holds(self, xs: "np.ndarray", ys: "np.ndarray") -> "np.ndarray":
        import numpy as np

        in_image = (xs >= 0) & (xs <= 1000) & (ys >= 0) & (ys <= 1000)
        columns = np.clip(np.floor(xs * (self.width / 1000)), 0, self.width - 1)
        rows = np.clip(np.floor(ys * (self.height / 1000)), 0, self.height - 1)
        runs = np.searchsorted(np.cumsum(self.counts), columns * self.height + rows, side="right")
        return in_image & (runs % 2 == 1)

    def inner_point(self) -> Point:
        """The middle of the longest vertical run."""
        start, best = 0, (0, 0)
        for number, count in enumerate(self.counts):
            if number % 2 == 1:
                first_rest = min(count, self.height - start % self.height)  # a run may go on in the next column
                best = max(best, (first_rest, start), (min(count - first_rest, self.height), start + first_rest))
            start += count
        length, start = best
        column, row = divmod(start, self.height)
        x, y = (column + 0.5) / self.width * 1000, (row + (length - 1) // 2 + 0.5) / self.height * 1000
        return Point(x, y, self.label)


def reference_regions(reference: Mapping[str, Any], *, radius: float) -> list[Region]:
    """The regions of a reference: from `masks`, from `points` (discs of `radius`), or from `boxes` or `bbox_2d`.

    A mask is `{"size": [height, width], "counts": ...}` in COCO's run-length code, as a list or compressed as text, or
    `{"polygon": ...}`, one ring of `[x, y]` or several; each with a `label` where it has one. Raises
    `BadReferenceError` for anything else.
    """
    if reference.get("masks") is not None:
        items = _listed(reference["masks"], "masks")
        return [_mask(item) for item in items]
    if reference.get("points") is not None:
        return [Disc(_reference_point(item), radius) for item in _listed(reference["points"], "points")]
    return [BoxRegion(box) for box in reference_boxes(reference)]


def _listed(items: Any, key: str) -> list[Any] | tuple[Any, ...]:
    if not isinstance(items, list | tuple):
        raise BadReferenceError(f"{key!r} must be a list, got {items!r:.80}")
    if len(items) > MAX_REGIONS:
        raise BadReferenceError(f"{key!r} holds {len(items)} items, more than the {MAX_REGIONS} allowed")
    return items


def _reference_point(item: Any) -> Point:
    place, label = (item.get("point_2d"), item.get("label") or "") if isinstance(item, Mapping) else (item, "")
    numbers = finite_numbers(place, 2)
    if numbers is None or not all(0 <= number <= 1000 for number in numbers):
        raise BadReferenceError(f"each of 'points' must be {{'point_2d': [x, y]}} in 0-1000, got {item!r:.80}")
    return Point(numbers[0], numbers[1], str(label))


def _mask(item: Any) -> Region:
    if not isinstance(item, Mapping):
        raise BadReferenceError(f"each of 'masks' must hold 'polygon', or 'size' and 'counts', got {item!r:.80}")
    label = str(item.get("label") or "")
    return _polygon(item["polygon"], label) if item.get("polygon") is not None else _run_length_mask(item, label)


def _polygon(rings: Any, label: str) -> Polygon:
    ring_list = [rings] if _is_ring(rings) else rings
    if not isinstance(ring_list, list | tuple) or not ring_list or not all(_is_ring(ring) for ring in ring_list):
        raise BadReferenceError(f"'polygon' must be [[x, y], ...] with three points or more, got {rings!r:.80}")
    if sum(len(ring) for ring in ring_list) > MAX_VERTICES:
        raise BadReferenceError(f"a 'polygon' has more than {MAX_VERTICES} vertices: simplify it")
    made = tuple(tuple((float(x), float(y)) for x, y in ring) for ring in ring_list)
    if not all(0 <= value <= 1000 for ring in made for vertex in ring for value in vertex):
        raise BadReferenceError("a 'polygon' is not in 0-1000: divide pixels by the image's size")
    if not any(_twice_area(ring) for ring in made):
        raise BadReferenceError(f"a 'polygon' has no area: {rings!r:.80}")
    return Polygon(made, label)


def _is_ring(value: Any) -> bool:
    return isinstance(value, list | tuple) and len(value) >= 3 and all(finite_numbers(vertex, 2) for vertex in value)


def _twice_area(ring: Sequence[tuple[float, float]]) -> float:
    return sum(x1 * y2 - x2 * y1 for (x1, y1), (x2, y2) in zip(ring, [*ring[1:], ring[0]], strict=True))


def _run_length_mask(item: Mapping[str, Any], label: str) -> RunLengthMask:
    size, counts = reference_field(item, "size"), reference_field(item, "counts")
    numbers = finite_numbers(size, 2)
    if numbers is None or not all(number >= 1 and number.is_integer() for number in numbers):
        raise BadReferenceError(f"a mask's 'size' must be [height, width] in pixels, got {size!r:.80}")
    height, width = int(numbers[0]), int(numbers[1])
    if height * width > MAX_MASK_PIXELS:
        raise BadReferenceError(f"a mask of {height} x {width} is larger than {MAX_MASK_PIXELS} pixels")
    try:
        runs = tuple(_uncompressed(counts) if isinstance(counts, str | bytes) else [_run(count) for count in counts])
    except (TypeError, ValueError) as error:
        raise BadReferenceError(f"a mask's 'counts' cannot be read: {error}") from None
    if sum(runs) != height * width or min(runs) < 0:
        raise BadReferenceError(f"a mask's 'counts' make {sum(runs)} pixels, but its size is {height} x {width}")
    if not any(runs[1::2]):
        raise BadReferenceError("a mask holds no pixel")
    return RunLengthMask(height, width, runs, label)


def _run(count: Any) -> int:
    if isinstance(count, bool) or not math.isfinite(count) or int(count) != count:
        raise ValueError(f"{count!r} is no length of a run")
    return int(count)


def _uncompressed(text: str | bytes) -> Sequence[int]:
    """COCO's compressed runs: six-bit characters from 48, five bits of a number each, least significant first.

    Bit 6 says that the number goes on, bit 5 of its last character is the sign; from the fourth number on, each is the
    difference from the last but one (`rleFrString` in cocoapi's maskApi.c).
    """
    codes = text if isinstance(text, bytes) else text.encode("ascii")
    runs: list[int] = []
    value = shift = 0
    for code in codes:
        bits = code - 48
        if not 0 <= bits < 64:
            raise ValueError(f"{chr(code)!r} does not occur in compressed runs")
        value |= (bits & 0x1F) << shift
        shift += 5
        if not bits & 0x20:
            if bits & 0x10:
                value -= 1 << shift
            runs.append(value + runs[-2] if len(runs) > 2 else value)
            value = shift = 0
    if shift:
        raise ValueError("the last number is cut off")
    return runs
