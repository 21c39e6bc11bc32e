"""Axes, lines, histograms, and how numbers are written."""

import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from posttrain.report.histogram_chart import histograms
from posttrain.report.line_chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH, line_chart, ticks
from posttrain.report.numerals import duration, number, tick_labels
from posttrain.report.panels import panel_groups

FINITE = st.floats(allow_nan=False, allow_infinity=False, min_value=-1e12, max_value=1e12)


def corners(path: str) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in re.findall(r"[ML]([-\d.]+) ([-\d.]+)", path)]


@given(st.lists(FINITE, min_size=1, max_size=300))
def test_every_point_lies_inside_the_plot(values: list[float]) -> None:
    chart = line_chart("t", {"a": list(enumerate(values))})
    assert chart is not None
    drawn = corners(chart.lines[0].raw) + corners(chart.lines[0].smooth)
    assert all(LEFT - 0.1 <= x <= WIDTH - RIGHT + 0.1 and TOP - 0.1 <= y <= HEIGHT - BOTTOM + 0.1 for x, y in drawn)
    assert len(chart.y_ticks) >= 2


@given(FINITE, st.floats(min_value=1e-6, max_value=1e12))
def test_ticks_are_few_and_enclose_the_range(low: float, size: float) -> None:
    high = low + size
    if high - low <= 1e-9 * max(abs(low), abs(high)):
        return
    marks = ticks(low, high, count=4)
    slack = 1e-5 * (high - low)
    assert marks[0] <= low + slack and marks[-1] >= high - slack and 2 <= len(marks) <= 8


def test_a_straight_line_stays_straight_after_smoothing() -> None:
    wiggle = [(s, 0.01 * s + (0.5 if s % 2 else -0.5)) for s in range(400)]
    chart = line_chart("t", {"a": wiggle})
    assert chart is not None
    values = json.loads(chart.hover)["rows"][0][2]
    steps = json.loads(chart.hover)["x"]
    assert max(abs(v - 0.01 * s) for s, v in zip(steps, values, strict=True)) < 0.06  # the wiggle was 0.5


def test_a_schedule_is_not_smoothed() -> None:
    warmup_and_decay = [(s, min(s / 10, 1.0) * (1 - s / 200)) for s in range(200)]
    chart = line_chart("t", {"learning_rate": warmup_and_decay})
    assert chart is not None and chart.lines[0].smooth == ""


def test_one_spike_does_not_flatten_the_rest_and_is_named() -> None:
    points = [(s, 1 + 0.1 * math.sin(s)) for s in range(100)]
    points[50] = (50, 1000.0)
    chart = line_chart("t", {"grad_norm": points})
    assert chart is not None
    assert chart.beyond == 1 and chart.extreme == "1,000"
    heights = [y for _, y in corners(chart.lines[0].raw)]
    assert sorted(heights)[-1] - sorted(heights)[1] > 40  # of 134: the wave is still seen


def test_long_series_keep_their_extremes_in_few_points() -> None:
    points = [(s, math.sin(s / 500)) for s in range(20_000)]
    points[12_345] = (12_345, 1.5)
    chart = line_chart("t", {"a": points})
    assert chart is not None
    drawn = corners(chart.lines[0].raw)
    assert len(drawn) <= 245
    top = min(y for _, y in drawn)
    assert sum(y == top for _, y in drawn) == 1  # the lone spike survived


def test_a_single_point_is_a_dot_and_no_point_is_no_chart() -> None:
    chart = line_chart("t", {"a": [(7, 0.0)], "b": []})
    assert chart is not None and len(chart.lines) == 1 and chart.lines[0].raw.endswith("h0")
    assert line_chart("t", {"a": []}) is None


def test_a_number_too_small_to_halve_is_drawn_as_nought() -> None:
    chart = line_chart("t", {"a": [(0, 5e-324), (1, 0.0)]})
    assert chart is not None and [text for _, text in chart.y_ticks] == ["0", "0.5", "1"]


def test_counters_of_collapses_have_charts_of_their_own() -> None:
    names = ["calls_mean", "no_call_frac", "one_call_frac", "spam_frac", "repeated_call_frac", "error_frac"]
    row = {f"tools/{name}": 0.5 for name in names} | {"turns/mean": 2.0, "over_turn_frac": 0.1, "reward": 1.0}
    groups = {group.title: [c.title for c in group.charts] for group in panel_groups([{"step": 0} | row])}
    assert groups == {
        "Learning": ["Reward"],
        "Episodes": [
            "Tool calls an episode",
            "Turns an episode",
            "Episodes with no call, or with one",
            "Episodes that repeat a call",
            "Failed calls",
            "Episodes cut short or broken",
        ],
    }


def test_a_metric_that_some_steps_lack_is_one_line() -> None:
    rows = [{"step": s, "reward/a": 0.5 if s % 3 == 0 else None} for s in range(30)]
    [group] = panel_groups(rows)
    assert len(corners(group.charts[0].lines[0].raw)) == 10


def test_the_ninth_line_repeats_a_colour_but_is_dashed() -> None:
    chart = line_chart("t", {str(k): [(0, k), (1, k)] for k in range(9)})
    assert chart is not None
    assert (chart.lines[8].colour, chart.lines[8].dashed, chart.lines[7].dashed) == (0, True, False)


def test_histogram_bars_are_shares_on_a_logarithmic_axis() -> None:
    [chart], unusable = histograms([{"step": 1, "name": "g", "edges": [0, 0.5, 1], "counts": [1, 99]}])
    assert unusable == 0 and chart.first == "" and chart.total == "100"
    ys = [y for _, y in corners(chart.last)]
    height = HEIGHT - TOP - BOTTOM
    assert ys[1] == pytest.approx(TOP + height / 2, abs=0.06)  # 1 % is half way down to 0.01 %
    assert ys[3] == pytest.approx(TOP - math.log10(0.99) / 4 * height, abs=0.06)


def test_empty_histograms_are_no_fault_and_are_not_drawn() -> None:
    assert histograms([{"step": 1, "name": "g", "edges": [0, 1], "counts": [0]}]) == ([], 0)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.73812, "0.738"),
        (0.9999, "1.00"),
        (-0.5, "−0.500"),
        (0.0034, "0.0034"),
        (0.000015, "1.5e−5"),
        (12.345, "12.3"),
        (1204.4, "1,204"),
        (38_210, "38.2k"),
        (1_500_000, "1.5M"),
        (2.5e9, "2.5G"),
        (1e15, "1.00e+15"),
        (None, "–"),
        (math.nan, "–"),
    ],
)
def test_numbers_are_written_with_about_three_digits(value: float | None, text: str) -> None:
    assert number(value) == text


@given(st.floats())
def test_any_number_can_be_written(value: float) -> None:
    assert 1 <= len(number(value)) <= 10


def test_ticks_of_one_axis_are_written_alike() -> None:
    assert tick_labels([0.0, 0.5, 1.0]) == ["0", "0.5", "1"]
    assert tick_labels([0.0, 0.0005, 0.001]) == ["0", "5e−4", "1e−3"]
    assert tick_labels([0.0, 100.0, 200.0]) == ["0", "100", "200"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.42, "0.4 s"),
        (59.96, "1 min 00 s"),
        (200, "3 min 20 s"),
        (3725, "1 h 02 min"),
        (190_000, "2 d 5 h"),
        (None, "–"),
    ],
)
def test_durations_are_written_for_people(seconds: float | None, text: str) -> None:
    assert duration(seconds) == text
