"""The table that a run prints at its end: each stage's held-out metrics before and after."""

from collections.abc import Iterable, Mapping
from itertools import zip_longest
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from posttrain.report.changes import Change, Verdict, changes, higher_is_better
from posttrain.report.numerals import ABSENT, as_number, change, duration, number

_STYLES = {Verdict.BETTER: "bold green", Verdict.WORSE: "bold red", Verdict.SAME: "dim", Verdict.UNKNOWN: ""}
_BLANK = (Text(), Text(), Text(), Text())
_ARROWS = {True: "\N{UPWARDS ARROW}", False: "\N{DOWNWARDS ARROW}", None: " "}


def stage_table(stages: Iterable[Mapping[str, Any]]) -> Table:
    """Before/after with deltas; an arrow beside a metric points where better lies.

    `stages`: dicts as in summary.json and result.json: name, algorithm, seconds, steps, before, after.
    """
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for title in ("stage", "held-out metric"):
        table.add_column(title)
    for title in ("before", "after", "change"):
        table.add_column(title, justify="right", no_wrap=True)
    for stage in stages:
        steps = as_number(stage.get("steps"))
        heads = [
            Text(str(stage.get("name", ABSENT)), style="bold"),
            Text(
                f"{stage.get('algorithm', ABSENT)}, {ABSENT if steps is None else f'{steps:,.0f}'} steps", style="dim"
            ),
            Text(duration(as_number(stage.get("seconds"))), style="dim"),
        ]
        rows = [_cells(c) for c in changes(stage)] or [(Text("not evaluated", style="dim"), *_BLANK[1:])]
        for index, (head, row) in enumerate(zip_longest(heads, rows)):
            is_last = index == max(len(heads), len(rows)) - 1
            table.add_row(head or Text(), *(row or _BLANK), end_section=is_last)
    return table


def _cells(measured: Change) -> tuple[Text, Text, Text, Text]:
    """Text objects: a metric's or a stage's name is never read as markup."""
    return (
        Text(f"{measured.metric} {_ARROWS[higher_is_better(measured.metric)]}".rstrip()),
        Text(number(measured.before)),
        Text(number(measured.after)),
        Text(change(measured.delta), style=_STYLES[measured.verdict]),
    )
