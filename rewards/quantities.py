r"""Numbers with what they count at the end of an answer: `3\text{ cm}`, `5 km/h`, `\$18`, `12厘米`, `24 marbles`.

math-verify drops units, so that 3 cm is 3 m. Here known units of one dimension are converted, other units differ, and
a unit on one side alone is dropped, since references often leave it out.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

from .exact_numbers import exact_number, ungrouped
from .numerals import NUMBER_WORDS, TENS_WORDS
from .unit_words import counted, is_word
from .units import AMBIGUOUS, unit_named

_TEXT = re.compile(r"\\(?:text|textrm|textbf|textit|mathrm|mbox|operatorname|rm)\s*\{([^{}]*)\}")
_SPACE = re.compile(r"(?:\s|~|\\[,;:! ]|\\q?quad(?![A-Za-z]))+")
_DEGREE = re.compile(r" ?\^ ?(?:\{ ?\\circ ?\}|\\circ(?![A-Za-z]))|\\degree(?![A-Za-z])| degrees?(?= [CcF])")
_TEMPERATURE = re.compile(r" ?° ?(C|F)(?:elsius|ahrenheit)?(?![A-Za-z])", re.IGNORECASE)
_EXPONENT = re.compile(r"(?<=[A-Za-zµμΩ\u4e00-\u9fff]) ?\^ ?(?:\{ ?(-?[1-9]) ?\}|(-?[1-9]))")
_RAISED = str.maketrans("-123456789", "⁻¹²³⁴⁵⁶⁷⁸⁹")
_LOWERED = str.maketrans("⁻¹²³⁴⁵⁶⁷⁸⁹", "-123456789")
_SUPERSCRIPT = re.compile("⁻?[¹²³⁴⁵⁶⁷⁸⁹]")
_CURRENCY = re.compile(
    r"(?P<before>(?:[A-Za-z] ?= ?)?[+-]?) ?"
    r"(?P<mark>US ?\\?[$]|\\?[$]|[€£¥₹₩]|(?:Rs\.?|INR|USD|EUR|GBP|RMB|CNY)(?![A-Za-z])) ?"
    r"(?P<after>[+-]?[\d.\\].*)",
    re.DOTALL,
)
_NUMBER_END = re.compile(r"[\d)}\]!]|\\pi(?![A-Za-z])")
_NOTE = re.compile(r"(?P<said>.*[^\s(])\s+\((?P<note>[A-Za-z][A-Za-z .'-]+)\)", re.DOTALL)
_SCALES = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12, "万": 4, "亿": 8}
_SCALE = re.compile(rf" ?({'|'.join(_SCALES)})(?![A-Za-z])")
_COMMAND = re.compile(r"\\[A-Za-z]+")
_VARIABLE = re.compile(r"[A-Za-z] ?=(?!=)")


@dataclass(frozen=True, slots=True)
class Quantity:
    """An answer taken apart."""

    number: str
    """What stands before the unit; times a million where the answer says so."""
    factor: Fraction
    """How many base units one unit is; 1 for what is counted."""
    dimension: tuple[tuple[str, int], ...]
    """Base units with their exponents, in alphabetical order; empty for what is counted."""
    names: frozenset[str] = frozenset()
    """What is measured or counted, in the singular; empty where nothing is said."""
    is_unit: bool = True
    """Whether all of it is known units."""


def quantity(answer: str, *, attached: bool = False) -> Quantity | None:
    """The answer's number and what it is a number of; None where only a number, or something else, is said.

    A letter right behind a number is a unit only where `attached` says so: 5m may be five times m.
    """
    plain = _plain(answer)
    currency = _CURRENCY.fullmatch(plain)
    if currency:
        plain = currency["before"] + currency["after"]
    plain = _without_note(plain)
    end = max((match.end() for match in _NUMBER_END.finditer(plain)), default=0)
    number, tail = plain[:end], plain[end:]
    scale = _SCALE.match(tail)
    tail = tail[scale.end() :] if scale else tail
    in_text = bool(_TEXT.search(answer))
    if not number or (len(tail) == 1 and tail.isalpha() and tail.isascii() and not (attached or in_text)):
        return None
    found = counted(tail, any_word=in_text)
    if found is None or "\\" in tail:
        return None
    if found.unit is None and (not _is_plain(number) or (tail[0].isascii() and tail[0] not in " -" and not in_text)):
        return None
    if not (currency or scale or tail.strip()) and plain == _plain(answer):
        return None
    number = _scaled(ungrouped(_as_latex(number)), scale[1] if scale else None)
    factor, dimension = (found.unit.factor, found.unit.dimension) if found.unit else (Fraction(1), ())
    names, is_unit = found.names, found.unit is not None
    money = unit_named(currency["mark"].removeprefix("US").strip().removeprefix("\\")) if currency else None
    if money is not None and f"{money.factor} {money.dimension}" not in names:
        names |= {f"{money.factor} {money.dimension}"}
        factor, dimension = factor * money.factor, tuple(sorted((*dimension, *money.dimension)))
    return Quantity(number, factor, dimension if is_unit else (), names, is_unit)


def without_units(gold: str, given: str) -> tuple[str, str] | None:
    """The two answers as numbers in one unit, the gold one's; None where they measure or count different things.

    What ends in no unit stays as it is.
    """
    wanted, got = quantity(gold), quantity(given)
    if wanted and not got:
        got = quantity(given, attached=True)
    elif got and not wanted:
        wanted = quantity(gold, attached=True)
    numbers = (wanted.number if wanted else gold), (got.number if got else given)
    if not (wanted and got and wanted.names and got.names):
        return numbers
    if not (wanted.is_unit and got.is_unit):
        return numbers if wanted.names <= got.names or got.names <= wanted.names else None
    if wanted.dimension != got.dimension:
        bases = frozenset(base for base, _ in wanted.dimension + got.dimension)
        return numbers if bases in AMBIGUOUS else None
    ratio = got.factor / wanted.factor
    if ratio == 1:
        return numbers
    return wanted.number, rf"({got.number}) \cdot \frac{{{ratio.numerator}}}{{{ratio.denominator}}}"


def _plain(answer: str) -> str:
    """Text commands opened, one blank for every space, `°` for degrees, raised digits for the exponents of letters."""
    plain = _SPACE.sub(" ", _TEXT.sub(r" \1 ", answer)).strip()
    plain = _TEMPERATURE.sub(lambda match: f" °{match[1].upper()}", _DEGREE.sub("°", plain))
    plain = _EXPONENT.sub(lambda match: (match[1] or match[2]).translate(_RAISED), plain)
    return plain.replace(r"\cdot", "·")


def _as_latex(number: str) -> str:
    number = _SUPERSCRIPT.sub(lambda digit: f"^{{{digit[0].translate(_LOWERED)}}}", number)
    return number.replace("·", r"\cdot ").replace("°", r"^\circ").strip()


def _without_note(plain: str) -> str:
    """The answer with its remark in brackets opened: `4 (cats)` is 4 cats, and `4 (four)` says 4 twice."""
    match = _NOTE.fullmatch(plain)
    if match is None:
        return plain
    words = match["note"].casefold().replace("-", " ").split()
    values = [{**NUMBER_WORDS, **TENS_WORDS}.get(word) for word in words]
    if None not in values:
        same = exact_number(ungrouped(match["said"])) == sum(value or 0 for value in values)
        return match["said"] if same else plain
    return f"{match['said']} {match['note']}" if all(map(is_word, words)) or len(words) > 1 else plain


def _is_plain(number: str) -> bool:
    """Whether what stands before a word that is no unit is a number, and so the word no factor of a product."""
    rest = _COMMAND.sub("", _VARIABLE.sub("", number, count=1))
    return not any(character.isalpha() or character in "&|<>=_" for character in rest) and "," not in ungrouped(number)


def _scaled(number: str, scale: str | None) -> str:
    if scale is None:
        return number
    value = exact_number(number)
    times = 10 ** _SCALES[scale]
    return str(value * times) if value is not None else rf"({number}) \cdot {times}"
