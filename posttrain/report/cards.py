"""Chooses which recorded trajectories a page shows, and turns each into what its card needs."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from posttrain.report.numerals import as_number, change, number
from posttrain.report.pictures import Album, Picture
from posttrain.report.run_folder import Row, Stage, read_trajectories

_MAX_CHARACTERS = 6_000
"""Of one text of a card; the rest is counted."""
_MAX_TOKENS = 600
"""Coloured tokens of one card; a longer completion is shown as plain text."""
_NUM_SHADES = 8
_FULL_SHADE_NATS = 5.0
"""A token of this much surprise (-logprob) or more gets the strongest shade."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One box in the picture's pixels."""

    x: float
    y: float
    width: float
    height: float
    label: str
    kind: str
    """`predicted` or `reference`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One image of a prompt: the picture with its boxes, or why there is none."""

    file: str
    picture: Picture | None
    problem: str
    boxes: Sequence[Box]


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token of the policy: its text, how strongly it is shaded (0-7), and what the pointer reads out."""

    text: str
    shade: int
    title: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """One component of a reward; `fill` is its bar's length in per cent, None outside 0..1."""

    name: str
    value: str
    fill: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Card:
    """One trajectory."""

    stage: str
    stage_index: int
    step: int
    task: str
    example: str
    status: str
    reward: float | None
    reward_text: str
    reward_fill: float | None
    advantage: str
    advantage_sign: int
    reason: str
    messages: Sequence[tuple[str, str]]
    """(role, text) of the prompt."""
    completion: str
    tokens: Sequence[Token]
    """Empty where none were recorded or there are too many."""
    shaded_by: str
    """`gate weight`, `log-probability` or nothing."""
    parts: Sequence[Part]
    reference: Sequence[tuple[str, str]]
    shown: Sequence[Shown]


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


def image_files(stage: Stage, row: Row) -> list[Path]:
    """Paths of the trajectory's images, as named in its row."""
    names = row.get("images")
    return [stage.folder / name for name in names if isinstance(name, str)] if isinstance(names, list) else []


def card(stage: Stage, stage_index: int, row: Row, album: Album) -> Card:
    """Tolerant of keys that are missing or oddly typed: a report must open on any run."""
    reward, advantage = as_number(row.get("reward")), as_number(row.get("advantage"))
    tokens, shaded_by = _tokens(row.get("tokens"))
    parts, reference = row.get("parts"), row.get("reference")
    return Card(
        stage=stage.name,
        stage_index=stage_index,
        step=row["step"],
        task=str(row.get("task") or "-"),
        example=str(row.get("example") or "-"),
        status=str(row.get("status") or "finished"),
        reward=reward,
        reward_text=number(reward) if reward is not None else "unscored",
        reward_fill=_fill(reward),
        advantage=change(advantage) if advantage is not None else "",
        advantage_sign=0 if not advantage else 1 if advantage > 0 else -1,
        reason=_shortened(str(row.get("reason") or "")),
        messages=_messages(row.get("messages")),
        completion=_shortened(str(row.get("completion") or "")),
        tokens=tokens,
        shaded_by=shaded_by,
        parts=_parts(parts) if isinstance(parts, dict) else [],
        reference=[(str(k), _shortened(str(v))) for k, v in reference.items()] if isinstance(reference, dict) else [],
        shown=[_shown(index, file, row, album) for index, file in enumerate(image_files(stage, row))],
    )


def _shown(index: int, file: Path, row: Row, album: Album) -> Shown:
    picture = album.pictures.get(file)
    boxes = row.get("boxes")
    return Shown(
        file=file.name,
        picture=picture,
        problem=album.problems.get(file, ""),
        boxes=[b for raw in boxes if (b := _box(raw, index, picture))] if picture and isinstance(boxes, list) else [],
    )


def _box(raw: Any, image: int, picture: Picture) -> Box | None:
    """Corners come in 0-1000 of the picture, in any order; None for another image's box or four things not numbers."""
    if not isinstance(raw, dict) or raw.get("image", 0) != image or not isinstance(raw.get("bbox_2d"), list):
        return None
    corners = [v for c in raw["bbox_2d"] if (v := as_number(c)) is not None]
    if len(corners) != 4:
        return None
    xs, ys = (sorted(min(max(v, 0.0), 1000.0) for v in corners[side::2]) for side in (0, 1))
    is_swapped = corners[0] > corners[2] or corners[1] > corners[3]
    sx, sy = picture.width / 1000, picture.height / 1000
    return Box(
        x=round(xs[0] * sx, 2),
        y=round(ys[0] * sy, 2),
        width=round((xs[1] - xs[0]) * sx, 2),
        height=round((ys[1] - ys[0]) * sy, 2),
        label=str(raw.get("label") or "")[:40] + (" (corners swapped)" if is_swapped else ""),
        kind="reference" if raw.get("kind") == "reference" else "predicted",
    )


def _tokens(raw: Any) -> tuple[list[Token], str]:
    if not isinstance(raw, list) or not 0 < len(raw) <= _MAX_TOKENS or not all(isinstance(t, dict) for t in raw):
        return [], ""
    by_gate = any(as_number(t.get("gate")) is not None for t in raw)
    return [_token(t, by_gate) for t in raw], "gate weight" if by_gate else "log-probability"


def _token(raw: Mapping[str, Any], by_gate: bool) -> Token:
    gate, logprob = as_number(raw.get("gate")), as_number(raw.get("logprob"))
    lost = (1 - gate if gate is not None else 0.0) if by_gate else -(logprob or 0.0) / _FULL_SHADE_NATS
    facts = [f"{name} {number(value)}" for name, value in (("gate", gate), ("logprob", logprob)) if value is not None]
    shade = min(max(math.ceil(lost * (_NUM_SHADES - 1) - 0.02), 0), _NUM_SHADES - 1)
    return Token(text=str(raw.get("text", "")), shade=shade, title=", ".join(facts))


def _messages(raw: Any) -> list[tuple[str, str]]:
    if not isinstance(raw, list):
        return []
    return [(str(m.get("role", "")), _shortened(str(m.get("text") or ""))) for m in raw if isinstance(m, dict)]


def _parts(raw: Mapping[Any, Any]) -> list[Part]:
    values = [(str(name), as_number(value)) for name, value in raw.items()]
    return [Part(name=name, value=number(value), fill=_fill(value)) for name, value in values]


def _fill(value: float | None) -> float | None:
    return round(100 * value, 1) if value is not None and 0 <= value <= 1 else None


def _shortened(text: str) -> str:
    rest = len(text) - _MAX_CHARACTERS
    return text if rest <= 0 else f"{text[:_MAX_CHARACTERS]} … ({rest:,} more characters)"
