"""Progress of a stage: a bar with the time that is left on a terminal, a line now and then in a log."""

import sys
import time
from collections.abc import Mapping
from types import TracebackType

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

_SHOWN = ("reward", "kept_frac", "divergence", "nll", "loss", "entropy", "tokens_per_s")
"""Metrics beside the bar, the first three that a step has."""
_LOG_EVERY_S = 20.0


class StepProgress:
    """A context that counts steps; silent on all processes but the main one."""

    def __init__(self, title: str, total: int, done: int, quiet: bool) -> None:
        self._title, self._total, self._done, self._quiet = title, total, done, quiet
        self._console = Console(stderr=True)
        self._bar: Progress | None = None
        self._started, self._first = time.monotonic(), done
        self._logged = self._started

    def __enter__(self) -> "StepProgress":
        if not self._quiet and self._console.is_terminal:
            self._bar = Progress(
                TextColumn("[bold]{task.description}"),
                BarColumn(bar_width=28),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                TextColumn("left"),
                TimeRemainingColumn(),
                TextColumn("{task.fields[metrics]}"),
                console=self._console,
            )
            self._bar.start()
            self._bar.add_task(self._title, total=self._total, completed=self._done, metrics="")
        return self

    def advance(self, metrics: Mapping[str, float]) -> None:
        self._done += 1
        if self._quiet:
            return
        text = "  ".join(f"{name} {metrics[name]:.3g}" for name in [n for n in _SHOWN if n in metrics][:3])
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=self._done, metrics=text)
        elif time.monotonic() - self._logged > _LOG_EVERY_S or self._done == self._total:
            self._logged = time.monotonic()
            left = (self._logged - self._started) / (self._done - self._first) * (self._total - self._done)
            print(
                f"{self._title}: step {self._done}/{self._total}, {left:.0f} s left  {text}",
                file=sys.stderr,
                flush=True,
            )

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()
