"""The `count` reward: is the answer the right whole number of things, or near it?"""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .extraction import NO_ANSWER, extract_answer
from .numerals import stated_number
from .references import reference_text
from .registry import register
from .score import BadReferenceError, Completion, Score

_NONE_THERE = re.compile(
    r"there (?:is|are|were|was) no(?:t any)? [a-z]+(?:[ -][a-z]+){0,3}?"
    r"(?: (?:in|on|at|inside|visible|shown|here|there|present)\b[a-z ]*)?"
)
_SAYS_MORE = re.compile(
    r"\b(?:more|fewer|less|other|longer|than|but|except|besides|only|just|and|or|way|ways|idea|need|reason|doubt|chance"
    r"|point|limit|sign|telling|answer|answers|information|evidence|enough|clear|exact|certain|sure|number|count)\b"
)
"""After "there is no": words with which it says something else than how many there are."""


@register("count")
@dataclass(frozen=True, slots=True, kw_only=True)
class CountReward:
    r"""1 for the reference's count, else 0, or with `partial` less the further away the answer is.

    Counts are whole and not below 0, in digits or in words: `3`, `three cups`, `三只`; 0 is also `none` and `There are
    no cups`. The answer is found as `number` finds it; several counts and hedges are no answer.
    """

    answer_key: str = "answer"
    """The reference field: a whole number of at least 0, or a text that states one."""
    partial: bool = False
    """Gives `max(0, 1 - |answer - count| / max(count, 1))`, which tells near from far while nothing is right yet."""

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        gold = self._gold(reference)
        answer = extract_answer(completion.text)
        if answer is None:
            return Score(value=0.0, reason=NO_ANSWER)
        count = stated_count(answer)
        if count is None:
            return Score(value=0.0, reason=f"{answer!r:.80} does not state one count")
        away = abs(count - gold)
        near = max(0.0, 1 - away / max(gold, 1)) if away <= gold else float(away == 0)
        return Score(value=near if self.partial else float(away == 0), parts={"exact": float(away == 0)})

    def perfect_answer(self, reference: Mapping[str, Any]) -> str:
        """The count in an `<answer>` tag. Raises `BadReferenceError` where there is none."""
        return f"<answer>{self._gold(reference)}</answer>"

    def _gold(self, reference: Mapping[str, Any]) -> int:
        text = reference_text(reference, self.answer_key)
        gold = stated_count(text)
        if gold is None:
            raise BadReferenceError(f"{self.answer_key!r} must state one whole number of at least 0, got {text!r:.80}")
        return gold


def stated_count(answer: str) -> int | None:
    """The one whole number of at least 0 that the answer states; None without one."""
    plain = answer.strip(" .*_").casefold()
    if plain in ("none", "没有", "無", "无") or (_NONE_THERE.fullmatch(plain) and not _SAYS_MORE.search(plain)):
        return 0
    number = stated_number(answer)
    return int(number) if number is not None and number >= 0 and number.denominator == 1 else None
