"""Instructions about words: keywords, how long a response is, its language, letters, case and commas.

Each function says whether a response, thoughts stripped, does as it was told; its other arguments are IFEval's.
"""

import re
from typing import Literal

from .sentences import paragraphs, sentences
from .words import UNSPACED, words

Relation = Literal["at least", "less than"]

_SPELLED_WORD = re.compile(r"[^\W_]+(?:[-'’.][^\W_]+)*")
_WORD_MARK = rf"[^\W{UNSPACED}]"
"""A character that would make a keyword a part of a longer word; scripts without spaces have none."""
_LANGUAGE_CHARS = 20_000


def has_keywords(text: str, *, keywords: list[str]) -> bool:
    """All of them occur, in any case, also inside of longer words."""
    folded = text.casefold()
    return all(keyword.strip().casefold() in folded for keyword in keywords)


def has_keyword_often(text: str, *, keyword: str, frequency: int, relation: Relation) -> bool:
    """How often the keyword occurs, in any case, also inside of longer words."""
    return _is(text.casefold().count(keyword.strip().casefold()), relation, frequency)


def avoids_words(text: str, *, forbidden_words: list[str]) -> bool:
    """None of them occurs as a word of its own, in any case."""
    either = "|".join(re.escape(word.strip()) for word in forbidden_words)
    return re.search(rf"(?<!{_WORD_MARK})(?:{either})(?!{_WORD_MARK})", text, re.IGNORECASE) is None


def has_letter_often(text: str, *, letter: str, let_frequency: int, let_relation: Relation) -> bool:
    """How often a letter or sign occurs, in any case."""
    return _is(text.lower().count(letter.strip().lower()), let_relation, let_frequency)


def has_sentences(text: str, *, num_sentences: int, relation: Relation) -> bool:
    """How many sentences there are."""
    return _is(len(sentences(text)), relation, num_sentences)


def has_words(text: str, *, num_words: int, relation: Relation) -> bool:
    """How many words there are; in scripts without spaces, characters."""
    return _is(len(words(text)), relation, num_words)


def has_first_word(text: str, *, num_paragraphs: int, nth_paragraph: int, first_word: str) -> bool:
    """There are as many paragraphs, between empty lines, and the nth begins with the word."""
    found = paragraphs(text)
    if len(found) != num_paragraphs or not 1 <= nth_paragraph <= len(found):
        return False
    opening = found[nth_paragraph - 1].lstrip("#>*_\"'“‘ \t-")
    word = re.split(r"[\s.,?!'\"”’:;*_]", opening, maxsplit=1)[0]
    return word.casefold() == first_word.strip().casefold()


def is_in_language(text: str, *, language: str) -> bool:
    """The response is in the language (ISO 639-1). One that is too short or mixed to tell is not."""
    from .language_id import language_of, same_language

    return language_of(text[:_LANGUAGE_CHARS].lower()) == same_language(language)


def is_capital_english(text: str) -> bool:
    """No lower-case letter, and English."""
    return text.isupper() and _is_english(text)


def is_lower_english(text: str) -> bool:
    """No capital letter, and English."""
    return text.islower() and _is_english(text)


def has_capital_words(text: str, *, capital_frequency: int, capital_relation: Relation) -> bool:
    """How many words are in capitals throughout ("I" and "U.S." are)."""
    capitals = [word for word in _SPELLED_WORD.findall(text) if word.isupper()]
    return _is(len(capitals), capital_relation, capital_frequency)


def has_no_comma(text: str) -> bool:
    """No comma, an East Asian or Arabic one included."""
    return not any(comma in text for comma in ",，、،")


def _is(count: int, relation: Relation, limit: int) -> bool:
    return count < limit if relation == "less than" else count >= limit


def _is_english(text: str) -> bool:
    from .language_id import language_of

    language = language_of(text[:_LANGUAGE_CHARS].lower())
    return text.isascii() if language is None else language == "en"
