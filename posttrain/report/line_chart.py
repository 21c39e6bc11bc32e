"""Lays out a line chart as numbers and SVG path data; the template draws it, the style sheet colours it."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from posttrain.report.numerals import number, tick_labels

WIDTH, HEIGHT = 320, 164
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 8, 22
"""The plot's margins inside the picture, in SVG units."""
_MAX_POINTS = 240
"""Points of one drawn line: more than a small chart can show, few enough for a page of many charts."""
_NUM_COLOURS = 8
_NOUGHT = 1e-300
"""Floats below it lose digits, down to where half of one is nought: no axis can be divided there."""

Point = tuple[int, float]
"""(step, finite value)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One drawn series."""

    label: str
    colour: int
    """0-7; the style sheet says which."""
    dashed: bool
    """True from the ninth series on, where colours repeat."""
    raw: str
    """SVG path of the numbers as they were logged: each bucket's minimum and maximum where there are too many."""
    smooth: str
    """SVG path of their moving average; empty for short series."""
    first: str
    last: str
    """The first and the last value of the smoothed line, written for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LineChart:
    """One chart: lines over steps, with ticks as (position, text)."""

    title: str
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    lines: Sequence[Line]
    beyond: int
    """Logged numbers that lie outside the axis: a few outliers must not flatten the rest."""
    extreme: str
    """The largest of those, written for people."""
    hover: str
    """JSON for the pointer's read-out: {"x": steps, "px": positions, "rows": [[label, values, smoothed], ...]}."""


def line_chart(title: str, series: Mapping[str, Sequence[Point]]) -> LineChart | None:
    """None where no series holds a number. A series skips the steps at which it was not logged or not finite."""
    series = {label: points for label, points in series.items() if points}
    if not series:
        return None
    steps = sorted({step for points in series.values() for step, _ in points})
    present = [value for points in series.values() for _, value in points]
    low, high, y_marks = _y_axis(present)
    x_low, x_high = steps[0], max(steps[-1], steps[0] + 1)
    if 0 < x_low < 0.05 * x_high:
        x_low = 0

    def x(step: float) -> float:
        return LEFT + (step - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - min(max(value, low), high)) / (high - low) * (HEIGHT - TOP - BOTTOM)

    def path(points: Sequence[Point]) -> str:
        """A single point becomes a dot: round line ends draw a line of no length."""
        corners = "L".join(f"{x(step):.1f} {y(value):.1f}" for step, value in points)
        return f"M{corners}h0" if len(points) == 1 else f"M{corners}"

    lines, rows = [], []
    shown = [steps[i] for i in _stride(len(steps))]
    for index, (label, points) in enumerate(series.items()):
        smoothed = _smoothed(points, low, high) if _is_noisy(points) else []
        lines.append(
            Line(
                label=label,
                colour=index % _NUM_COLOURS,
                dashed=index >= _NUM_COLOURS,
                raw=path(_envelope(points)),
                smooth=path(smoothed) if smoothed else "",
                first=number((smoothed or points)[0][1]),
                last=number((smoothed or points)[-1][1]),
            )
        )
        logged, averaged = dict(points), dict(smoothed)
        rows.append([label, [_brief(logged.get(s)) for s in shown], [_brief(averaged.get(s)) for s in shown]])
    outside = [v for v in present if not low <= v <= high]
    x_marks = [t for t in ticks(x_low, x_high, count=5, whole=True) if x_low <= t <= x_high]
    hover = {"x": shown, "px": [round(x(s), 1) for s in shown], "rows": rows}
    return LineChart(
        title=title,
        x_ticks=list(zip(map(x, x_marks), tick_labels(x_marks), strict=True)),
        y_ticks=list(zip(map(y, y_marks), tick_labels(y_marks), strict=True)),
        lines=lines,
        beyond=len(outside),
        extreme=number(max(outside, key=abs)) if outside else "",
        hover=json.dumps(hover, separators=(",", ":")),
    )


def ticks(low: float, high: float, *, count: int, whole: bool = False) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) from below `low` to above `high`."""
    rough = (high - low) / count
    power = 10.0 ** math.floor(math.log10(rough))
    gap = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * 0.999)
    gap = max(gap, 1.0) if whole else gap
    first, last = math.floor(low / gap + 1e-6), math.ceil(high / gap - 1e-6)
    return [k * gap for k in range(first, last + 1)]


def _y_axis(present: Sequence[float]) -> tuple[float, float, list[float]]:
    """Low end, high end and ticks. Outliers beyond three times the range of the middle 98 % are left outside."""
    ordered = sorted(present)
    low, high = ordered[0], ordered[-1]
    if len(ordered) >= 30:
        inner_low, inner_high = ordered[len(ordered) // 100], ordered[-1 - len(ordered) // 100]
        inner = inner_high - inner_low
        if inner > 0 and high - low > 3 * inner:
            low, high = max(low, inner_low - 0.3 * inner), min(high, inner_high + 0.3 * inner)
    if low >= 0 and low < 0.4 * high:
        low = 0.0  # a quantity that comes near nought is read best from nought
    if max(abs(high), abs(low)) < _NOUGHT:
        low, high = 0.0, 1.0
    elif high - low <= 1e-9 * max(abs(high), abs(low)):
        low, high = low - abs(low) / 2, high + abs(high) / 2
    marks = ticks(low, high, count=4)
    return marks[0], marks[-1], marks


def _is_noisy(points: Sequence[Point]) -> bool:
    """False for few numbers and for curves that wander little, as a schedule does: smoothing would only blunt them."""
    values = np.array([value for _, value in points])
    return len(values) >= 12 and float(np.abs(np.diff(values)).sum()) > 2.5 * float(np.ptp(values))


def _smoothed(points: Sequence[Point], low: float, high: float) -> list[Point]:
    """A straight line fitted over a window of an eighth of the series around each point: no lag, ends included.

    Values are clipped to the axis first, so that one spike does not bend the curve.
    """
    xs = np.array([step for step, _ in points], dtype=np.float64)
    ys = np.clip([value for _, value in points], low, high)
    width = max(7, len(points) // 8)
    curve: list[Point] = []
    for index in _stride(len(points)):
        start = min(max(0, index - width // 2), len(points) - width)
        near = slice(start, start + width)
        x, y = xs[near] - xs[near].mean(), ys[near]
        slope = float(x @ y) / float(x @ x)
        fitted = float(y.mean()) + slope * float(xs[index] - xs[near].mean())
        curve.append(
            (points[index][0], min(max(fitted, float(y.min())), float(y.max())))
        )  # seconds never turn negative
    return curve


def _stride(count: int) -> list[int]:
    """At most `_MAX_POINTS` indices, evenly spread, the first and the last among them."""
    if count <= _MAX_POINTS:
        return list(range(count))
    return [round(k * (count - 1) / (_MAX_POINTS - 1)) for k in range(_MAX_POINTS)]


def _envelope(points: Sequence[Point]) -> list[Point]:
    """All points, or the lowest and the highest of each bucket, so that no spike is lost."""
    if len(points) <= _MAX_POINTS:
        return list(points)
    width = math.ceil(2 * len(points) / _MAX_POINTS)
    chosen: list[Point] = []
    for start in range(0, len(points), width):
        bucket = points[start : start + width]
        chosen.extend(sorted({min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])}))
    return chosen


def _brief(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
