"""The pointing rewards: points on the right things, and counting by pointing. 0-1000 coordinates."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .boxes import label_matrix
from .exact_numbers import exact_number
from .extraction import last_boxed, last_tagged, strip_thinking
from .math_answers import canonical
from .points import MAX_POINTS, Point, parse_points, points_in, write_points
from .references import reference_field
from .regions import Region, reference_regions
from .registry import register
from .score import BadReferenceError, Completion, Score


@register("points")
@dataclass(frozen=True, slots=True, kw_only=True)
class PointHits:
    """F1 of the points against the things to point at, each point matched with one thing and each thing with one point.

    A point that hits nothing and a second one on the same thing are false positives, so spam does not pay. Nothing
    there and nothing said is 1. The reference holds `boxes` (or `bbox_2d`), `masks` (COCO run lengths with their
    `size`, or a `polygon` in 0-1000), or `points`; each with a `label` where it has one.
    """

    match_label: bool = True
    """A point hits only what has its label; a reference without a label takes any."""
    radius: float = 25.0
    """How far off a reference point a point may lie, in thousandths; boxes and masks need no such thing."""

    def __post_init__(self) -> None:
        if not 0 <= self.radius <= 1500:
            raise ValueError(f"radius must be 0 to 1500 thousandths, got {self.radius}")

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        regions = reference_regions(reference, radius=self.radius)
        points = parse_points(completion.text)
        if points is None:
            return Score(value=0.0, reason="no readable list of points")
        if not regions and not points:
            return Score(value=1.0, parts={"num_points": 0.0})
        hits = num_hits(points, regions, match_label=self.match_label)
        parts = {
            "num_points": float(len(points)),
            "precision": hits / max(len(points), 1),
            "recall": hits / max(len(regions), 1),
        }
        return Score(value=2 * hits / (len(points) + len(regions)), parts=parts)

    def perfect_answer(self, reference: Mapping[str, Any]) -> str:
        """A point inside each thing, in Qwen3-VL's JSON. Raises `BadReferenceError` where the things are unreadable."""
        return write_points([region.inner_point() for region in reference_regions(reference, radius=self.radius)])

    def wrong_answers(self, reference: Mapping[str, Any]) -> list[str]:
        """Nothing, all but one thing, every thing twice; a point where there is nothing."""
        points = [region.inner_point() for region in reference_regions(reference, radius=self.radius)]
        wrong = [[], points[:-1], points * 2] if points else [[Point(500, 500)]]
        return [write_points(said) for said in wrong]


