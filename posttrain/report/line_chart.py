"""Lays out a line chart as numbers and SVG path data; the template draws it, the style sheet colours it."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.report.numerals import number

WIDTH, HEIGHT = 400, 190
LEFT, RIGHT, TOP, BOTTOM = 46, 10, 10, 24
"""The plot's margins inside the picture, in SVG units."""
_MAX_POINTS = 240
"""Points of one drawn line: more than a small chart can show, few enough for a page of many charts."""
_NUM_COLOURS = 8


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


def line_chart(title: str, steps: Sequence[int], series: dict[str, Sequence[float | None]]) -> LineChart | None:
    """None where no series holds a number. `steps` ascend; each series has a number or None for each step."""
    series = {label: values for label, values in series.items() if any(v is not None for v in values)}
    if not series:
        return None
    present = [v for values in series.values() for v in values if v is not None]
    smoothed = {label: _moving_average(values) for label, values in series.items()}
    low, high, y_ticks = _y_axis(present)
    x_low, x_high = steps[0], max(steps[-1], steps[0] + 1)
    xs = [LEFT + (step - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT) for step in steps]

    def y(value: float) -> float:
        clipped = min(max(value, low), high)
        return TOP + (high - clipped) / (high - low) * (HEIGHT - TOP - BOTTOM)

    every = _stride(len(steps))
    lines = []
    for index, (label, values) in enumerate(series.items()):
        smooth = smoothed[label]
        ends = [v for v in smooth if v is not None]
        is_short = len(ends) < 8
        lines.append(
            Line(
                label=label,
                colour=index % _NUM_COLOURS,
                dashed=index >= _NUM_COLOURS,
                raw=_path([(xs[i], None if v is None else y(v)) for i, v in _envelope(values)]),
                smooth="" if is_short else _path([(xs[i], None if (v := smooth[i]) is None else y(v)) for i in every]),
                first=number(ends[0]),
                last=number(ends[-1]),
            )
        )
    outside = [v for v in present if not low <= v <= high]
    rows = [[k, [_brief(v[i]) for i in every], [_brief(smoothed[k][i]) for i in every]] for k, v in series.items()]
    hover = {"x": [steps[i] for i in every], "px": [round(xs[i], 1) for i in every], "rows": rows}
    return LineChart(
        title=title,
        x_ticks=[
            (LEFT + (t - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), number(t) if t >= 10_000 else f"{t:,.0f}")
            for t in ticks(x_low, x_high, count=5, whole=True)
            if x_low <= t <= x_high
        ],
        y_ticks=[(y(t), number(t)) for t in y_ticks],
        lines=lines,
        beyond=len(outside),
        extreme=number(max(outside, key=abs)) if outside else "",
        hover=json.dumps(hover, separators=(",", ":")),
    )


def ticks(low: float, high: float, *, count: int, whole: bool = False) -> list[float]:
    """About `count` round numbers (1, 2 or 5 times a power of ten apart) that reach from below `low` to above `high`."""
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
    if high - low <= 1e-9 * max(abs(high), abs(low)):
        margin = abs(high) * 0.5 or 1.0
        low, high = low - margin, high + margin
    marks = ticks(low, high, count=4)
    return marks[0], marks[-1], marks


def _moving_average(values: Sequence[float | None]) -> list[float | None]:
    """Exponential, bias-corrected, over about a fifteenth of the series; None stays None."""
    keep = 1 - 2 / (max(1.0, len(values) / 15) + 1)
    total = weight = 0.0
    averaged: list[float | None] = []
    for value in values:
        if value is None:
            averaged.append(None)
            continue
        total, weight = keep * total + (1 - keep) * value, keep * weight + (1 - keep)
        averaged.append(total / weight)
    return averaged


def _stride(count: int) -> list[int]:
    """At most `_MAX_POINTS` indices, evenly spread, the last one among them."""
    if count <= _MAX_POINTS:
        return list(range(count))
    return [round(k * (count - 1) / (_MAX_POINTS - 1)) for k in range(_MAX_POINTS)]


def _envelope(values: Sequence[float | None]) -> list[tuple[int, float | None]]:
    """(index, value) of all, or of the minimum and maximum of each bucket, so that no spike is lost."""
    if len(values) <= _MAX_POINTS:
        return list(enumerate(values))
    width = math.ceil(2 * len(values) / _MAX_POINTS)
    chosen: list[tuple[int, float | None]] = []
    for start in range(0, len(values), width):
        bucket = [(i, v) for i, v in enumerate(values[start : start + width], start) if v is not None]
        if not bucket:
            chosen.append((start, None))
            continue
        ends = {min(bucket, key=lambda p: p[1]), max(bucket, key=lambda p: p[1])}
        chosen.extend(sorted(ends))
    return chosen


def _path(points: Sequence[tuple[float, float | None]]) -> str:
    """SVG path data; None breaks the line, and a point that stands alone becomes a dot (round line ends draw it)."""
    parts: list[str] = []
    pen_down = False
    for index, (x, y) in enumerate(points):
        if y is None:
            pen_down = False
            continue
        parts.append(f"{'L' if pen_down else 'M'}{x:.1f} {y:.1f}")
        followed = index + 1 < len(points) and points[index + 1][1] is not None
        if not pen_down and not followed:
            parts.append("h0")
        pen_down = True
    return "".join(parts)


def _brief(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.4g}")
