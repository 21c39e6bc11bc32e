r"""Numbers as answers write them, read exactly: decimals, fractions, mixed numbers, powers of ten, percentages.

Most answers in RL are such numbers. Reading them takes microseconds; a computer algebra system takes milliseconds.
"""

import re
from fractions import Fraction

TOLERANCE = Fraction(1, 2_000_000)
"""Decimals that agree to six places are equal, as in math-verify,"""
RELATIVE_TOLERANCE = Fraction(1, 1000)
"""unless they are so small that this says nothing: 0.0000001 is not 0."""

MAX_CHARS = 1000
"""A longer text is not read: Python refuses integers of more than 4300 digits."""

_DECIMAL = r"(?:\d+\.?\d*|\.\d+)"
_LATEX_FRACTION = r"\\[dt]?frac\s*(?:\{\s*-?\d+\s*\}\s*\{\s*\d+\s*\}|\d\s*\d)"
_NUMBER = re.compile(rf"[+-]?{_DECIMAL}(?:[eE][+-]?\d{{1,3}})?")
_POWER_OF_TEN = re.compile(
    rf"([+-]?)(?:({_DECIMAL})\s*(?:\\times|\\cdot|\*)\s*)?10\s*\^\s*(?:\{{\s*([+-]?\d{{1,3}})\s*\}}|(\d))"
)
_FRACTION = re.compile(rf"([+-]?)\s*({_LATEX_FRACTION}|\d+\s*/\s*\d+)")
_MIXED = re.compile(rf"([+-]?)\s*(\d+)\s*({_LATEX_FRACTION}|(?<=\s)\d+/\d+)")
_INTEGER = re.compile(r"-?\d+")
_PERCENT = re.compile(r"(.*[^\s\\])\s*(?:\\?%|\bper ?cent|\\text\{\s*per ?cent\s*\})", re.DOTALL)

_GROUPED = re.compile(r"[+-]?\d{1,3}(?:(?:,|\{,\}|\\[,!]|\\;)\d{3})+(?:\.\d*)?")
_GROUP_MARK = re.compile(r",|\{,\}|\\[,!;]")


def exact_number(answer: str) -> Fraction | None:
    r"""The number that the whole text writes (`2.50`, `1e3`, `3/4`, `\frac12`, `1 1/2`, `1.2\times10^5`), or None."""
    if len(answer) > MAX_CHARS:
        return None
    if _NUMBER.fullmatch(answer):
        return Fraction(answer)
    if match := _POWER_OF_TEN.fullmatch(answer):
        return Fraction(f"{match[1]}{match[2] or 1}") * Fraction(10) ** int(match[3] or match[4])
    if match := _FRACTION.fullmatch(answer):
        part = _fraction(match[2])
        return -part if part is not None and match[1] == "-" else part
    if match := _MIXED.fullmatch(answer):
        part = _fraction(match[3])
        whole = None if part is None or part < 0 else int(match[2]) + part
        return -whole if whole is not None and match[1] == "-" else whole
    return None


def ungrouped(answer: str) -> str:
    r"""The answer without thousands separators, where all of it is one number: in `(1,234)` the comma may separate."""
    return _GROUP_MARK.sub("", answer) if _GROUPED.fullmatch(answer) else answer


def same_number(first: str, second: str) -> bool | None:
    """Whether two texts write the same number, to six decimals; None where one of them is no number.

    10% is 0.1, and 10 as well: "what percentage" is answered either way. Two percentages are compared as such.
    """
    rate, other_rate = _PERCENT.fullmatch(first), _PERCENT.fullmatch(second)
    number, other = (exact_number(match[1] if match else text) for match, text in ((rate, first), (other_rate, second)))
    if number is None or other is None:
        return None
    if _near(number, other):
        return True
    if rate is None and other_rate is not None:
        return _near(number, other / 100)
    return _near(number / 100, other) if rate is not None and other_rate is None else False


def _near(number: Fraction, other: Fraction) -> bool:
    if number.denominator == 1 and other.denominator == 1:
        return number == other
    difference = abs(number - other)
    return difference <= min(TOLERANCE, max(abs(number), abs(other)) * RELATIVE_TOLERANCE)


def _fraction(text: str) -> Fraction | None:
    r"""`\frac{3}{4}`, `\frac34` or `3/4`; None where it divides by zero."""
    numbers = _INTEGER.findall(text)
    numerator, denominator = numbers if len(numbers) == 2 else numbers[0]  # \frac34: one number of two digits
    return Fraction(int(numerator), int(denominator)) if int(denominator) else None
