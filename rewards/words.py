"""Words of any language: of scripts that write spaces, the words; of the others, each character.

Splitting at spaces makes one "word" of a Chinese paragraph, and Python's `\\w` splits Hindi at its vowel signs.
"""

import re
import unicodedata

UNSPACED = (
    "\u3005\u3007\u3040-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003fffd"
    "\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff"
)
"""Han and kana, then Thai, Lao, Burmese and Khmer, as the inside of a regular expression's character class."""
MARKS = "\u0300-\u036f\u0591-\u05c7\u064b-\u065f\u0670\u0900-\u0dff"
"""Combining signs that belong to a word, though `\\w` does not match them: Hebrew, Arabic, the scripts of India."""

# patterns stay text here: `re` compiles each once, when it is first used, and not when rewards are imported
_WORD = rf"[{UNSPACED}]|(?:[^\W{UNSPACED}]|[{MARKS}])+"
_BETWEEN_UNSPACED = rf"(?<=[{UNSPACED}])\s+(?=[{UNSPACED}])"


def words(text: str) -> list[str]:
    """The words of a text in order, punctuation left out."""
    return re.findall(_WORD, text)


def squeezed(text: str) -> str:
    """NFKC, stripped, every run of whitespace one space, and none between two characters of a script without spaces.

    Where a line of Chinese breaks is layout; where an English one does, a space.
    """
    return re.sub(_BETWEEN_UNSPACED, "", " ".join(unicodedata.normalize("NFKC", text).split()))
