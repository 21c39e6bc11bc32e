r"""Numbers as people state them: digits with signs and separators, fractions, percents, words, Chinese numerals.

An answer states a number only where it states one. `3 or 4`, `3-4`, `not 3`, `at least 3`, `3!`, `3\pi` and `½` state
none, nor do `over 3`, `3 plus` and `不止3个`: a reward must not pay for a hedge, nor for a digit that stands in
something else.
"""

import re
import unicodedata
from collections.abc import Callable
from fractions import Fraction
from typing import Literal

from .number_words import (
    ENGLISH_NUMBER,
    HAN_DIGITS,
    HAN_NUMBER,
    HAN_SCALES,
    MEASURES,
    NUMBER_WORDS,
    SCALE_WORDS,
    TENS_WORDS,
    english_number,
    han_number,
)

Percent = Literal["fraction", "ignore"]

MAX_CHARS = 1000
"""A longer text states no number."""
MAX_EXPONENT = 400
"""1e999999999, written out, would fill the memory; a float's exponent stays below this."""

_SCALES = {**SCALE_WORDS, **HAN_SCALES, "百": 2}
_HAN, _HAN_UNITS = "".join(HAN_DIGITS), "十百千万萬亿億"
_HAN_OR_DIGIT = rf"\d{_HAN}{_HAN_UNITS}"
_FORMAT_OR_SPACE = str.maketrans(
    {"−": "-", "–": "-", "－": "-", "＋": "+", "．": ".", "，": ",", "％": "%", "：": ":", "／": "/", "\u00a0": " "}
    | dict.fromkeys("\u2009\u202f", " ")
)
# patterns stay text: `re` compiles each when it is first used, and not when rewards are imported
_LATEX = (
    (r"\\[dt]?frac\s*\{(\d{1,20})\}\s*\{(\d{1,20})\}", r" \1/\2"),
    (r"\\(?:text|textbf|mathrm|mathbf)\s*\{([^{}]*)\}", r" \1 "),
    (r"\\[,!;]|\{,\}(?=\d)", lambda match: "," if match[0] == "{,}" else ""),
    (r"\^?\{?\\(?:circ|degree)\}?", " "),
    (r"\\([%$])", r"\1"),
    (r"\*\*([^*]+)\*\*", r"\1"),
    (r"(?<=[A-Za-zµμ])(?:[²³]|\^\{?[23]\}?)", ""),  # cm², m^3: part of a unit
    (r"([+-]?)\s?[$€£¥₹]\s?(?=[+-]?[\d.])", r" \1"),
    (r"[$€£¥₹]", " "),
)
_NUMBER = (
    r"(?<![A-Za-z0-9_.])"  # inside a name, or inside another number
    r"(?:(?P<sign>(?<![)\]%])[+-])\s?)?"
    r"(?P<digits>\d{1,3}(?:([,' _])\d{3})(?:\3\d{3})*(?:\.\d+)?|\d+(?:\.\d+)?|\.\d+)(?!\d|\.\d)"
    r"(?P<exponent>[eE][+-]?\d+)?"
    r"(?:\s?/\s?(?P<below>\d+)(?!\s?/|\.?\d))?"
    r"(?P<percent>\s?(?:%|per\s?cent\b))?"
)
_SCALE = rf"(?i)\s?({'|'.join(_SCALES)})s?(?![A-Za-z])"
_MINUS_WORD = r"(?i)\b(?:minus|negative)\s+\Z"
_UNCLEAR = (
    "(?i)"
    r"n't\b|n’t\b|\b(?:not|never|neither|nor|or|at least|at most|up to|more than|less than|fewer than|between|plus)\b"
    r"|\b(?:over|under|above|below|beyond|exceed(?:s|ed|ing)?)\s+"
    rf"(?=[\d.]|a (?:hundred|thousand|million)\b|(?:{'|'.join((*NUMBER_WORDS, *TENS_WORDS))})\b)"
    r"|\band (?:above|below|over|under|up|more|fewer|less)\b"
    r"|\b(?:half|halves|dozens?|(?:a|one|two|three)[ -](?:third|quarter|fifth|tenth)s?)\b"
    r"|\d\s?!|(?-i:\d[kKMB]\b)|不是|不到|至少|至多|最多|最少|超过|超過|[多少大小高低][于於]|或|半"
    rf"|(?:不[止只足满滿]|未[满滿]|[没沒]有|无|無)\s*(?=[{_HAN_OR_DIGIT}])"
    rf"|(?<=[{_HAN_OR_DIGIT}{MEASURES}])\s*(?:及)?以[上下内內]"
    rf"|(?<=[{_HAN_OR_DIGIT}])\s*[多余餘几幾](?=[{MEASURES}])"
    rf"|\d\s?[{_HAN_UNITS}]+[{_HAN}]|\d\s?[十千](?=[{MEASURES}]|\Z)"  # 3万5千: half in digits, half in words
)
"""Hedges, negations, and what changes a number beside it: 5 and a half, 5!, 5k."""
_OPERATORS = frozenset("+*^√∞π×·÷<>≤≥±≠\\{}|")


