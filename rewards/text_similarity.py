"""The `text_similarity` reward: how near is the answer's text to a reference's, in [0, 1]?"""

import re
import unicodedata
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

from .extraction import whole_answer
from .references import reference_texts
from .registry import register
from .score import BadReferenceError, Completion, Score
from .words import squeezed, words

MAX_CHARS = 100_000
"""A longer answer earns 0: comparing takes time in proportion to the product of the two lengths."""

_ARTICLE = re.compile(r"\b(?:a|an|the)\b\s*", re.IGNORECASE)


@register("text_similarity")
@dataclass(frozen=True, slots=True, kw_only=True)
class TextSimilarity:
    r"""Likeness of the answer and the nearest of the references after normalisation; 1 means the same.

    The answer is the last `<answer>`, else the last `\boxed{...}`, else everything that follows the thoughts. Unicode
    is always brought to NFKC and whitespace squeezed. No measure pays for an answer that merely contains the reference.
    """

    answer_key: str = "answer"
    """The reference field: a text, or a list of which the nearest counts."""
    measure: Literal["edit", "sorted_words", "word_f1"] = "edit"
    """1 - edit distance / length of the longer; the same after sorting the words; or F1 of the words (as in SQuAD)."""
    threshold: float = 0.0
    """Likeness below it earns 0."""
    ignore_case: bool = True
    """Compares case-folded."""
    ignore_punctuation: bool = False
    """Leaves out punctuation, but for what stands before or between digits, and percent signs."""
    ignore_articles: bool = False
    """Leaves out a, an and the."""

    def __post_init__(self) -> None:
        if not 0 <= self.threshold <= 1:
            raise ValueError(f"threshold must be in [0, 1], got {self.threshold}")

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        golds = self._golds(reference)
        answer = whole_answer(completion.text)
        if answer is None:
            return Score(value=0.0, reason="the thought was never closed")
        if len(answer) > MAX_CHARS:
            return Score(value=0.0, reason=f"an answer of {len(answer):,} characters is not read")
        said = self.normal(answer)
        likeness = max(_LIKENESS[self.measure](said, gold) for gold in golds)
        return Score(value=likeness if likeness >= self.threshold else 0.0, parts={"likeness": likeness})

    def perfect_answer(self, reference: Mapping[str, Any]) -> str:
        """The (first) reference in an `<answer>` tag. Raises `BadReferenceError` where nothing of it is compared."""
        self._golds(reference)
        return f"<answer>{reference_texts(reference, self.answer_key)[0]}</answer>"

    def normal(self, text: str) -> str:
        """The text as it is compared."""
        text = squeezed(text)
        text = text.casefold() if self.ignore_case else text
        if self.ignore_punctuation:
            text = without_punctuation(text)
        if self.ignore_articles:
            text = _ARTICLE.sub("", text)
        return squeezed(text)

    def _golds(self, reference: Mapping[str, Any]) -> list[str]:
        golds = [self.normal(text) for text in reference_texts(reference, self.answer_key)]
        for gold in golds:
            if not gold or (self.measure != "edit" and not words(gold)):
                raise BadReferenceError(f"{self.answer_key!r} holds a text of which nothing is compared")
            if len(gold) > MAX_CHARS:
                raise BadReferenceError(f"{self.answer_key!r} is longer than {MAX_CHARS:,} characters")
        return golds


def edit_likeness(first: str, second: str) -> float:
    """1 - Levenshtein distance / length of the longer text, in [0, 1]; two empty texts are the same."""
    from rapidfuzz.distance import Levenshtein

    return Levenshtein.normalized_similarity(first, second)


def word_f1(first: str, second: str) -> float:
    """2 * shared words / words of both, each as often as both have it."""
    one, other = words(first), words(second)
    shared = (Counter(one) & Counter(other)).total()
    return 2 * shared / (len(one) + len(other)) if shared else 0.0


def without_punctuation(text: str) -> str:
    """The text with a space for each punctuation mark. `-5`, `3.5` and `5%` keep theirs: without it they lie."""
    return "".join(
        " " if unicodedata.category(mark).startswith("P") and mark != "%" and not after.isdecimal() else mark
        for mark, after in pairwise(f"{text} ")
    )


def _sorted_likeness(first: str, second: str) -> float:
    return edit_likeness(" ".join(sorted(words(first))), " ".join(sorted(words(second))))


_LIKENESS = {"edit": edit_likeness, "sorted_words": _sorted_likeness, "word_f1": word_f1}
