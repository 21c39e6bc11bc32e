"""The `number` reward: does the answer state the reference's number, within a tolerance?"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from fractions import Fraction
from typing import Any, Literal

from .extraction import NO_ANSWER, extract_answer
from .numerals import Percent, stated_number
from .references import reference_text
from .registry import register
from .score import BadReferenceError, Completion, Score


@register("number")
@dataclass(frozen=True, slots=True, kw_only=True)
class NumberReward:
    r"""1 where the final answer states the reference's number, else 0.

    The answer is the last `<answer>`, `\boxed{...}`, `####` or "answer is" after the thoughts, or a response of one
    short line. Two different numbers in it are no answer, nor is a hedge. Both tolerances at 0 ask for equality, which
    is decided exactly: 0.3 is 3/10. ChartQA's relaxed accuracy is `relative_tolerance: 0.05`.
    """

    answer_key: str = "answer"
    """The reference field: a number, or a text that states one."""
    absolute_tolerance: float = 0.0
    """How far from the reference an answer may be, in the reference's unit."""
    relative_tolerance: float = 0.0
    """The same as a fraction of the reference; the larger of the two allowances counts."""
    percent: Percent = "fraction"
    """What 5% is: 1/20 (fraction), or the same as 5 (ignore)."""
    decimal_mark: Literal[".", ","] = "."
    """What stands before decimals in answers; the other one groups thousands. References keep the point."""

    def __post_init__(self) -> None:
        for name in ("absolute_tolerance", "relative_tolerance"):
            tolerance = getattr(self, name)
            if not (math.isfinite(tolerance) and tolerance >= 0):
                raise ValueError(f"{name} must be a finite number of at least 0, got {tolerance}")

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        gold = self._gold(reference)
        answer = extract_answer(completion.text)
        if answer is None:
            return Score(value=0.0, reason=NO_ANSWER)
        number = stated_number(answer, percent=self.percent, decimal_mark=self.decimal_mark)
        if number is None:
            return Score(value=0.0, reason=f"{answer!r:.80} does not state one number")
        # the decimals that the recipe wrote: as a binary fraction, 0.3 is a little less than 3/10
        allowed = max(Fraction(str(self.absolute_tolerance)), Fraction(str(self.relative_tolerance)) * abs(gold))
        return Score(value=float(abs(number - gold) <= allowed))

    def perfect_answer(self, reference: Mapping[str, Any]) -> str:
        """The reference's number in an `<answer>` tag. Raises `BadReferenceError` where it states none."""
        gold = self._gold(reference)
        return f"<answer>{gold}</answer>"

    def _gold(self, reference: Mapping[str, Any]) -> Fraction:
        text = reference_text(reference, self.answer_key)
        gold = stated_number(text, percent=self.percent)
        if gold is None:
            raise BadReferenceError(f"{self.answer_key!r} must state one number, got {text!r:.80}")
        return gold
