"""The policy's tokens on a card, coloured by one of the numbers that were recorded of them; the page chooses which."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.report.numerals import as_number, number
from posttrain.report.run_folder import Row

_MAX_CARD_TOKENS = 2_000
"""Coloured tokens of one card; a longer trajectory is shown as plain text."""
_MAX_PAGE_TOKENS = 20_000
_TOP = 7
"""Levels go from 0, no colour, to this."""
_FULL_NATS = 5.0
"""A token of this much surprise (-logprob) or more gets the strongest colour."""
_FULL_ADVANTAGE = 2.0
"""Advantages are in standard deviations of a group, or near to that."""
_GAP_DECADES = 3
"""From a thousandth of a nat, which is rounding, to one nat."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """One number that tokens can be coloured by. Its marks are its letter and a level: `g7` for a gate of 0."""

    name: str
    """Its key in a row's tokens."""
    letter: str
    title: str
    low: str
    high: str
    """What no colour and the strongest one mean."""


SCALES = (
    Scale(name="gate", letter="g", title="gate weight", low="1", high="0"),
    Scale(name="logprob", letter="l", title="log-probability", low="0", high="−5 nats"),
    Scale(name="gap", letter="p", title="gap between rollout and trainer", low="0.001", high="1 nat"),
    Scale(name="teacher", letter="t", title="divergence from the teacher", low="0.01", high="5 nats"),
    Scale(name="advantage", letter="a", title="advantage", low="−2", high="+2"),
)
"""In the order in which the page prefers them. An advantage below 0 is marked `n`, one above `a`."""
_WORSE = "n"


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token of the policy."""

    text: str
    marks: str
    """Classes of the style sheet, one for each number that is worth a colour."""
    title: str
    """What the pointer reads out."""


def has_tokens(row: Row) -> bool:
    """Whether any were recorded."""
    return any(_lists(row))


def within_budget(rows: Iterable[Row]) -> set[int]:
    """`id` of each row, the most important first, whose tokens the page can afford."""
    spent = 0
    affordable: set[int] = set()
    for row in rows:
        count = sum(len(tokens) for tokens in _lists(row))
        if 0 < count <= _MAX_CARD_TOKENS and spent + count <= _MAX_PAGE_TOKENS:
            spent += count
            affordable.add(id(row))
    return affordable


def token_scales(row: Row) -> list[str]:
    """Names of the scales on which some token of the trajectory has a place."""
    tokens = [t for tokens in _lists(row) for t in tokens if isinstance(t, dict)]
    found = {s.name for s in SCALES if any(as_number(t.get(s.name)) is not None for t in tokens)}
    if tokens and as_number(row.get("advantage")):
        found.add("advantage")
    return [s.name for s in SCALES if s.name in found]


def coloured_frac(tokens: Sequence[Token], scale: Scale) -> float:
    """Share of the tokens that this number gives a colour; 0 where there are none."""
    letters = (scale.letter, _WORSE) if scale.name == "advantage" else (scale.letter,)
    coloured = sum(any(mark.startswith(letters) for mark in token.marks.split()) for token in tokens)
    return coloured / max(1, len(tokens))


def card_tokens(raw: Any, advantage: float | None) -> list[Token]:
    """Tokens of one turn. Empty where none were recorded. `advantage`: of those that have none of their own."""
    if not isinstance(raw, list) or not all(isinstance(t, dict) for t in raw):
        return []
    return [_token(t, advantage) for t in raw]


def _lists(row: Row) -> list[Sequence[Any]]:
    turns = row.get("turns")
    holders = [row, *(t for t in turns if isinstance(t, dict))] if isinstance(turns, list) else [row]
    return [tokens for holder in holders if isinstance(tokens := holder.get("tokens"), list)]


def _token(raw: Mapping[str, Any], advantage: float | None) -> Token:
    values = {s.name: as_number(raw.get(s.name)) for s in SCALES}
    facts = [f"{s.name} {number(value)}" for s in SCALES if (value := values[s.name]) is not None]
    if values["advantage"] is None:
        values["advantage"] = advantage
    marks = [_mark(s, value) for s in SCALES if (value := values[s.name]) is not None]
    return Token(text=str(raw.get("text", "")), marks=" ".join(filter(None, marks)), title=", ".join(facts))


def _mark(scale: Scale, value: float) -> str:
    share = _SHARES[scale.name](value)
    level = min(max(math.ceil(share * _TOP - 0.02), 0), _TOP)
    letter = _WORSE if scale.name == "advantage" and value < 0 else scale.letter
    return f"{letter}{level}" if level else ""


_SHARES: Mapping[str, Callable[[float], float]] = {
    "gate": lambda gate: 1 - gate,
    "logprob": lambda logprob: -logprob / _FULL_NATS,
    "gap": lambda gap: 1 + math.log10(gap) / _GAP_DECADES if gap > 0 else 0.0,
    "teacher": lambda nats: 1 + math.log(nats / _FULL_NATS) / math.log(500) if nats > 0 else 0.0,
    "advantage": lambda advantage: abs(advantage) / _FULL_ADVANTAGE,
}
"""How much of the strongest colour a number earns; beyond 0..1 it is cut off."""
