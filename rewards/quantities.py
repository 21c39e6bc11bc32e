r"""Numbers with units at the end of an answer: `3\text{ cm}`, `5 km/h`, `12\text{ m}^2`, `18 dollars`.

math-verify drops units, so that 3 cm is 3 m. Here two known units of one dimension are converted, two of different
dimensions differ, and a unit on one side alone is dropped, since references often leave it out.
"""

import re
from dataclasses import dataclass
from fractions import Fraction

_DIMENSIONS: dict[str, dict[str, str]] = {
    "length": {
        "m": "m meter meters metre metres",
        "1/100 m": "cm centimeter centimeters centimetre centimetres",
        "1/1000 m": "mm millimeter millimeters millimetre millimetres",
        "1000 m": "km kilometer kilometers kilometre kilometres",
        "254/10000 m": "inch inches",
        "3048/10000 m": "ft foot feet",
        "9144/10000 m": "yd yard yards",
        "1609344/1000 m": "mi mile miles",
    },
    "mass": {
        "kg": "kg kilogram kilograms",
        "1/1000 kg": "g gram grams",
        "1/1000000 kg": "mg milligram milligrams",
        "45359237/100000000 kg": "lb lbs pound pounds",
        "28349523125/1000000000000 kg": "oz ounce ounces",
    },
    "time": {
        "s": "s sec secs second seconds",
        "60 s": "min mins minute minutes",
        "3600 s": "h hr hrs hour hours",
        "86400 s": "day days",
        "604800 s": "week weeks",
        "month": "month months",
        "year": "yr yrs year years",
    },
    "volume": {"l": "l liter liters litre litres", "1/1000 l": "ml milliliter milliliters millilitre millilitres"},
    "money": {"dollar": "dollar dollars usd", "1/100 dollar": "cent cents", "euro": "euro euros eur €"},
}
"""Factor and base of each unit, with its names. Litres stay apart from cubic metres, and pounds are a mass."""


def _table() -> dict[str, tuple[str, Fraction]]:
    table = {}
    for units in _DIMENSIONS.values():
        for size, names in units.items():
            factor, _, base = size.rpartition(" ")
            table.update(dict.fromkeys(names.split(), (base, Fraction(factor or 1))))
    return table


_UNITS = _table()
_TEXT = re.compile(r"\\(?:text|textrm|mathrm|mbox|operatorname|rm)\s*\{([^{}]*)\}")
_SPACE = re.compile(r"(?:\s|~|\\[,;:! ])+")
_FACTOR = r"[A-Za-z€]+(?:\^?\{?-?[1-9]\}?|[²³])?"
_TIMES = r"(?: ?(?:/|\*|·|\\cdot) ?| per )"
_QUANTITY = re.compile(
    rf"(?P<number>.*[\d)}}])(?P<gap> ?)(?P<power>square |cubic )?(?P<unit>{_FACTOR}(?:{_TIMES}{_FACTOR})*)"
)
_UNIT_FACTOR = re.compile(
    rf"(?P<times>{_TIMES})?(?P<name>[A-Za-z€]+)(?:\^?\{{?(?P<digit>-?[1-9])\}}?|(?P<raised>[²³]))?"
)
_POWERS = {"²": 2, "³": 3, "square ": 2, "cubic ": 3}


@dataclass(frozen=True, slots=True)
class Quantity:
    """An answer taken apart."""

    number: str
    """What stands before the unit."""
    factor: Fraction
    """How many base units one unit is."""
    dimension: tuple[tuple[str, int], ...]
    """Base units with their exponents, in alphabetical order."""


def quantity(answer: str) -> Quantity | None:
    """The answer's number and unit; None where it does not end in a unit that is known."""
    plain = _SPACE.sub(" ", _TEXT.sub(r" \1 ", answer)).strip().replace(" ^", "^")
    match = _QUANTITY.fullmatch(plain)
    if match is None or (not match["gap"] and len(match["unit"]) == 1):
        return None  # 5m may be five times m
    factor, exponents = Fraction(1), dict[str, int]()
    for part in _UNIT_FACTOR.finditer(match["unit"]):
        if part["name"] not in _UNITS:
            return None
        base, size = _UNITS[part["name"]]
        exponent = int(part["digit"] or _POWERS.get(part["raised"] or match["power"], 1))
        if "/" in (part["times"] or "") or "per" in (part["times"] or ""):
            exponent = -exponent
        factor *= size**exponent
        exponents[base] = exponents.get(base, 0) + exponent
    return Quantity(match["number"], factor, tuple(sorted(exponents.items())))


def without_units(gold: str, given: str) -> tuple[str, str] | None:
    """The two answers as numbers in one unit, the gold one's; None where their dimensions differ.

    What ends in no known unit stays as it is.
    """
    wanted, got = quantity(gold), quantity(given)
    if wanted is None or got is None:
        return (wanted.number if wanted else gold), (got.number if got else given)
    if wanted.dimension != got.dimension:
        return None
    ratio = got.factor / wanted.factor
    if ratio == 1:
        return wanted.number, got.number
    return wanted.number, rf"({got.number}) \cdot \frac{{{ratio.numerator}}}{{{ratio.denominator}}}"