@register("count_points")
@dataclass(frozen=True, slots=True, kw_only=True)
class CountPoints:
    r"""Counting by pointing: 1 where the answer marks as many different places as there are things.

    An `<answer>` or `\boxed{...}` that states a number beside the points must state theirs. Where the reference
    also says where the things are (`boxes`, `masks` or `points`, as for the reward `points`), the points must hit them.
    """

    answer_key: str = "answer"
    """The reference field with the count; need not be there where the things themselves are."""
    partial: bool = False
    """Gives 1 - |said - right| / right, and not less than 0, for a wrong count."""
    located: Literal["f1", "ignore"] = "f1"
    """f1 multiplies by the F1 of the points, where the reference says where things are; ignore only counts."""
    min_distance: float = 5.0
    """Points nearer to each other than this, in thousandths, mark one place."""
    radius: float = 25.0
    """How far off a reference point a point may lie, in thousandths."""

    def __post_init__(self) -> None:
        for name, value in (("min_distance", self.min_distance), ("radius", self.radius)):
            if not 0 <= value <= 1500:
                raise ValueError(f"{name} must be 0 to 1500 thousandths, got {value}")

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        regions = self._regions(reference)
        right = self._count(reference, regions)
        spoken = strip_thinking(completion.text)
        points = None if spoken is None else _points_anywhere(spoken)
        if spoken is None or points is None:
            return Score(value=0.0, reason="no readable list of points")
        places = num_places(points, self.min_distance)
        parts = {"num_points": float(len(points)), "num_places": float(places)}
        stated = _stated_number(spoken)
        if stated is not None and stated != len(points):
            return Score(value=0.0, parts=parts, reason=f"states {stated:g}, marks {len(points)} points")
        if places != len(points):
            return Score(value=0.0, parts=parts, reason=f"{len(points)} points mark {places} places")
        exact = float(places == right)
        value = max(1 - abs(places - right) / max(right, 1), 0.0) if self.partial else exact
        if regions is not None and self.located == "f1" and points:
            f1 = 2 * num_hits(points, regions, match_label=False) / (len(points) + len(regions))
            return Score(value=value * f1, parts={**parts, "right_count": exact, "f1": f1})
        return Score(value=value, parts={**parts, "right_count": exact})

    def perfect_answer(self, reference: Mapping[str, Any]) -> str:
        """As many points as there are things, on them where it is known where they are."""
        regions = self._regions(reference)
        count = self._count(reference, regions)
        if regions is not None:
            return write_points([region.inner_point() for region in regions])
        side = max(int(self.min_distance) + 1, 20)
        columns = 1000 // side + 1
        places = [((index % columns) * side, (index // columns) * side) for index in range(count)]
        if places and places[-1][1] > 1000:
            raise BadReferenceError(f"{count} points cannot lie {self.min_distance:g} thousandths apart")
        return write_points([Point(x, y) for x, y in places])

    def wrong_answers(self, reference: Mapping[str, Any]) -> list[str]:
        """One place fewer; one place as often as there are things."""
        points = parse_points(self.perfect_answer(reference)) or []
        wrong = [points[:-1], points[:1] * max(len(points), 2)] if points else [[Point(500, 500)]]
        return [write_points(said) for said in wrong]

    def _regions(self, reference: Mapping[str, Any]) -> list[Region] | None:
        if all(reference.get(key) is None for key in ("boxes", "bbox_2d", "masks", "points")):
            return None
        return reference_regions(reference, radius=self.radius)

    def _count(self, reference: Mapping[str, Any], regions: Sequence[Region] | None) -> int:
        if reference.get(self.answer_key) is None and regions is not None:
            return len(regions)
        value = reference_field(reference, self.answer_key)
        number = None if isinstance(value, bool) else exact_number(str(value).strip())
        if number is None or number.denominator != 1 or not 0 <= number <= MAX_POINTS:
            raise BadReferenceError(f"{self.answer_key!r} must be a count from 0 to {MAX_POINTS}, got {value!r:.80}")
        if regions is not None and number != len(regions):
            raise BadReferenceError(f"{self.answer_key!r} is {number}, but the reference locates {len(regions)} things")
        return int(number)


def num_hits(points: Sequence[Point], regions: Sequence[Region], *, match_label: bool) -> int:
    """The most pairs of a point and a region that holds it, no point and no region twice."""
    if not points or not regions:
        return 0
    import numpy as np
    from scipy.sparse import csr_array
    from scipy.sparse.csgraph import maximum_bipartite_matching

    xs, ys = np.array([(point.x, point.y) for point in points]).T
    in_image = (xs >= 0) & (xs <= 1000) & (ys >= 0) & (ys <= 1000)
    inside = np.stack([region.holds(xs, ys) for region in regions], axis=1) & in_image[:, None]
    if match_label:
        inside &= label_matrix([point.label for point in points], [region.label for region in regions], wild=True)
    return int((maximum_bipartite_matching(csr_array(inside), perm_type="column") >= 0).sum())


def num_places(points: Sequence[Point], min_distance: float) -> int:
    """How many of the points are at least `min_distance` away from every one before them that was counted."""
    if min_distance <= 0 or len(points) < 2:
        return len(points)
    import numpy as np

    kept = np.empty((len(points), 2))
    count = 0
    for point in points:
        place = (point.x, point.y)
        if not ((kept[:count] - place) ** 2).sum(axis=1).min(initial=np.inf) < min_distance**2:
            kept[count] = place
            count += 1
    return count


def _points_anywhere(spoken: str) -> list[Point] | None:
    r"""The points in the last `<answer>` or `\boxed{...}`, or where that only states the number, those before it."""
    tagged = last_tagged(spoken)
    marked = last_boxed(spoken) if tagged is None else tagged
    points = None if marked is None else points_in(marked)
    if points is not None:
        return points
    before, mark, _ = spoken.rpartition("<answer>" if tagged is not None else "\\boxed")
    return points_in(before if mark else spoken)


def _stated_number(spoken: str) -> float | None:
    r"""The number alone in the last `<answer>` or `\boxed{...}`; None where there is none."""
    stated = last_tagged(spoken)
    stated = last_boxed(spoken) if stated is None else stated
    number = None if stated is None else exact_number(canonical(stated))
    return None if number is None else float(number)
