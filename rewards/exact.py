"""The rewards that compare answers as text: `exact_match` and `multiple_choice`."""

import re
import string
import unicodedata
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .extraction import NO_ANSWER, extract_answer, whole_answer
from .references import reference_text, reference_texts
from .registry import register
from .score import BadReferenceError, Completion, Score

_INTRODUCTION = re.compile(
    r"(?:(?:it is |it's |so |therefore,? )?(?:the )?(?:(?:correct|right|best|final) )?"
    r"(?:option|choice|answer)(?: is)?:?\s+"
    r"|[我故]?【?(?:答案|(?:正确|正確)?(?:选项|選項)|选择?|選擇?)】?[是为為选選:]*\s*)(?=[(\[【]?[A-Za-z](?![A-Za-z]))",
    re.IGNORECASE,
)
_CONFIRMATION = re.compile(
    r"(?<=[A-Za-z).]) is (?:the )?(?:correct|right|best|answer)(?: (?:answer|option|choice|one))?$"
    r"|(?<=[A-Za-z)\]】])(?:选项|選項)?(?:是?(?:正确|正確|对|對)的?)?$"
)
_REASON = re.compile(r"(?<=[A-Za-z)\]】])\s*,\s*(?:because|since|因为|因為|由于|由於)(?P<said>.*)", re.DOTALL)
_CHOICE = re.compile(r"[(\[【]?([A-Za-z])(?:[)\]】.:、\n]+|$)\s*(.*)", re.DOTALL)
_LISTED_OPTION = re.compile(r"^[ \t]*[(\[【]?([A-Z])[)\]】.:、][ \t]*", re.MULTILINE)
_CONTRADICTION = re.compile(
    r"(?:is|was)(?:n't| not| wrong| incorrect| false)\b|not (?:correct|right)\b|(?:or|and|[,/&])?\s*\(?[a-z][).:]*$"
    r"|是(?:错|錯|不(?:对|對|正确|正確))|不(?:对|對|正确|正確)$|不是(?:正确|正確)?(?:答案|选项|選項)"
)
_ANOTHER_CHOICE = re.compile(r"(?:^|[\s,;/&(])(?:[B-HJ-Z](?=$|[\s,;/&).:])|[AI](?=$|[,;/&).:]|\s*$))")
_LONE_LETTER = re.compile(r"(?<![A-Za-z])(?:[B-HJ-Z]|[AI](?![ a-z']))(?![A-Za-z])")
_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}")


@register("exact_match")
@dataclass(frozen=True, slots=True, kw_only=True)
class ExactMatch:
    r"""1 where the answer is the reference's text after NFKC and stripping, else 0.

    The answer is the last `<answer>`, else the last `\boxed{...}`, else everything that follows the thoughts.
    The reference is a text or a number, or a list of which any may match.
    """

    answer_key: str = "answer"
    """The reference field."""
    ignore_case: bool = False
    """Compares case-folded; leave off for transcription."""

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        accepted = {self._normal(text) for text in reference_texts(reference, self.answer_key)}
        answer = whole_answer(completion.text)
        if answer is None:
            return Score(value=0.0, reason="the thought was never closed")
        return Score(value=float(self._normal(answer) in accepted))

    def perfect_answer(self, reference: Mapping[str, Any]) -> str:
        """The (first) reference in an `<answer>` tag. Raises `BadReferenceError` where there is none."""
        return f"<answer>{reference_texts(reference, self.answer_key)[0]}</answer>"

    def _normal(self, text: str) -> str:
        text = unicodedata.normalize("NFKC", text).strip()
        return text.casefold() if self.ignore_case else text


@register("multiple_choice")
@dataclass(frozen=True, slots=True, kw_only=True)
class MultipleChoice:
    r"""1 where the answer names the right option, by its letter or its text, else 0.

    Looked at is the last `<answer>`, `\boxed{...}` or "Answer: ..." line, else a response that is one short line;
    letters are never searched for in the response at large. Several letters are wrong. The reference holds a letter,
    or with `options` (a list, a mapping from letters, or one text with a line for each) also an option's text.
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
        chosen = _chosen(answer, options)
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
        return {letter: _normal(_without_letter(text, letter)) for letter, text in texts.items()}

    def _right(self, reference: Mapping[str, Any], options: dict[str, str]) -> str:
        answer = reference_text(reference, self.answer_key)
        chosen = _chosen(answer, options)
        if chosen is None:
            known = f"one of {', '.join(options)} or of their texts" if options else "one letter"
            raise BadReferenceError(f"{self.answer_key!r} must be {known}, got {answer!r:.80}")
        return chosen


def _chosen(answer: str, options: dict[str, str]) -> str | None:
    """The letter that an answer names; None where it names none, several, or contradicts itself."""
    plain = unicodedata.normalize("NFKC", _TEXT_COMMAND.sub(r"\1", answer)).strip().strip("*$").strip()
    plain = _CONFIRMATION.sub("", _INTRODUCTION.sub("", plain, count=1).rstrip(".!。"))
    reason = _REASON.search(plain)
    if reason is not None and not _LONE_LETTER.search(reason["said"]):
        plain = plain[: reason.start()]
    by_text = [letter for letter, text in options.items() if text == _normal(plain)]
    match = _CHOICE.fullmatch(plain)
    if match is None or (options and match[1].upper() not in options):
        return by_text[0] if len(by_text) == 1 else None
    letter, said = match[1].upper(), match[2].strip().rstrip(".")
    if not said:
        return letter
    if options:
        if _normal(said) == options[letter]:
            return letter
        return by_text[0] if len(by_text) == 1 else None  # "C. elegans" may be the text of B
    return None if _ANOTHER_CHOICE.search(said) or _CONTRADICTION.match(said) else letter


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


def _normal(text: str) -> str:
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).rstrip(".")
