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
_SPACE = r"(?:\s|~|\\[,;:! ])"
_TEXT = re.compile(r"\\(?:text|mathrm|textrm|mbox|operatorname|rm)\s*\{([^{}]*)\}")
_QUANTITY = re.compile(rf"(?P<number>.*?[\d)}}.])(?P<gap>{_SPACE}*+)(?P<unit>[A-Za-z€][A-Za-z€./^{{}}\d² ³·*-]{{0,40}})", re.DOTALL)
_FACTOR = re.compile(r"([A-Za-z€]+)(?:\^\{?(-?\d)\}?|([²³]))?")
_RAISED = {"²": 2, "³": 3}


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
    plain = _TEXT.sub(r" \1", answer).strip()
    if not plain or not (plain[-1].isalnum() or plain[-1] in "}€²³.)"):
        return None
    match = _QUANTITY.fullmatch(plain.removesuffix("."))
    if match is None or (not match["gap"] and len(re.match(r"[A-Za-z€]*", match["unit"])[0]) == 1):
        return None  # 5m may be five times m
    unit = _unit(match["unit"])
    return None if unit is None else Quantity(match["number"].strip(), *unit)
