"""Notation that algebra ignores and that makes an answer another one: the base of a numeral, the half of the day."""

import re
from typing import NamedTuple

from .numerals import NUMBER_WORDS

_TEXT_COMMAND = re.compile(r"\\(?:text|textbf|mathrm|mathbf|rm)\s*\{([^{}]*)\}")
_NUMERAL = re.compile(
    r"(?:[A-Za-z]\s*=\s*)?(?P<digits>[0-9A-Za-z]*[0-9][0-9A-Za-z]*(?:\.[0-9A-Za-z]+)?)"
    r"(?:\s*_\s*(?:\{\s*\(?\s*(?P<braced>\d{1,2}|[a-z]+)\s*\)?\s*\}|(?P<bare>\d))"
    r"|\s*\(?\s*(?:in )?base[ -](?P<said>\d{1,2}|[a-z]+)\s*\)?)?"
)
_CLOCK = re.compile(r"(?P<hour>\d{1,2})(?:\s*:\s*(?P<minute>\d{2}))?(?:\s*(?P<half>[ap])\.?\s?m\b\.?)?", re.IGNORECASE)


class _Time(NamedTuple):
    hour: int
    minute: int
    half: str


def same_notation(gold: str, given: str) -> bool | None:
    """Whether two numerals with a base, or two times of day, are the same; None where neither is either.

    A base or a half of the day that only one side names was given by the question. Different ones differ.
    """
    based = _same_numeral(gold, given)
    return _same_time(gold, given) if based is None else based


def _same_numeral(gold: str, given: str) -> bool | None:
    wanted, got = _numeral(gold), _numeral(given)
    if wanted is None or got is None or not (wanted[1] or got[1]):
        return None
    return wanted[0] == got[0] and (wanted[1] == got[1] or not (wanted[1] and got[1]))


def _numeral(answer: str) -> tuple[str, int] | None:
    """Digits without leading zeros and base (0 where none is named); None for what is no numeral."""
    match = _NUMERAL.fullmatch(_TEXT_COMMAND.sub(r"\1", answer).strip())
    if match is None:
        return None
    name = match["braced"] or match["bare"] or match["said"] or "0"
    base = int(name) if name.isdigit() else {**NUMBER_WORDS, "hexadecimal": 16}.get(name, -1)
    digits = match["digits"].upper().lstrip("0") or "0"
    if base < 0 or base == 1 or (base and any(int(digit, 36) >= base for digit in digits if digit != ".")):
        return None  # x1_2 is a variable with an index, and 5_3 no numeral
    return digits, base


def _same_time(gold: str, given: str) -> bool | None:
    wanted, got = _time(gold), _time(given)
    if wanted is None or got is None or not (wanted.half or got.half):
        return None
    if wanted.minute != got.minute:
        return False
    if wanted.half and got.half:
        return wanted.hour % 12 == got.hour % 12 and wanted.half == got.half
    said, bare = (wanted, got) if wanted.half else (got, wanted)
    if bare.hour > 12 or bare.hour == 0:
        return bare.hour == said.hour % 12 + (12 if said.half == "p" else 0)
    return bare.hour % 12 == said.hour % 12


def _time(answer: str) -> _Time | None:
    match = _CLOCK.fullmatch(_TEXT_COMMAND.sub(r" \1", answer).strip())
    if match is None or int(match["hour"]) > (12 if match["half"] else 24) or int(match["minute"] or 0) > 59:
        return None
    return _Time(int(match["hour"]), int(match["minute"] or 0), (match["half"] or "").lower())
