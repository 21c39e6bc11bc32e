"""Instructions about the form of a response: lists, sections, titles, JSON, how it begins and ends.

Each function says whether a response, thoughts stripped, does as it was told; its other arguments are IFEval's. Where
IFEval's pattern can be had for nothing (an empty placeholder, all three constrained answers at once), more is asked.
All take time linear in the response.
"""

import json
import re

_ANSWERS = ("my answer is yes.", "my answer is no.", "my answer is maybe.")
_DIVIDER = re.compile(r"(?:\A|(?<=\s))\*\*\*(?=\s|\Z)")
_RESPONSE_DIVIDER = "******"
_PLACEHOLDER = re.compile(r"\[[^\[\]\n]*[^\[\]\s][^\[\]\n]*\]")
_HIGHLIGHT = re.compile(r"(?<!\*)(\*{1,3})(?=[^\s*])[^\n*]*(?<=[^\s*])\1(?!\*)")
_FENCED = re.compile(r"```(?:json)?\s*\n?(.*?)\n?\s*```", re.DOTALL | re.IGNORECASE)
_QUOTES = ('"', '"'), ("“", "”")


def has_divided_paragraphs(text: str, *, num_paragraphs: int) -> bool:
    """Exactly so many paragraphs, divided by `***`; a divider before the first or after the last is allowed."""
    parts = [part.strip() for part in _DIVIDER.split(text)]
    if parts and not parts[0]:
        parts = parts[1:]
    if parts and not parts[-1]:
        parts = parts[:-1]
    return all(parts) and len(parts) == num_paragraphs


def has_placeholders(text: str, *, num_placeholders: int) -> bool:
    """At least so many `[placeholders]` on one line each, none of them empty."""
    return len(_PLACEHOLDER.findall(text)) >= num_placeholders


def has_postscript(text: str, *, postscript_marker: str) -> bool:
    """A postscript with its marker, and something after it."""
    letters = re.sub(r"[^a-z]", "", postscript_marker.casefold())
    if letters in ("ps", "pps"):
        pattern = r"\.\s?".join(letters) + r"\.?[\s:]*\w"
        return re.search(rf"(?<!\w){pattern}", text.casefold()) is not None
    _, marker, rest = text.casefold().rpartition(postscript_marker.strip().casefold())
    return bool(marker) and any(character.isalnum() for character in rest)


def has_bullets(text: str, *, num_bullets: int) -> bool:
    """Exactly so many bullet points, lines that begin with `*` or `-`; rules and bold text are none."""
    return sum(_is_bullet(line.strip()) for line in text.splitlines()) == num_bullets


def is_constrained(text: str) -> bool:
    """Says one of "My answer is yes.", "My answer is no.", "My answer is maybe.", and not two of them."""
    folded = text.casefold()
    return sum(answer in folded for answer in _ANSWERS) == 1


def has_highlights(text: str, *, num_highlights: int) -> bool:
    """At least so many `*highlighted*` or `**highlighted**` passages, on one line each."""
    return sum(1 for _ in _HIGHLIGHT.finditer(text)) >= num_highlights


def has_sections(text: str, *, section_spliter: str, num_sections: int) -> bool:
    """At least so many sections, whose lines begin with the mark and a number of their own."""
    mark = re.escape(section_spliter.strip())
    numbers = re.findall(rf"^[ \t#*_>-]*{mark}[ \t]?(\d{{1,9}})", text, re.MULTILINE)
    return len(set(numbers)) >= num_sections


def is_json(text: str) -> bool:
    """The whole response is one JSON value, in a fence or not."""
    fenced = _FENCED.fullmatch(text.strip())
    try:
        json.loads(fenced[1] if fenced else text)
    except (ValueError, RecursionError):
        return False
    return True


def has_title(text: str) -> bool:
    """A title on one line in double angular brackets, `<<title>>`."""
    for line in text.splitlines():
        _, opening, rest = line.partition("<<")
        title, closing, _ = rest.rpartition(">>")
        if opening and closing and title.strip("<> \t"):
            return True
    return False


def has_two_responses(text: str) -> bool:
    """Two different responses, divided by `******`; a divider before the first or after the second is allowed."""
    parts = [part.strip() for part in text.split(_RESPONSE_DIVIDER)]
    said = [part for part in parts if part]
    inner_gap = any(not part for part in parts[1:-1])
    return not inner_gap and len(said) == 2 and said[0] != said[1]


def repeats_prompt(text: str, *, prompt_to_repeat: str) -> bool:
    """Begins with the prompt, word for word, in any case, and goes on."""
    wanted, said = prompt_to_repeat.strip().casefold(), text.strip().casefold()
    return said.startswith(wanted) and any(character.isalnum() for character in said[len(wanted) :])


def ends_with(text: str, *, end_phrase: str) -> bool:
    """Ends with the phrase, in any case, whatever quotation marks stand around the response."""
    return text.strip().strip('"“”').strip().casefold().endswith(end_phrase.strip().casefold())


def is_quoted(text: str) -> bool:
    """The whole response stands in double quotation marks."""
    stripped = text.strip()
    return len(stripped) > 2 and any(stripped.startswith(a) and stripped.endswith(b) for a, b in _QUOTES)


def _is_bullet(line: str) -> bool:
    if line.startswith("*"):
        return len(line) > 1 and not line.startswith("**")
    return line.startswith("-") and line.strip("- ") != ""
