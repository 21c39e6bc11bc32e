"""Answers that name their parts: `x=2, y=3` is the pair (2, 3), and not (3, 2)."""

import re

from .math_shapes import parts, shape

_SEPARATOR = re.compile(r"\s*(?:;|，|；|且|\\text\s*\{\s*,?\s*and\s*\}|\\quad|\\qquad|,?\s*\band\b(?![^{]*\}))\s*")
_NAMED = re.compile(r"(?P<name>[A-Za-z](?:_\{?\w\}?)?|\\[a-z]+)\s*=\s*(?P<value>[^=<>]+)", re.DOTALL)
_TOGETHER = re.compile(r"\(([^()=]+)\)\s*=\s*\((.*)\)", re.DOTALL)


def as_tuples(gold: str, given: str) -> tuple[str, str] | None:
    """The two answers as tuples in one order, where one of them names its parts; None where the parts cannot match.

    A pair without names takes the order in which the other's parts stand, or that of the alphabet for x, y and z.
    Answers that name no parts, or one part several times (`x=1, x=2`), stay as they are.
    """
    wanted, got = _named(gold), _named(given)
    if wanted is not None:
        values = _tuple(list(wanted.values()))
        if got is not None:
            return (values, _tuple([got[name] for name in wanted])) if got.keys() == wanted.keys() else None
        if shape(given) not in ("ordered", "list"):
            return None
        members = parts(given[1:-1] if shape(given) == "ordered" else given)
        return (values, _tuple(members)) if len(members) == len(wanted) else None
    if got is not None and shape(gold) == "ordered":
        ordered = sorted(got) if got.keys() <= set("xyz") else list(got)
        return gold, f"{gold[0]}{','.join(got[name] for name in ordered)}{gold[-1]}"
    return gold, given


def _named(answer: str) -> dict[str, str] | None:
    """Value by name of two or more parts, in their order."""
    if match := _TOGETHER.fullmatch(answer.strip()):
        names, values = parts(match[1]), parts(match[2])
        return dict(zip(names, values, strict=True)) if len(set(names)) == len(values) == len(names) > 1 else None
    text = answer.strip()
    if shape(text) == "ordered" and text[0] == "(" and text[-1] == ")":
        text = text[1:-1]
    found = [_NAMED.fullmatch(part) for part in parts(_SEPARATOR.sub(",", text))]
    named = {match["name"]: match["value"].strip() for match in found if match}
    return named if len(named) == len(found) > 1 else None


def _tuple(values: list[str]) -> str:
    return f"({','.join(values)})"
