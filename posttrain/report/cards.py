"""Chooses which recorded trajectories a page shows, and turns each into what its card needs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from posttrain.report.card_images import Shown, shown_images
from posttrain.report.card_tokens import Token, card_tokens, has_tokens, token_scales
from posttrain.report.card_turns import (
    Message,
    Turn,
    call_rows,
    card_messages,
    card_turns,
    indices,
    shortened,
    turn_rows,
)
from posttrain.report.numerals import as_number, change, number
from posttrain.report.pictures import Album
from posttrain.report.run_folder import Row, Stage, read_trajectories


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One component of a reward; `fill` is its bar's length in per cent, None outside 0..1."""

    name: str
    value: str
    fill: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One trajectory."""

    key: str
    """Unique in the page: its links begin with it."""
    stage: str
    stage_index: int
    step: int
    task: str
    example: str
    status: str
    error: str
    """Why it has no score, or which limit cut it short."""
    reward: float | None
    reward_text: str
    advantage: str
    advantage_sign: int
    reason: str
    messages: Sequence[Message]
    """The prompt, or what the environment showed first."""
    completion: str
    tokens: Sequence[Token]
    """Of a single turn; empty where none were recorded or the page cannot afford them."""
    turns: Sequence[Turn]
    """Of an episode with an environment."""
    num_turns: int
    num_calls: int
    num_failed: int
    scales: Sequence[str]
    """Names of the numbers that its tokens can be coloured by."""
    is_plain: bool
    """True where tokens were recorded that the page does not colour."""
    tools: str
    """Names of those that were offered."""
    parts: Sequence[Part]
    reference: Sequence[tuple[str, str]]
    images: Sequence[Shown]
    """Those of the prompt; the others stand in the turns that they answered."""
    crops: Sequence[Shown]
    """Those that calls cut from others, and that the page has."""


def chosen_rows(stage: Stage, limit: int) -> list[Row]:
    """At most `limit` of the stage's trajectories: whole steps, evenly spread over the stage, its last among them."""
    by_step: dict[int, list[int]] = {}
    for line, step in stage.trajectory_steps:
        by_step.setdefault(step, []).append(line)
    steps = list(by_step)
    a_step = max(1, math.ceil(len(stage.trajectory_steps) / max(1, len(steps))))
    count = min(len(steps), max(1, limit // a_step))
    picked = [steps[round(k * (len(steps) - 1) / (count - 1))] for k in range(count)] if count > 1 else steps[-1:]
    lines = [line for step in dict.fromkeys(picked) for line in by_step[step]]
    return read_trajectories(stage, lines[:limit])


def card(stage: Stage, stage_index: int, place: int, row: Row, album: Album, *, is_coloured: bool) -> Card:
    """The row's card, the `place`-th of its stage; tolerant of keys that are missing or oddly typed.

    A report must open on any run.
    """
    reward, advantage = as_number(row.get("reward")), as_number(row.get("advantage"))
    parts, reference, tools = row.get("parts"), row.get("reference"), row.get("tools")
    images, calls = shown_images(stage, row, album), call_rows(row)
    answered = {i for turn in turn_rows(row) for m in _dicts(turn.get("observation")) for i in indices(m)}
    return Card(
        key=f"t{stage_index}-{place}",
        stage=stage.name,
        stage_index=stage_index,
        step=row["step"],
        task=str(row.get("task") or "-"),
        example=str(row.get("example") or "-"),
        status=str(row.get("status") or "finished"),
        error=shortened(str(row.get("error") or "")),
        reward=reward,
        reward_text=number(reward) if reward is not None else "unscored",
        advantage=change(advantage) if advantage is not None else "",
        advantage_sign=0 if not advantage else 1 if advantage > 0 else -1,
        reason=shortened(str(row.get("reason") or "")),
        messages=card_messages(row.get("messages"), images),
        completion=shortened(str(row.get("completion") or "")),
        tokens=card_tokens(row.get("tokens"), advantage) if is_coloured else [],
        turns=card_turns(row, images, is_coloured=is_coloured),
        num_turns=len(turn_rows(row)),
        num_calls=len(calls),
        num_failed=sum(bool(call.get("error")) for call in calls),
        scales=token_scales(row) if is_coloured else [],
        is_plain=not is_coloured and has_tokens(row),
        tools=", ".join(map(str, tools)) if isinstance(tools, list) else "",
        parts=_parts(parts) if isinstance(parts, dict) else [],
        reference=[(str(k), shortened(str(v))) for k, v in reference.items()] if isinstance(reference, dict) else [],
        images=[shown for shown in images if shown.index not in answered],
        crops=[shown for shown in images if shown.cut_from is not None and shown.picture],
    )


def _parts(raw: Mapping[Any, Any]) -> list[Part]:
    values = [(str(name), as_number(value)) for name, value in raw.items()]
    return [Part(name=name, value=number(value), fill=_fill(value)) for name, value in values]


def _fill(value: float | None) -> float | None:
    return round(100 * value, 1) if value is not None and 0 <= value <= 1 else None


def _dicts(raw: Any) -> list[Row]:
    return [item for item in raw if isinstance(item, dict)] if isinstance(raw, list) else []
