"""The `language` reward: a penalty where a response is not, or not wholly, in the language of its prompt."""

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

from .extraction import strip_thinking
from .language_id import SCRIPTS_OF, language_of, same_language, script_of
from .prose import prose_of, sentences, without_names
from .registry import register
from .score import BadReferenceError, Completion, Score
from .words import words

MIN_MIXED = 0.5
"""What a response that mixes languages costs at least."""
LATIN_RUN = 5
"""So many Latin words in a row are a phrase; fewer, in a text of another script, are a name or a term."""
MIN_PROMPT_WORDS = 2
"""A prompt of fewer words is in no language; fewer words in another script are a name or a term."""

_NAMED_LANGUAGE = (
    r"(?i)\b(?:english|chinese|mandarin|japanese|korean|french|german|spanish|italian|portuguese|russian|arabic|hindi|thai"
    r"|vietnamese|turkish|polish|dutch|greek|hebrew|swedish|indonesian|bengali|urdu|persian|farsi|ukrainian|translat\w*"
    r"|übersetz\w*|tradu\w*|deutsch|englisch|français|anglais|español|inglés|chinesisch|languages?|transliterat\w*)\b"
    r"|[中英日法德俄韩韓汉漢]文|[英日法德俄韩韓汉漢]语|翻译|翻譯|翻訳|[英中韓]国?語|日本語|语言|言語"
    r"|[А-я]+ском языке|перевед\w*"
)


@register("language")
@dataclass(frozen=True, slots=True, kw_only=True)
class LanguagePenalty:
    """0 where the response keeps to the prompt's language, else -(the share in others), and at most -0.5.

    Looked at is prose: not code, maths, quotations, brackets, names, nor the reference's answer. A word is foreign
    where its script is none of the prompt's and its language's (a Chinese character in English; in Chinese, five Latin
    words in a row), or where its sentence, or the whole response, is clearly in another language.

    No evidence is no fault: the reward is 0, not unscored, for a response of fewer than `min_words` words, for a prompt
    without words, and for a prompt that itself speaks of a language (translate; answer in French), unless the reference
    names the language to answer in. A prompt that mixes scripts (`What is 光合作用?`) may be answered in any of them.
    Not for transcription tasks, whose answers are in the image's language.
    """

    reads_whole_text: ClassVar[bool] = True
    full_score: ClassVar[float] = 0.0
    language_key: str = "language"
    """A reference field that may name the language to answer in (ISO 639-1: `en`, `zh`)."""
    answer_key: str = "answer"
    """A reference field whose text may stand in the response in any language."""
    thoughts: bool = True
    """Whether thoughts count too."""
    min_words: int = 10
    """Shorter responses are labels; Chinese characters count as words."""
    allowed_frac: float = 0.02
    """Share of foreign words that costs nothing."""

    def __post_init__(self) -> None:
        if self.min_words < 1:
            raise ValueError(f"min_words must be at least 1, got {self.min_words}")
        if not 0 <= self.allowed_frac < 1:
            raise ValueError(f"allowed_frac must be in [0, 1), got {self.allowed_frac}")

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        wanted = self._named(reference)
        said = completion.text if self.thoughts else strip_thinking(completion.text) or ""
        if isinstance(answer := reference.get(self.answer_key), str) and len(answer) > 1:
            said = said.replace(answer, " ")
        prose = prose_of(said)
        asked = prose_of(completion.prompt)
        if len(_lettered(prose)) < self.min_words:
            return Score(value=0.0, reason=f"fewer than {self.min_words} words of prose")
        if wanted is None and len(_lettered(asked)) < MIN_PROMPT_WORDS:
            return Score(value=0.0, reason="the prompt is in no language")
        if wanted is None and re.search(_NAMED_LANGUAGE, completion.prompt):
            return Score(value=0.0, reason="the prompt speaks of a language")
        scripts = {script for word in words(completion.prompt) if (script := script_of(word))}
        share = foreign_frac(prose, wanted or _asked_in(without_names(asked)), scripts)
        value = 0.0 if share <= self.allowed_frac else -max(share, MIN_MIXED)
        return Score(value=value, parts={"foreign_frac": share})

    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        """None: a penalty has no perfect answer. Raises `BadReferenceError` for a language that is not known."""
        self._named(reference)
        return None

    def _named(self, reference: Mapping[str, Any]) -> str | None:
        named = reference.get(self.language_key)
        if named is None:
            return None
        if not isinstance(named, str) or named not in SCRIPTS_OF:
            raise BadReferenceError(f"{self.language_key!r} must be one of {', '.join(SCRIPTS_OF)}; got {named!r:.80}")
        return same_language(named)


def foreign_frac(prose: str, language: str | None, scripts: set[str]) -> float:
    """Share of the words that are in another language than `language`, or in a script that is neither its nor given.

    With None for the language only scripts are compared. In [0, 1].
    """
    known = scripts | (SCRIPTS_OF[language] if language else frozenset())
    whole = language_of(without_names(prose)) if language else None
    if whole not in (None, language):
        return 1.0
    num_words = num_foreign = 0
    for sentence in sentences(prose):
        spoken = _lettered(sentence)
        num_words += len(spoken)
        told = language_of(without_names(sentence)) if language else None
        is_foreign = told not in (None, language)
        num_foreign += len(spoken) if is_foreign else _num_in_other_scripts(spoken, known)
    return num_foreign / num_words if num_words else 0.0


def _asked_in(asked: str) -> str | None:
    """The prompt's language; None where it is not clear, or where it is in several: they differ in their scripts."""
    counts = Counter(script for word in words(asked) if (script := script_of(word)))
    used = {script for script, count in counts.items() if count >= MIN_PROMPT_WORDS}
    return language_of(asked) if any(used <= scripts for scripts in SCRIPTS_OF.values()) else None


def _lettered(text: str) -> list[str]:
    """The words that have letters: numbers are in no language."""
    return [word for word in words(text) if script_of(word)]


def _num_in_other_scripts(spoken: Sequence[str], known: set[str]) -> int:
    """Words in scripts that are not known; Latin ones in runs of at least `LATIN_RUN`, single Greek letters never."""
    found = 0
    for script, run in groupby(spoken, key=script_of):
        length = sum(1 for word in run if script != "greek" or len(word) > 1)  # an angle is called α in any language
        if script not in known and (script != "latin" or length >= LATIN_RUN):
            found += length
    return found
