"""Where the wall time of a stage's steps went: a table of its parts, from the `time/*` metrics of every step."""

from collections.abc import Sequence
from dataclasses import dataclass

from posttrain.report.numerals import as_number
from posttrain.report.run_folder import Row

_PARTS = {
    "rollout": "Generation",
    "environment": "Environments and tools",
    "reward": "Rewards",
    "teacher": "Teacher",
    "score": "Log-probabilities",
    "train": "Training",
    "weights": "Weights to the engine",
    "render": "Rendering",
}
"""`time/NAME_s` -> what it is called, in the table's order."""
_TOTALS = frozenset({"batch", "step"})
"""These hold others."""
_SLACK = 0.005
"""Of the total: clocks that are read one after another differ by less."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePart:
    """One part of the steps."""

    title: str
    colour: int
    """0-7."""
    seconds: float | None
    """Wall-clock seconds that the steps spent on nothing else; None where only workers' seconds were measured."""
    share: float
    """Of the steps' time, in per cent."""
    a_step: float
    busy: float | None
    """Seconds of all workers together, which ran while other parts did; None where there are none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TimeTable:
    """All parts of the steps of one stage."""

    parts: Sequence[TimePart]
    num_steps: int
    seconds: float
    """Of all steps."""
    overlap: bool
    """True where parts ran at the same time, and their shares add up to more than 100 %."""

    @property
    def has_busy(self) -> bool:
        return any(part.busy is not None for part in self.parts)


def time_table(rows: Sequence[Row]) -> TimeTable | None:
    """None for a stage that asked nothing of its policy: it spends its time on training."""
    steps = [row for row in rows if as_number(row.get("time/rollout_s")) is not None]
    total = sum(map(_step_seconds, steps))
    if not steps or total <= 0:
        return None
    keys = dict.fromkeys(key for row in steps for key in row if key.startswith("time/") and key.endswith("_s"))
    sums = {key: sum(as_number(row.get(key)) or 0.0 for row in steps) for key in keys}
    busy = {_name(key, "_busy_s"): value for key, value in sums.items() if key.endswith("_busy_s")}
    waited = {_name(key, "_s"): value for key, value in sums.items() if not key.endswith("_busy_s")}
    waited = {name: value for name, value in waited.items() if name not in _TOTALS}
    rest = total - sum(waited.values())
    if rest > _SLACK * total:
        waited["rest"] = rest
    names = (*_PARTS, *sorted({*waited, *busy} - {*_PARTS, "rest"}), "rest")
    parts = [
        TimePart(
            title=_PARTS.get(name, "Everything else" if name == "rest" else name.replace("_", " ")),
            colour=place % 7 if name != "rest" else 7,  # the eighth colour is grey
            seconds=waited.get(name),
            share=100 * waited.get(name, 0.0) / total,
            a_step=waited.get(name, 0.0) / len(steps),
            busy=busy.get(name),
        )
        for place, name in enumerate(n for n in names if n in waited or n in busy)
    ]
    return TimeTable(parts=parts, num_steps=len(steps), seconds=total, overlap=rest < -_SLACK * total)


def _step_seconds(row: Row) -> float:
    """As it was measured, or what makes a step: its batch and the training on it."""
    whole = as_number(row.get("time/step_s"))
    return whole if whole is not None else sum(as_number(row.get(f"time/{p}_s")) or 0.0 for p in ("batch", "train"))


def _name(key: str, suffix: str) -> str:
    return key.removeprefix("time/").removesuffix(suffix)
