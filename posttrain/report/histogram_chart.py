"""Lays out a histogram of a stage, its first and its last step over each other, as SVG path data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from posttrain.report.line_chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, ticks
from posttrain.report.numerals import as_number, number, tick_labels
from posttrain.report.run_folder import Row

_LOWEST = -4.0
"""Bottom of the axis in powers of ten: bars of less than one value in 10,000 are not drawn."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Histogram:
    """One named histogram; heights are fractions of all values on a logarithmic axis, ticks are (position, text)."""

    name: str
    negative: bool
    """True for the histogram of negative advantages: the style sheet gives the two signs two colours."""
    first_step: int | None
    """None where only one step was logged."""
    last_step: int
    first: str
    last: str
    """SVG paths: an outline, and an area."""
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]
    total: str
    """How many values the last one holds."""


def histograms(rows: Sequence[Row]) -> tuple[list[Histogram], int]:
    """One chart for each name, in order of appearance, and the number of rows that are no histogram."""
    by_name: dict[str, list[tuple[int, list[float], list[float]]]] = {}
    unusable = 0
    for row in rows:
        edges, counts = _numbers(row.get("edges")), _numbers(row.get("counts"))
        is_whole = len(counts) > 0 and len(edges) == len(counts) + 1 and min(counts) >= 0
        if not is_whole or any(a >= b for a, b in pairwise(edges)):
            unusable += 1
        elif sum(counts) > 0:
            by_name.setdefault(str(row.get("name", "histogram")), []).append((row["step"], edges, counts))
    return [_chart(name, logged) for name, logged in by_name.items()], unusable


def _chart(name: str, logged: Sequence[tuple[int, list[float], list[float]]]) -> Histogram:
    shown = [logged[0], logged[-1]] if len(logged) > 1 else [logged[0]]
    low, high = min(e[0] for _, e, _ in shown), max(e[-1] for _, e, _ in shown)

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - RIGHT)

    def y(power: float) -> float:
        return TOP + (min(power, 0.0) / _LOWEST if power > _LOWEST else 1.0) * (HEIGHT - TOP - BOTTOM)

    def outline(edges: list[float], counts: list[float]) -> str:
        total, bottom = sum(counts), y(_LOWEST)
        steps = [f"M{x(edges[0]):.1f} {bottom:.1f}"]
        for left, right, count in zip(edges, edges[1:], counts, strict=False):
            height = y(math.log10(count / total)) if count else bottom
            steps.append(f"L{x(left):.1f} {height:.1f}L{x(right):.1f} {height:.1f}")
        return "".join(steps) + f"L{x(edges[-1]):.1f} {bottom:.1f}Z"

    margin = (high - low) * 1e-6
    marks = [t for t in ticks(low, high, count=5) if low - margin <= t <= high + margin]
    return Histogram(
        name=name,
        negative="negative" in name,
        first_step=shown[0][0] if len(shown) > 1 else None,
        last_step=shown[-1][0],
        first=outline(*shown[0][1:]) if len(shown) > 1 else "",
        last=outline(*shown[-1][1:]),
        x_ticks=list(zip(map(x, marks), tick_labels(marks), strict=True)),
        y_ticks=[(y(p), text) for p, text in ((0, "100 %"), (-1, "10 %"), (-2, "1 %"), (-3, "0.1 %"), (-4, "0.01 %"))],
        total=number(sum(shown[-1][2])),
    )


def _numbers(value: Any) -> list[float]:
    """The list's numbers; empty where it is no list or one entry is no number."""
    converted = [as_number(v) for v in value] if isinstance(value, list) else []
    return [v for v in converted if v is not None] if None not in converted else []
