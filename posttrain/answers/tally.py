"""What became of prompts and answers: counts that add up, their summary, and the table that shows them."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields

from rich import box
from rich.table import Table
from rich.text import Text

from posttrain.answers.filtering import Fate
from posttrain.report.numerals import number


@dataclass(frozen=True, slots=True, kw_only=True)
class Tally:
    """Counts of prompts and of their answers by fate."""

    prompts: int = 0
    unreadable: int = 0
    """Prompts that were not asked, being too long for the teacher."""
    without_answer: int = 0
    """Prompts of which nothing was kept, the unreadable ones among them."""
    answers: int = 0
    kept: int = 0
    unfinished: int = 0
    cut_short: int = 0
    broken: int = 0
    empty: int = 0
    markup: int = 0
    thoughts: int = 0
    duplicate: int = 0
    unscored: int = 0
    below_min_reward: int = 0
    surplus: int = 0
    scored: int = 0
    """Answers that have a reward, kept or not."""
    judged: int = 0
    """Those of them that were compared with a min_reward."""
    scored_kept: int = 0
    reward_sum: float = 0.0
    """Over the scored ones."""
    reward_sum_kept: float = 0.0
    chars_kept: int = 0
    first_cut: str = ""
    """Which limit cut the first of the `cut_short` short."""
    first_break: str = ""
    """What broke the first of the `broken`."""

    def __add__(self, other: "Tally") -> "Tally":
        counts = {
            f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Tally) if f.name not in _FIRSTS
        }
        return Tally(**counts, **{name: getattr(self, name) or getattr(other, name) for name in _FIRSTS})

    def count(self, fate: Fate) -> int:
        return getattr(self, fate.value)

    @property
    def reasons(self) -> dict[Fate, int]:
        """Why answers were left out, the most frequent reason first."""
        counts = {fate: self.count(fate) for fate in Fate if fate is not Fate.KEPT and self.count(fate)}
        return dict(sorted(counts.items(), key=lambda item: -item[1]))

    @property
    def pass_rate(self) -> float | None:
        """Share of the judged answers that earn min_reward; None where none was judged."""
        return _mean(self.judged - self.below_min_reward, self.judged)

    def summary(self) -> dict[str, float | None]:
        """The counts, and the means that they give."""
        counts = {name: value for name, value in asdict(self).items() if name not in _SUMMANDS + _FIRSTS}
        return {
            **counts,
            "pass_rate": self.pass_rate,
            "mean_reward": _mean(self.reward_sum, self.scored),
            "mean_reward_kept": _mean(self.reward_sum_kept, self.scored_kept),
            "mean_chars_kept": _mean(self.chars_kept, self.kept),
        }


_SUMMANDS = ("scored_kept", "reward_sum", "reward_sum_kept", "chars_kept")
_FIRSTS = ("first_cut", "first_break")

Group = tuple[str, str]
"""(task, thinking): thinking is "on", "off" or "template"."""
Tallies = Mapping[Group, Tally]


def total(tallies: Iterable[Tally]) -> Tally:
    return sum(tallies, Tally())


def merge(parts: Iterable[Tallies]) -> dict[Group, Tally]:
    """The sum, group by group, in the order of the parts: floats add up alike in every run."""
    merged: dict[Group, Tally] = {}
    for part in parts:
        for group, tally in part.items():
            merged[group] = merged.get(group, Tally()) + tally
    return dict(sorted(merged.items()))


def by_task(tallies: Tallies) -> dict[str, Tally]:
    return _fold(tallies, 0)


def by_thinking(tallies: Tallies) -> dict[str, Tally]:
    return _fold(tallies, 1)


def _fold(tallies: Tallies, axis: int) -> dict[str, Tally]:
    names = sorted({group[axis] for group in tallies})
    return {name: total(t for group, t in tallies.items() if group[axis] == name) for name in names}


def tally_table(tallies: Tallies) -> Table:
    """A line for each task and way of thinking; of the reasons, those that occurred."""
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False, show_footer=len(tallies) > 1)
    whole = total(tallies.values())
    ways = {group[1] for group in tallies}
    lines = [(Text(task), Text(way), tally) for (task, way), tally in tallies.items()]
    table.add_column("task", footer="all")
    if ways != {"template"}:
        table.add_column("thinking")
    columns = {"prompts": "prompts", "answers": "answers", "kept": "kept"}
    columns |= {fate.value: _TITLES.get(fate, fate.value) for fate in whole.reasons}
    columns |= {"unreadable": "too long", "without_answer": "prompts lost"}
    columns = {name: title for name, title in columns.items() if getattr(whole, name) or name == "kept"}
    means = {"pass_rate": "pass rate", "mean_reward": "reward", "mean_chars_kept": "characters"}
    means = {name: title for name, title in means.items() if whole.summary()[name] is not None}
    for name, title in (columns | means).items():
        table.add_column(title, justify="right", footer=_cell(whole, name))
    for task, way, tally in lines:
        head = [task] if ways == {"template"} else [task, way]
        table.add_row(*head, *(_cell(tally, name) for name in columns | means))
    return table


_TITLES = {Fate.CUT_SHORT: "cut short", Fate.BELOW: "below min", Fate.THOUGHTS: "wrong thoughts"}


def _cell(tally: Tally, name: str) -> str:
    value = tally.summary()[name]
    return f"{value:,}" if isinstance(value, int) else number(value)


def _mean(sum_: float, count: int) -> float | None:
    return sum_ / count if count else None