def stated_number(
    answer: str, *, percent: Percent = "fraction", decimal_mark: Literal[".", ","] = "."
) -> Fraction | None:
    """The one number that the answer states, exactly; None where it states none, several, or hedges.

    Words and units around it do not matter, and the same number may be said twice: `three (3) cats`. After `=` only
    what follows the last one counts. `percent` says whether `5%` is 1/20 or 5. Where `decimal_mark` is a comma,
    commas and points change places. Whole numbers may be words, Chinese ones where a measure word follows or the answer
    ends; `hundred` to `trillion` multiply digits too.
    """
    if len(answer) > MAX_CHARS:
        return None
    text = _plain_digits(answer)
    if decimal_mark == ",":
        text = text.translate({ord(","): ".", ord("."): ","})
    for pattern, replacement in _LATEX:
        text = re.sub(pattern, replacement, text)
    text = re.split("[=≈]", text)[-1].strip().strip("*_").strip()
    if re.search(_UNCLEAR, text) or any(_is_odd_numeral(character) for character in text):
        return None
    values, rest = _candidates(text, percent)
    if len(values) != 1 or any(character in _OPERATORS for character in rest):
        return None
    return values.pop()


def _candidates(text: str, percent: Percent) -> tuple[set[Fraction], str]:
    """Every different number in the text, and what the text says beside them; no number where one is unreadable."""
    values: set[Fraction] = set()
    rest: list[str] = []
    position = 0
    for match in sorted((m for pattern in _VALUES for m in re.finditer(pattern, text)), key=re.Match.start):
        value = _VALUES[match.re.pattern](match)
        if value is None:
            return set(), text
        end = match.end()
        while scale := re.match(_SCALE, text[end:]):
            value, end = value * 10 ** _SCALES[scale[1].lower()], end + scale.end()
        before = text[position : match.start()]
        if re.search(_MINUS_WORD, before):
            value = -value
        if match.groupdict().get("percent") and percent == "fraction":
            value /= 100
        values.add(value)
        rest.append(before)
        position = end
    return values, "".join(rest) + text[position:]


def _digits_value(match: re.Match[str]) -> Fraction | None:
    exponent, below = match["exponent"] or "", match["below"]
    if abs(int(exponent[1:] or 0)) > MAX_EXPONENT or (below is not None and not int(below)):
        return None
    value = Fraction(re.sub("[,' _]", "", match["digits"]) + exponent)
    value = value / int(below) if below else value
    return -value if match["sign"] == "-" else value


def _words_value(match: re.Match[str]) -> Fraction | None:
    value = english_number(match["words"])
    return None if value is None else Fraction(value)


def _han_value(match: re.Match[str]) -> Fraction | None:
    value = han_number(match["han"])
    return None if value is None else Fraction(value)


_VALUES: dict[str, Callable[[re.Match[str]], Fraction | None]] = {
    _NUMBER: _digits_value,
    ENGLISH_NUMBER: _words_value,
    HAN_NUMBER: _han_value,
}


def _plain_digits(text: str) -> str:
    """Decimal digits of every script as 0-9, typographic signs as ASCII, invisible format characters left out."""
    return "".join(
        str(unicodedata.decimal(character)) if character.isdecimal() else character
        for character in text.translate(_FORMAT_OR_SPACE)
        if unicodedata.category(character) != "Cf"
    )


def _is_odd_numeral(character: str) -> bool:
    """½, ², Ⅻ, ①: numerals that are no decimal digits, and read wrong where they are left out."""
    return character.isnumeric() and not character.isdecimal() and unicodedata.category(character) in ("No", "Nl")
