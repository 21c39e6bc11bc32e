"""The rewards that compare answers as text: `exact_match` and `multiple_choice`."""

import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .choices import chosen_letter, plain_choice
from .extraction import NO_ANSWER, extract_answer, whole_answer
from .references import reference_text, reference_texts
from .registry import register
from .score import BadReferenceError, Completion, Score

_LISTED_OPTION = re.compile(r"^[ \t]*[(\[【]?([A-Z])[)\]】.:、][ \t]*", re.MULTILINE)
_BOLD = re.compile(r"(?<![\w*])(\*{1,3})(?=[^\s*])([^*\n]+)(?<=\S)\1(?![\w*])|(?<![0-9A-Za-z*])\*\*([^*\n]+)\*\*(?!\*)")
"""`*word*`, and `**word**` beside letters that need no space: neither 2*3*4 nor 2**3."""


@register("exact_match")
@dataclass(frozen=True, slots=True, kw_only=True)
class ExactMatch:
    r"""1 where the answer is the reference's text after NFKC and stripping, else 0.

    The answer is the last `<answer>`, `\boxed{...}`, `####` or "answer is" line, else everything that follows the
    thoughts. Bold type and a full stop at its end do not count, unless the reference has them. The reference is a text
    or a number, or a list of which any may match.
    """

    answer_key: str = "answer"
    """The reference field."""
    ignore_case: bool = False
    """Compares case-folded; leave off for transcription."""

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        accepted = {self._normal(text) for text in reference_texts(reference, self.answer_key)}
        said = [self._normal(text) for text in _answers(completion.text)]
        if not said:
            return Score(value=0.0, reason="the thought was never closed")
        return Score(value=float(any(text in accepted for text in said)))

    def perfect_answer(self, reference: Mapping[str, Any]) -> str:
        """The (first) reference in an `<answer>` tag. Raises `BadReferenceError` where there is none."""
        return f"<answer>{reference_texts(reference, self.answer_key)[0]}</answer>"

    def _normal(self, text: str) -> str:
        text = unicodedata.normalize("NFKC", text).strip()
        return text.casefold() if self.ignore_case else text


def _answers(text: str) -> list[str]:
    """The answer as it stands, and in plain type; empty where a thought was never closed.

    What the text says as a whole counts first: a sign may read "The answer is 42."
    """
    whole = whole_answer(text)
    if whole is None:
        return []
    plain = _BOLD.sub(lambda match: match[2] or match[3], text)
    marked = extract_answer(plain)
    found = [whole, whole_answer(plain) or ""] if marked is None else [whole, marked]
    return found + [answer.strip().removesuffix(".").removesuffix("。") for answer in found[1:]]


@register("multiple_choice")
@dataclass(frozen=True, slots=True, kw_only=True)
class MultipleChoice:
    r"""1 where the answer names the right option, by its letter or its text, else 0.

    Looked at is the last `<answer>`, `\boxed{...}`, "Answer: ..." line or line under the heading "Answer", else a
    response that is one short line; letters are never searched for in the response at large. Several letters are
    wrong. The reference holds a letter, or with `options` (a list, a mapping from letters, or one text with a line for
    each) also an option's text.
    """

    answer_key: str = "answer"
    """The reference field with the right letter or text."""
    options_key: str = "options"
    """The reference field with the options' texts; need not be there where the answer is a letter."""

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        options = self._options(reference)
        right = self._right(reference, options)
        answer = extract_answer(completion.text)
        if answer is None:
            return Score(value=0.0, reason=NO_ANSWER)
        chosen = chosen_letter(answer, options)
        if chosen is None:
            return Score(value=0.0, reason=f"{answer!r:.80} does not name one option")
        return Score(value=float(chosen == right))

    def perfect_answer(self, reference: Mapping[str, Any]) -> str:
        """The right letter in an `<answer>` tag. Raises `BadReferenceError` where there is none."""
        return f"<answer>{self._right(reference, self._options(reference))}</answer>"

    def _options(self, reference: Mapping[str, Any]) -> dict[str, str]:
        options = reference.get(self.options_key)
        if options is None:
            return {}
        if isinstance(options, str):
            options = _listed(options)
        if isinstance(options, Mapping):
            texts = {str(letter).strip().upper(): str(text) for letter, text in options.items() if text is not None}
        elif isinstance(options, Sequence) and not isinstance(options, str) and len(options) <= 26:
            texts = dict(zip(string.ascii_uppercase, map(str, options), strict=False))
        else:
            raise BadReferenceError(
                f"{self.options_key!r} must be a list of at most 26 texts, or lines like 'A. text', got {options!r:.80}"
            )
        return {letter: plain_choice(_without_letter(text, letter)) for letter, text in texts.items()}

    def _right(self, reference: Mapping[str, Any], options: dict[str, str]) -> str:
        answer = reference_text(reference, self.answer_key)
        chosen = chosen_letter(answer, options)
        if chosen is None:
            known = f"one of {', '.join(options)} or of their texts" if options else "one letter"
            raise BadReferenceError(f"{self.answer_key!r} must be {known}, got {answer!r:.80}")
        return chosen


def _listed(options: str) -> Any:
    """Options that stand below each other, each behind its letter: `A. red`, `（Ｂ）蓝色`; other texts as they came."""
    text = unicodedata.normalize("NFKC", options)
    found = list(_LISTED_OPTION.finditer(text))
    letters = [match[1] for match in found]
    if not found or letters != list(string.ascii_uppercase[: len(letters)]):
        return options
    ends = [match.start() for match in found[1:]] + [len(text)]
    return {match[1]: text[match.end() : end] for match, end in zip(found, ends, strict=True)}


def _without_letter(text: str, letter: str) -> str:
    return re.sub(rf"^\s*[(\[【]?{letter}[)\]】.:、]\s*", "", unicodedata.normalize("NFKC", text))
