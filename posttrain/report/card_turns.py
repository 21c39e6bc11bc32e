"""The turns of an episode's card: what the policy said, the tools it called, and what the environment answered."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.report import numerals
from posttrain.report.card_images import Shown
from posttrain.report.card_tokens import Token, card_tokens
from posttrain.report.numerals import as_number
from posttrain.report.recorded_row import answers_in_order
from posttrain.report.run_folder import Row

_MAX_CHARACTERS = 6_000
"""Of one text of a card; the rest is counted."""
_MAX_TURNS = 40
"""Of one card."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Message:
    """One message that the policy read."""

    role: str
    text: str
    images: Sequence[Shown]


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """One tool call, with its own answer where it is known which that is."""

    name: str
    arguments: Sequence[tuple[str, str]]
    error: str
    """Empty where it worked."""
    says_error: bool
    """False where its answer already tells the error."""
    answer: Message | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """One turn of the policy and what followed."""

    text: str
    tokens: Sequence[Token]
    calls: Sequence[Call]
    observation: Sequence[Message]
    """Messages that no single call can claim."""
    seconds: str
    """What the environment took; empty where it did nothing."""


def turn_rows(row: Row) -> list[Row]:
    """The recorded turns; empty for a trajectory without an environment."""
    turns = row.get("turns")
    return [t for t in turns if isinstance(t, dict)] if isinstance(turns, list) else []


def call_rows(row: Row) -> list[Row]:
    """All calls of the trajectory."""
    return [call for turn in turn_rows(row) for call in _dicts(turn.get("calls"))]


def card_turns(row: Row, images: Sequence[Shown], *, is_coloured: bool) -> list[Turn]:
    """At most forty turns; tolerant of keys that are missing or oddly typed."""
    advantage = as_number(row.get("advantage"))
    return [_turn(raw, images, advantage, is_coloured) for raw in turn_rows(row)[:_MAX_TURNS]]


def card_messages(raw: Any, images: Sequence[Shown]) -> list[Message]:
    """Messages with the images that they show."""
    return [
        Message(
            role=str(message.get("role", "")),
            text=shortened(str(message.get("text") or "")),
            images=[images[i] for i in indices(message) if i < len(images)],
        )
        for message in _dicts(raw)
    ]


def indices(message: Row) -> list[int]:
    """Which images a recorded message shows."""
    found = message.get("images")
    whole = [i for i in found if isinstance(i, int) and not isinstance(i, bool)] if isinstance(found, list) else []
    return [i for i in whole if i >= 0]


def shortened(text: str) -> str:
    rest = len(text) - _MAX_CHARACTERS
    return text if rest <= 0 else f"{text[:_MAX_CHARACTERS]} … ({rest:,} more characters)"


def _turn(raw: Row, images: Sequence[Shown], advantage: float | None, is_coloured: bool) -> Turn:
    calls, observation = _dicts(raw.get("calls")), card_messages(raw.get("observation"), images)
    is_paired = answers_in_order(len(observation), [bool(call.get("error")) for call in calls])
    seconds = as_number(raw.get("seconds"))
    return Turn(
        text=shortened(str(raw.get("text") or "")),
        tokens=card_tokens(raw.get("tokens"), advantage) if is_coloured else [],
        calls=[
            _call(call, observation[place] if is_paired and place < len(observation) else None)
            for place, call in enumerate(calls)
        ],
        observation=[] if is_paired else observation,
        seconds=numerals.seconds(seconds) if seconds and (calls or observation) else "",
    )


def _call(raw: Row, answer: Message | None) -> Call:
    arguments, error = raw.get("arguments"), str(raw.get("error") or "")
    return Call(
        name=str(raw.get("name") or ""),
        arguments=[(str(k), _written(v)) for k, v in arguments.items()] if isinstance(arguments, dict) else [],
        error=shortened(error),
        says_error=bool(error) and (answer is None or error not in answer.text),
        answer=answer,
    )


def _written(value: Any) -> str:
    """Texts as they are, such as the lines of a program; the rest as JSON."""
    return shortened(value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))


def _dicts(raw: Any) -> list[Row]:
    return [item for item in raw if isinstance(item, dict)] if isinstance(raw, list) else []
