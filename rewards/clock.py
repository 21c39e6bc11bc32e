"""The `clock` reward: is the time that the answer reads off a clock right, or near?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .clock_times import circular_distance, stated_time, write_time
from .extraction import NO_ANSWER, extract_answer
from .references import reference_text
from .registry import register
from .score import BadReferenceError, Completion, Score


@register("clock")
@dataclass(frozen=True, slots=True, kw_only=True)
class ClockReward:
    r"""1 where the final answer states the reference's time, within a tolerance, else 0 or less the further away it is.

    Read are digits (`3:15`, `15:15:20`, `3.15 pm`, `15h15`), English words (`quarter past three`, `ten to four`, `three
    fifteen`, `3 o'clock`, `noon`) and Chinese ones (`三点一刻`). The dial is a circle: 11:59 and 12:01 are two minutes
    apart. Two different times, a negation or an impossible time are no answer. The answer is found as `number` does.
    """

    answer_key: str = "answer"
    """The reference field: a time in any of these forms."""
    tolerance_min: float = 0.0
    """How far away an answer may be for full marks, in minutes."""
    zero_min: float = 0.0
    """Where it is above the tolerance, answers between the two earn less in a line, down to 0 at this many minutes."""
    hours: Literal[12, 24] = 12
    """12 for a dial, on which 15:15 looks like 3:15; with 24, a time without am or pm is as it is written."""
    seconds: bool = True
    """False leaves out the seconds of both."""

    def __post_init__(self) -> None:
        for name in ("tolerance_min", "zero_min"):
            minutes = getattr(self, name)
            if not (math.isfinite(minutes) and minutes >= 0):
                raise ValueError(f"{name} must be a finite number of minutes of at least 0, got {minutes}")

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        gold = self._gold(reference)
        answer = extract_answer(completion.text)
        if answer is None:
            return Score(value=0.0, reason=NO_ANSWER)
        time = stated_time(answer)
        if time is None:
            return Score(value=0.0, reason=f"{answer!r:.80} does not state one time")
        away_min = circular_distance(self._shown(time), gold, self.hours * 3600) / 60
        return Score(value=self._worth(away_min), parts={"minutes_away": away_min, "exact": float(away_min == 0)})

    def perfect_answer(self, reference: Mapping[str, Any]) -> str:
        """The reference's time in an `<answer>` tag. Raises `BadReferenceError` where there is none."""
        return f"<answer>{write_time(self._gold(reference))}</answer>"

    def _worth(self, away_min: float) -> float:
        if away_min <= self.tolerance_min:
            return 1.0
        if away_min >= self.zero_min:
            return 0.0
        return (self.zero_min - away_min) / (self.zero_min - self.tolerance_min)

    def _shown(self, time: int) -> int:
        return time if self.seconds else time - time % 60

    def _gold(self, reference: Mapping[str, Any]) -> int:
        text = reference_text(reference, self.answer_key)
        time = stated_time(text)
        if time is None:
            raise BadReferenceError(f"{self.answer_key!r} must state one time, such as 3:15, got {text!r:.80}")
        return self._shown(time)
