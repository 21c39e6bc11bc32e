"""Which language a text is in, where it is long and clear enough to tell: py3langid, offline and deterministic.

py3langid is a naive Bayes model over byte n-grams, which takes a fraction of a millisecond for a sentence. It chooses
among widely written languages, and those that one sentence does not tell apart count as one.
"""

import functools
from typing import TYPE_CHECKING

from .words import words

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

_WRITTEN_IN = {
    ("latin",): "af ca cs cy da de en es et eu fi fr ga gl hu id is it lt lv ms nl no pl pt ro sk sl sq sv sw tl tr vi",
    ("cyrillic",): "bg kk mk mn ru uk",
    ("cyrillic", "latin"): "hr sr uz",
    ("arabic",): "ar fa ps ur",
    ("indic",): "bn gu hi kn ml mr ne pa si ta te",
    ("han",): "zh",
    ("han", "kana"): "ja",
    ("hangul", "han"): "ko",
    ("greek",): "el",
    ("armenian",): "hy",
    ("hebrew",): "he",
    ("thai",): "th",
    ("lao",): "lo",
    ("burmese",): "my",
    ("khmer",): "km",
    ("georgian",): "ka",
}
SCRIPTS_OF = {code: frozenset(scripts) for scripts, codes in _WRITTEN_IN.items() for code in codes.split()}
"""The languages that are told apart, by ISO 639-1 code, with the scripts that each is written in."""
MIN_CONFIDENCE = 0.8
MIN_WORDS = 4
"""Fewer words are a label or a name, which look like any language."""

_ALIKE = {"no": "da", "sr": "hr", "ms": "id", "sk": "cs", "gl": "pt", "mr": "hi", "ne": "hi", "mk": "bg", "af": "nl"}
_NO_LANGUAGE = "zxx"

SCRIPTS: tuple[tuple[int, int, str], ...] = (
    (0x41, 0x24F, "latin"),
    (0x370, 0x3FF, "greek"),
    (0x400, 0x52F, "cyrillic"),
    (0x530, 0x58F, "armenian"),
    (0x590, 0x5FF, "hebrew"),
    (0x600, 0x77F, "arabic"),
    (0x900, 0xDFF, "indic"),
    (0xE00, 0xE7F, "thai"),
    (0xE80, 0xEFF, "lao"),
    (0x1000, 0x109F, "burmese"),
    (0x10A0, 0x10FF, "georgian"),
    (0x1100, 0x11FF, "hangul"),
    (0x1780, 0x17FF, "khmer"),
    (0x1E00, 0x1EFF, "latin"),
    (0x3005, 0x3007, "han"),
    (0x3040, 0x30FF, "kana"),
    (0x3130, 0x318F, "hangul"),
    (0x31F0, 0x31FF, "kana"),
    (0x3400, 0x9FFF, "han"),
    (0xAC00, 0xD7AF, "hangul"),
    (0xF900, 0xFAFF, "han"),
    (0xFF21, 0xFF5A, "latin"),
    (0xFF66, 0xFF9F, "kana"),
    (0x20000, 0x3FFFD, "han"),
)
"""First and last code point of the scripts that are told apart, in order."""


def language_of(text: str) -> str | None:
    """The language of a text, as `same_language` knows it; None where it is too short or not clear."""
    if len(words(text)) < MIN_WORDS:
        return None
    ranked: dict[str, float] = {}
    for code, probability in _identifier().rank(text):
        ranked[same_language(code)] = ranked.get(same_language(code), 0.0) + probability
    code = max(ranked, key=lambda language: ranked[language])
    return code if code != _NO_LANGUAGE and ranked[code] >= MIN_CONFIDENCE else None


def same_language(code: str) -> str:
    """One code for the languages that a sentence does not tell apart (Norwegian is Danish here)."""
    return _ALIKE.get(code, code)


@functools.lru_cache(maxsize=4096)
def script_of(word: str) -> str | None:
    """The script of a word's first letter that has one; None for digits and what `SCRIPTS` does not list."""
    for character in word:
        code = ord(character)
        if character.isalpha():
            return next((script for first, last, script in SCRIPTS if first <= code <= last), None)
    return None


@functools.cache
def _identifier() -> "LanguageIdentifier":
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    identifier = LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
    identifier.set_languages([*SCRIPTS_OF, _NO_LANGUAGE])
    return identifier
