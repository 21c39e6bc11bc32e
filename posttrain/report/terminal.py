"""The table that a run prints at its end: each stage's held-out metrics before and after."""

from collections.abc import Iterable, Mapping
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from posttrain.report.changes import Change, Verdict, changes, higher_is_better
from posttrain.report.numerals import ABSENT, as_number, change, duration, number

_STYLES = {Verdict.BETTER: "bold green", Verdict.WORSE: "bold red", Verdict.SAME: "dim", Verdict.UNKNOWN: ""}
_ARROWS = {True: "\N{UPWARDS ARROW}", False: "\N{DOWNWARDS ARROW}", None: " "}


def stage_table(stages: Iterable[Mapping[str, Any]]) -> Table:
    """Before/after with deltas; an arrow beside a metric points where better lies.

    `stages`: dicts as in summary.json and result.json: name, algorithm, seconds, steps, before, after.
    """
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for title in ("stage", "algorithm", "steps", "time", "metric"):
        table.add_column(title, justify="right" if title in ("steps", "time") else "left", no_wrap=True)
    for title in ("before", "after", "change"):
        table.add_column(title, justify="right", no_wrap=True)
    for stage in stages:
        head = (
            Text(str(stage.get("name", ABSENT)), style="bold"),
            Text(str(stage.get("algorithm", ABSENT))),
            Text(number(as_number(stage.get("steps")))),
            Text(duration(as_number(stage.get("seconds")))),
        )
        rows = [_cells(c) for c in changes(stage)] or [(Text("no evaluation", style="dim"), Text(), Text(), Text())]
        for index, row in enumerate(rows):
            table.add_row(*(head if index == 0 else (Text(),) * 4), *row, end_section=index == len(rows) - 1)
    return table


def _cells(measured: Change) -> tuple[Text, Text, Text, Text]:
    """Text objects: a metric's or a stage's name is never read as markup."""
    return (
        Text(f"{measured.metric} {_ARROWS[higher_is_better(measured.metric)]}".rstrip()),
        Text(number(measured.before)),
        Text(number(measured.after)),
        Text(change(measured.delta), style=_STYLES[measured.verdict]),
    )
