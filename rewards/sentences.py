"""Sentences and paragraphs, as instructions about length count them.

IFEval splits sentences with NLTK's trained punkt model, which has to be downloaded. Here they end at `.`, `!`, `?`
where a space follows, and at the East Asian forms. Not after an abbreviation, an initial, or a number that begins a
line, nor at an ellipsis before a lower-case word. Line breaks alone end none: a heading belongs to the sentence below
it, in IFEval as here.
"""

import re

_SENTENCE_END = re.compile(r"(?:(?<![.!?…])[.!?…]++[\"'”’)\]*_]*+(?=\s|\Z)|[。！？｡]+[」』”’）]*)\s*")
_LAST_WORD = re.compile(r"[^\s(\[\"'“‘*_]+\Z")
# fmt: off
_ABBREVIATIONS = frozenset((
    "mr", "mrs", "ms", "dr", "prof", "sr", "jr", "st", "hon", "gen", "col", "sgt", "capt", "rev", "jan", "feb", "mar",
    "apr", "jun", "jul", "aug", "sep", "sept", "oct", "nov", "dec", "vs", "e.g", "i.e", "eg", "ie", "cf", "vol",
    "fig", "approx", "dept", "ph.d",
))
# fmt: on
_OFTEN_LAST = frozenset(("etc", "inc", "ltd", "co", "corp", "no", "a.m", "p.m", "al", "est"))
"""Abbreviations that as often end a sentence: they do before a capital."""
_INITIALS = re.compile(r"[A-Za-z](?:\.[A-Za-z])*")
_LIST_NUMBER = re.compile(r"(?:\A|\n)[ \t]*(?:\d{1,3}|[A-Za-z])\.[ \t]*\Z")
_LOOK_BACK = 40
_PARAGRAPH_BREAK = re.compile(r"\n\s*\n")


def sentences(text: str) -> list[str]:
    """The sentences of a text in order, stripped; a last one without its full stop counts."""
    found, start = [], 0
    for match in _SENTENCE_END.finditer(text):
        if _goes_on(text, match):
            continue
        found.append(text[start : match.end()].strip())
        start = match.end()
    found.append(text[start:].strip())
    return [sentence for sentence in found if any(character.isalnum() for character in sentence)]


def paragraphs(text: str) -> list[str]:
    """What empty lines separate, stripped; what is empty is left out."""
    return [stripped for part in _PARAGRAPH_BREAK.split(text) if (stripped := part.strip())]


def _goes_on(text: str, end: re.Match[str]) -> bool:
    """Whether the sentence goes on after a full stop or an ellipsis."""
    following = text[end.end() : end.end() + 1]
    if not end[0].startswith((".", "…")) or not following:
        return False
    if end[0].startswith(("..", "…")):
        return following.islower()
    before = text[max(end.start() - _LOOK_BACK, 0) : end.start()]
    word = _LAST_WORD.search(before)
    plain = word[0].lower() if word else ""
    if plain in _OFTEN_LAST:
        return following.islower() or following.isdigit()
    is_initial = _INITIALS.fullmatch(plain) is not None and plain not in ("i", "a")
    return plain in _ABBREVIATIONS or is_initial or _LIST_NUMBER.search(f"{before}.") is not None
