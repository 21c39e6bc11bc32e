"""The `repetition` reward: a penalty for saying the same again and again, on tokens or on text of any language."""

import re
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .registry import register
from .score import Completion, Score
from .words import MARKS, UNSPACED

_UNIT = rf"[{UNSPACED}]|(?:[^\W{UNSPACED}]|[{MARKS}]){{1,16}}|\n|[^\S\n]{{8}}|[^\w\s]"
"""A word (or sixteen letters of a longer one: "hahaha..." has no spaces), a character, a mark, a line break."""


@register("repetition")
@dataclass(frozen=True, slots=True, kw_only=True)
class RepetitionPenalty:
    """0 for a text without repetition, down to -1 for nothing else.

    With r = 1 - distinct n-grams / n-grams ("Demystifying Long CoT", arXiv 2502.03373, appendix C.2), the reward is
    `-max(0, r - allowed_frac) / (1 - allowed_frac)`. Their n of 3 finds repetition in any long text; long n-grams
    recur only where a passage does, and a loop is full of them. A response shorter than n + 1 units has no repetition.
    Thoughts count. Time is linear in the text.
    """

    reads_whole_text: ClassVar[bool] = True
    full_score: ClassVar[float] = 0.0
    unit: Literal["tokens", "text"] = "tokens"
    """What n-grams are made of: the policy's tokens, or words, Chinese characters and marks. Where a completion comes
    without tokens, its text is taken."""
    n: int = 20
    """Length of the n-grams."""
    allowed_frac: float = 0.1
    """Share of repeated n-grams that costs nothing: lists, tables and code repeat themselves."""

    def __post_init__(self) -> None:
        if self.n < 1:
            raise ValueError(f"n must be at least 1, got {self.n}")
        if not 0 <= self.allowed_frac < 1:
            raise ValueError(f"allowed_frac must be in [0, 1), got {self.allowed_frac}")

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        use_tokens = self.unit == "tokens" and completion.token_ids
        units = completion.token_ids if use_tokens else tuple(re.findall(_UNIT, completion.text))
        repeated = repeated_frac(units, self.n)
        excess = max(0.0, repeated - self.allowed_frac) / (1 - self.allowed_frac)
        return Score(value=-excess if excess else 0.0, parts={"repeated_frac": repeated})

    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        """None: a penalty has no perfect answer."""
        return None


def repeated_frac(units: Sequence[Hashable], n: int) -> float:
    """1 - distinct n-grams / n-grams, in [0, 1); 0 where there are fewer than two n-grams."""
    units = tuple(units)
    num_ngrams = len(units) - n + 1
    if num_ngrams < 2:
        return 0.0
    # hashes, not the n-grams themselves: a megabyte of text would hold a fifth of a gigabyte of them. Two of a million
    # share their 64 bits once in ten million texts, and then the count is one too low
    return 1 - len({hash(units[start : start + n]) for start in range(num_ngrams)}) / num_ngrams
