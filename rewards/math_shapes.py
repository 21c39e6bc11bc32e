r"""Answers of several parts: pairs, intervals, sets, lists and matrices, told apart and compared part by part.

Where every part is a number, this decides in microseconds; a grammar for LaTeX takes a twentieth of a second to read.
"""

import re
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Literal

from .exact_numbers import exact_number

Shape = Literal["ordered", "set", "list", "matrix", "single"]
Same = Callable[[str, str], bool | None]
"""Whether two parts are equal; None where that is not known."""

_MATRIX = re.compile(r"\\begin\{([pb]?matrix)\}(.*)\\end\{\1\}", re.DOTALL)


def align(gold: str, given: str) -> str | None:
    r"""The given answer in a notation that algebra compares with the gold one; None where it is of another kind.

    math-verify takes `(1,2)`, `\{1,2\}` and `1,2` for the same. An ordered pair or interval is not a set; a bare list
    stands for either, and takes the gold's brackets so that its order counts where the gold's does.
    """
    wanted, got = shape(gold), shape(given)
    if {wanted, got} == {"ordered", "set"}:
        return None
    if wanted == "ordered" and got == "list":
        return f"{gold[0]}{given}{gold[-1]}"
    return given


def shape(answer: str) -> Shape:
    r"""`(a, b)` or `[a, b)` is ordered, `\{a, b\}` a set, `a, b` a list, and anything without a comma single."""
    if _MATRIX.fullmatch(answer):
        return "matrix"
    depth, top_level, inside, closed_early = 0, False, False, False
    text = answer.replace(r"\{", "{").replace(r"\}", "}").strip()
    for position, character in enumerate(text):
        if character in "([{":
            depth += 1
        elif character in ")]}":
            depth -= 1
            closed_early |= depth == 0 and position < len(text) - 1
        elif character == "," and depth <= 1:
            top_level |= depth == 0
            inside |= depth == 1
    if top_level:
        return "list"
    if not inside or closed_early or not text:
        return "single"
    if text[0] in "([" and text[-1] in ")]":
        return "ordered"
    return "set" if text[0] == "{" and text[-1] == "}" else "single"


def same_parts(gold: str, given: str, same: Same) -> bool | None:
    """Whether two answers of one shape have the same parts; None for other shapes, and where `same` leaves it open.

    The order of parts counts in pairs, intervals and matrices; in sets and lists neither it nor repetition does.
    """
    wanted, got = shape(gold), shape(given)
    if wanted == got == "matrix":
        return _same_rows(_rows(gold), _rows(given), same)
    if wanted == got == "ordered":
        first, second = parts(gold[1:-1]), parts(given[1:-1])
        for side, place in ((gold[0] == given[0], 0), (gold[-1] == given[-1], -1)):
            if not side:  # at infinity a bracket means nothing
                return False if exact_number(first[place]) is not None else None
        return _all_same(first, second, same)
    if wanted in ("set", "list") and got in ("set", "list"):
        first, second = _members(gold), _members(given)
        return _and(_all_within(first, second, same), _all_within(second, first, lambda a, b: same(b, a)))
    return None


def _same_rows(gold: list[list[str]], given: list[list[str]], same: Same) -> bool | None:
    if [len(row) for row in gold] != [len(row) for row in given]:
        return False
    return _all_same([*chain(*gold)], [*chain(*given)], same)


def _all_same(gold: Sequence[str], given: Sequence[str], same: Same) -> bool | None:
    if len(gold) != len(given):
        return False
    return _and(*(same(a, b) for a, b in zip(gold, given, strict=True)))


def _all_within(first: Sequence[str], second: Sequence[str], same: Same) -> bool | None:
    """Whether each part of `first` is one of `second`."""
    return _and(*(_or(*(same(a, b) for b in second)) for a in first))


def _and(*verdicts: bool | None) -> bool | None:
    return False if False in verdicts else None if None in verdicts else True


def _or(*verdicts: bool | None) -> bool | None:
    return True if True in verdicts else None if None in verdicts else False


def _rows(matrix: str) -> list[list[str]]:
    match = _MATRIX.fullmatch(matrix)
    rows = re.split(r"\\\\", match[2]) if match else []
    return [[entry.strip() for entry in row.split("&")] for row in rows if row.strip()]


def _members(answer: str) -> list[str]:
    text = answer.strip()
    return parts(text.removeprefix(r"\{").removesuffix(r"\}") if text.startswith(r"\{") else text)


def parts(text: str) -> list[str]:
    """What the commas outside of any bracket separate, stripped."""
    found, depth, start = [], 0, 0
    for position, character in enumerate(text):
        depth += (character in "([{") - (character in ")]}")
        if character == "," and depth == 0:
            found.append(text[start:position].strip())
            start = position + 1
    return [*found, text[start:].strip()]
