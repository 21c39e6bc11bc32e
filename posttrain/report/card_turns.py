"""The turns of an episode's card: what the policy said, the tools it called, and what the environment answered."""

import json
from collections.abc import Callable, Sequence
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
_MAX_TURN_CHARACTERS = 40_000
"""Of all turns of a card."""
_MAX_TURNS = 40
_MAX_CALLS = 60
"""Of one card: a policy may call tools until it is stopped, and 96 of these make a page."""


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
    num_left_out: int
    """Calls that the card has no room for."""
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


class _Room:
    """What a card has left for its turns."""

    def __init__(self) -> None:
        self.characters, self.calls = _MAX_TURN_CHARACTERS, _MAX_CALLS

    def take(self, text: str) -> str:
        shown = _cut(text, min(self.characters, _MAX_CHARACTERS))
        self.characters -= min(len(text), self.characters, _MAX_CHARACTERS)
        return shown


def card_turns(row: Row, images: Sequence[Shown], *, is_coloured: bool) -> list[Turn]:
    """As many turns as a card may have; tolerant of keys that are missing or oddly typed."""
    advantage, room = as_number(row.get("advantage")), _Room()
    turns: list[Turn] = []
    for raw in turn_rows(row)[:_MAX_TURNS]:
        tokens = card_tokens(raw.get("tokens"), advantage) if is_coloured else []
        turns.append(_turn(raw, tokens, images, room))
    return turns


def card_messages(raw: Any, images: Sequence[Shown]) -> list[Message]:
    """Messages with the images that they show."""
    return [_message(message, images, shortened) for message in _dicts(raw)]


def indices(message: Row) -> list[int]:
    """Which images a recorded message shows."""
    found = message.get("images")
    whole = [i for i in found if isinstance(i, int) and not isinstance(i, bool)] if isinstance(found, list) else []
    return [i for i in whole if i >= 0]


def shortened(text: str) -> str:
    return _cut(text, _MAX_CHARACTERS)


def _cut(text: str, limit: int) -> str:
    rest = len(text) - limit
    return text if rest <= 0 else f"{text[:limit]} … ({rest:,} more characters)"


def _turn(raw: Row, tokens: Sequence[Token], images: Sequence[Shown], room: _Room) -> Turn:
    text = "" if tokens else room.take(str(raw.get("text") or ""))
    rows, answers = _dicts(raw.get("calls")), _dicts(raw.get("observation"))
    is_paired = answers_in_order(len(answers), [bool(call.get("error")) for call in rows])
    calls: list[Call] = []
    for place, call in enumerate(rows[: room.calls]):
        answer = _message(answers[place], images, room.take) if is_paired and place < len(answers) else None
        calls.append(_call(call, answer, room))
    room.calls -= len(calls)
    seconds = as_number(raw.get("seconds"))
    return Turn(
        text=text,
        tokens=tokens,
        calls=calls,
        num_left_out=len(rows) - len(calls),
        observation=[] if is_paired else [_message(answer, images, room.take) for answer in answers],
        seconds=numerals.seconds(seconds) if seconds and (rows or answers) else "",
    )


def _message(raw: Row, images: Sequence[Shown], take: Callable[[str], str]) -> Message:
    return Message(
        role=str(raw.get("role", "")),
        text=take(str(raw.get("text") or "")),
        images=[images[i] for i in indices(raw) if i < len(images)],
    )


def _call(raw: Row, answer: Message | None, room: _Room) -> Call:
    arguments, error = raw.get("arguments"), str(raw.get("error") or "")
    pairs = arguments.items() if isinstance(arguments, dict) else ()
    return Call(
        name=shortened(str(raw.get("name") or "")),
        arguments=[(str(name), room.take(_written(value))) for name, value in pairs],
        error=room.take(error),
        says_error=bool(error) and (answer is None or error not in answer.text),
        answer=answer,
    )


def _written(value: Any) -> str:
    """Texts as they are, such as the lines of a program; the rest as JSON."""
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _dicts(raw: Any) -> list[Row]:
    return [item for item in raw if isinstance(item, dict)] if isinstance(raw, list) else []
