"""What a stage changed: each held-out metric before and after, and whether that is better."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from posttrain.report.numerals import as_number

_LOWER_IS_BETTER = re.compile("loss|nll|perplexity|ppl|kl|cer|wer|errors?|truncated|unscored|invalid|gap|refused")
_HIGHER_IS_BETTER = re.compile(
    "accuracy|acc|g?iou|rewards?|score|exact|match|matches|format|f1|precision|recall|map|bleu|rouge|anls"
    "|correct|solved|success|parsed|valid|agreement|win|pass"
)
_NOT_A_QUALITY = re.compile("std|var|length|count|num|seconds|time|tokens")


class Verdict(StrEnum):
    """How a change is to be read."""

    BETTER = "better"
    WORSE = "worse"
    SAME = "same"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One metric of one stage. None: not measured at that point."""

    metric: str
    before: float | None
    after: float | None

    @property
    def delta(self) -> float | None:
        return None if self.before is None or self.after is None else self.after - self.before

    @property
    def size(self) -> float:
        """How far it moved, for better or worse; 0 where that cannot be said."""
        if self.delta is None or self.verdict not in (Verdict.BETTER, Verdict.WORSE):
            return 0.0
        return abs(self.delta)

    @property
    def verdict(self) -> Verdict:
        """SAME below a thousandth of the value (what the tables can show); UNKNOWN for names that tell no direction."""
        if self.before is None or self.after is None:
            return Verdict.UNKNOWN
        if math.isclose(self.before, self.after, rel_tol=1e-3, abs_tol=1e-9):
            return Verdict.SAME
        higher = higher_is_better(self.metric)
        if higher is None:
            return Verdict.UNKNOWN
        return Verdict.BETTER if (self.after > self.before) == higher else Verdict.WORSE


def higher_is_better(metric: str) -> bool | None:
    """Read from the words of the name (`ground/iou` True, `text/loss` False); None where they do not tell."""
    if metric.startswith(("reward/", "nll/")):  # what evaluation writes; the rest is the user's name of a task
        return metric.startswith("reward/")
    words = re.findall(r"[a-z]+\d?", metric.lower())
    if any(map(_NOT_A_QUALITY.fullmatch, words)):
        return None
    if any(map(_LOWER_IS_BETTER.fullmatch, words)):
        return False
    return True if any(map(_HIGHER_IS_BETTER.fullmatch, words)) else None


def changes(result: Mapping[str, Any]) -> list[Change]:
    """The metrics of a stage's result that were measured before or after it, in the order they were written."""
    before, after = _side(result, "before"), _side(result, "after")
    pairs = [
        Change(metric=name, before=as_number(before.get(name)), after=as_number(after.get(name)))
        for name in dict.fromkeys([*before, *after])
    ]
    return [c for c in pairs if c.before is not None or c.after is not None]


def _side(result: Mapping[str, Any], side: str) -> Mapping[str, Any]:
    metrics = result.get(side)
    return metrics if isinstance(metrics, Mapping) else {}
