"""The before/after table of the terminal, and how a change is judged."""

from typing import Any

import pytest
from rich.console import Console

from posttrain.report import stage_table
from posttrain.report.changes import Change, Verdict, higher_is_better


def printed(stages: list[dict[str, Any]], width: int = 80) -> str:
    console = Console(width=width, color_system=None)
    with console.capture() as capture:
        console.print(stage_table(stages))
    return capture.get()


def test_the_table_shows_before_after_and_change_in_eighty_columns() -> None:
    stage = {"name": "rl", "algorithm": "sapo", "seconds": 260, "steps": 1240}
    text = printed(
        [stage | {"before": {"ground/iou": 0.462, "format": 1.0}, "after": {"ground/iou": 0.815, "format": 0.98}}]
    )
    rows = [line.split() for line in text.splitlines()]
    assert ["rl", "ground/iou", "↑", "0.462", "0.815", "+0.353"] in rows
    assert ["sapo,", "1,240", "steps", "format", "↑", "1.00", "0.980", "−0.020"] in rows
    assert ["4", "min", "20", "s"] in rows


def test_a_stage_without_evaluation_or_fields_is_a_row_too() -> None:
    assert "not evaluated" in printed([{"name": "rl"}])
    assert "not evaluated" in printed([{"name": "rl", "before": None, "after": {"iou": None, "text": "x"}}])


def test_a_metric_measured_only_after_has_no_change() -> None:
    row = next(line for line in printed([{"name": "rl", "after": {"iou": 0.5}}]).splitlines() if "iou" in line)
    assert row.split() == ["rl", "iou", "↑", "–", "0.500", "–"]


def test_names_are_never_read_as_markup() -> None:
    assert "[red]rl[/red]" in printed([{"name": "[red]rl[/red]", "after": {"[bold]": 1}}])


@pytest.mark.parametrize(
    ("metric", "expected"),
    [
        ("ground/iou", True),
        ("ground/iou@0.5", True),
        ("read/exact_match", True),
        ("text/loss", False),
        ("truncated_frac", False),
        ("reward_std", None),
        ("completion_length", None),
        ("close_calls", None),  # `loss` is not a word of it
    ],
)
def test_directions_are_read_from_the_words_of_a_name(metric: str, expected: bool | None) -> None:
    assert higher_is_better(metric) is expected


@pytest.mark.parametrize(
    ("metric", "before", "after", "verdict"),
    [
        ("iou", 0.4, 0.5, Verdict.BETTER),
        ("iou", 0.5, 0.4, Verdict.WORSE),
        ("loss", 2.0, 1.0, Verdict.BETTER),
        ("loss", 1.0, 2.0, Verdict.WORSE),
        ("iou", 0.5, 0.5001, Verdict.SAME),
        ("length", 10.0, 20.0, Verdict.UNKNOWN),
        ("iou", None, 0.5, Verdict.UNKNOWN),
    ],
)
def test_a_change_is_judged_by_its_direction(
    metric: str, before: float | None, after: float | None, verdict: Verdict
) -> None:
    assert Change(metric=metric, before=before, after=after).verdict is verdict
