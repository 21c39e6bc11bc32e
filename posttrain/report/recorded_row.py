"""A trajectory as the report's row: messages, turns with their tool calls, boxes, and streams of tokens."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
from PIL import Image

from posttrain.rewards import BadReferenceError
from posttrain.rewards.boxes import parse_boxes
from posttrain.rewards.grounding import reference_boxes

if TYPE_CHECKING:  # records import torch, and opening a report must not
    from posttrain.records import Message, Trajectory, Turn
    from posttrain.rewards import ToolCall

_MAX_IMAGES = 24
"""Stored images of one trajectory: a policy that spams calls must not fill a disk."""
_MAX_CHARACTERS = 20_000
"""Of one text that an environment answered, such as the output of a program."""
_MAX_DEPTH = 24
"""Of nested lists and objects in a call's arguments: whoever writes them is still learning."""

DecodeTokens = Callable[[Sequence[int]], Sequence[str]]
"""Token ids to one text each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenStreams:
    """What training knew of a trajectory: [T] float each, aligned with its token_ids, read where its mask is True."""

    advantages_T: np.ndarray | None = None
    """Where tokens have advantages of their own; else all of them have the trajectory's."""
    gates_T: np.ndarray | None = None
    """SAPO's gate weights, 0-1."""
    trainer_logprobs_T: np.ndarray | None = None
    """Nats, at the weights that sampled; what is recorded is how far the engine's lie from them."""
    divergences_T: np.ndarray | None = None
    """Nats, of the student's distribution from its teacher's, as the stage measures it."""


def recorded_row(
    step: int,
    trajectory: "Trajectory",
    streams: TokenStreams | None,
    *,
    store: Callable[[Image.Image], str],
    decode: DecodeTokens | None,
) -> dict[str, Any]:
    """A row of `trajectories.jsonl`, of JSON's own types.

    `images` holds the files of all images in the order in which they were shown, so that places in it are `img_idx`.
    Raises ValueError for a stream of another length than the trajectory's.
    """
    example, score = trajectory.example, trajectory.score
    opening = trajectory.opening or _asked(example.messages)
    shown = list(trajectory.opening_images if trajectory.opening else example.images)
    num_opening = len(shown)
    tokens = _tokens_between(trajectory, streams, decode)
    turns: list[dict[str, Any]] = []
    crops: list[dict[str, Any]] = []
    for place, turn in enumerate(trajectory.turns):
        crops += [{**crop, "turn": place} for crop in _crops(turn, num_before=len(shown))]
        turns.append(_turn(turn, first_image=len(shown), tokens=tokens))
        shown += turn.images
    row = {
        "step": step,
        "example": example.id,
        "task": example.task,
        "messages": _messages(opening),
        "images": [store(image) if place < _MAX_IMAGES else None for place, image in enumerate(shown)],
        "completion": trajectory.text,
        "status": str(trajectory.status),
        "error": trajectory.error,
        "reward": score.value if score else None,
        "parts": dict(score.parts) if score else {},
        "reason": score.reason if score else "",
        "advantage": trajectory.advantage,
        "reference": dict(example.reference),
        "boxes": (_boxes(trajectory) if num_opening else []) + crops,
    }
    if turns:
        row |= {"turns": turns, "tools": [_tool_name(tool) for tool in trajectory.tools]}
    elif decode is not None:
        row["tokens"] = tokens(0, len(trajectory.token_ids))
    return _plain(row)


def _asked(messages: Sequence["Message"]) -> Sequence["Message"]:
    """What the policy saw: not the answer that a training row ends with."""
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    return messages[:end]


def _messages(messages: Sequence["Message"], first_image: int = 0) -> list[dict[str, Any]]:
    """Text of each message, with <image> where an image stands, and the indices of its images."""
    flat: list[dict[str, Any]] = []
    num_images = first_image
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        images = [p for p in parts if p["type"] == "image"]
        text = "".join("<image>" if p["type"] == "image" else str(p.get("text", f"<{p['type']}>")) for p in parts)
        indices = list(range(num_images, num_images + len(images)))
        flat.append({"role": message["role"], "text": text, "images": indices})
        num_images += len(images)
    return flat


def _turn(turn: "Turn", *, first_image: int, tokens: Callable[[int, int], list[dict[str, Any]]]) -> dict[str, Any]:
    observation = _messages(turn.observation, first_image)
    return {
        "text": turn.text,
        "calls": [{"name": c.name, "arguments": dict(c.arguments), "error": c.error} for c in turn.calls],
        "observation": [message | {"text": _shortened(message["text"])} for message in observation],
        "seconds": round(turn.seconds, 4),
        "tokens": tokens(turn.start, turn.end),
    }


def _tool_name(schema: Mapping[str, Any]) -> str:
    function = schema.get("function")
    return str(function.get("name", "")) if isinstance(function, Mapping) else ""


def _shortened(text: str) -> str:
    rest = len(text) - _MAX_CHARACTERS
    return text if rest <= 0 else f"{text[:_MAX_CHARACTERS]} … ({rest:,} more characters)"


def _crops(turn: "Turn", *, num_before: int) -> list[dict[str, Any]]:
    """The boxes that the turn's calls cut from images, each with the image it was cut from and the one that came of it.

    A call that failed cut nothing. `made` is None where the policy never saw what was cut, or where it cannot be told
    which image came of which call.
    """
    crops: list[dict[str, Any]] = []
    num_seen = num_before
    for place, (call, answered) in enumerate(zip(turn.calls, _answered(turn, first_image=num_before), strict=True)):
        box, source = _cut(call, num_seen)
        num_seen += len(answered)  # the next call of the turn may name these already
        if box is not None:
            label = call.arguments.get("label")
            crops.append(
                {
                    "bbox_2d": box,
                    "label": label if isinstance(label, str) else "",
                    "kind": "crop",
                    "image": source,
                    "made": answered[0] if answered else None,
                    "call": place,
                }
            )
    return crops


def _cut(call: "ToolCall", num_images: int) -> tuple[list[float] | None, int]:
    """Corners in 0-1000 and the index of the image; None for a call that names no box of an image that was shown."""
    corners, source = call.arguments.get("bbox_2d"), call.arguments.get("img_idx")
    if call.error or not isinstance(corners, list | tuple) or len(corners) != 4 or not all(map(_is_finite, corners)):
        return None, -1
    if not _is_finite(source) or source != int(source) or not 0 <= source < num_images:
        return None, -1
    return [float(corner) for corner in corners], int(source)


def _is_finite(value: Any) -> TypeGuard[int | float]:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
    except OverflowError:  # an integer beyond all floats
        return False


def _answered(turn: "Turn", *, first_image: int) -> list[list[int]]:
    """For each call the images of its answer: those of its own message, or one image for each call that worked."""
    messages = _messages(turn.observation, first_image)
    if answers_in_order(len(messages), [bool(call.error) for call in turn.calls]):
        rest = [[] for _ in turn.calls[len(messages) :]]
        return [message["images"] for message in messages] + rest
    images = [image for message in messages for image in message["images"]]
    worked = [place for place, call in enumerate(turn.calls) if not call.error]
    owner = dict(zip(worked, images, strict=True)) if len(worked) == len(images) else {}
    return [[owner[place]] if place in owner else [] for place in range(len(turn.calls))]


def answers_in_order(num_messages: int, failed: Sequence[bool]) -> bool:
    """Whether the first message answers the first call, and so on; calls beyond them were refused together."""
    return num_messages <= len(failed) and all(failed[num_messages:])


def _boxes(trajectory: "Trajectory") -> list[dict[str, Any]]:
    """Predicted and reference boxes, of the first image: the formats name no other.

    In an episode the boxes of its last turn, which is the answer: those in calls are crops.
    """
    try:
        reference = reference_boxes(trajectory.example.reference)
    except BadReferenceError:  # most tasks have no boxes to compare with
        reference = []
    last = trajectory.turns[-1] if trajectory.turns else None
    answer = trajectory.text if last is None else "" if last.calls else last.text
    return [
        {"bbox_2d": [box.x1, box.y1, box.x2, box.y2], "label": box.label, "kind": kind, "image": 0}
        for kind, boxes in (("predicted", parse_boxes(answer) or []), ("reference", reference))
        for box in boxes
    ]


def _tokens_between(
    trajectory: "Trajectory", streams: TokenStreams | None, decode: DecodeTokens | None
) -> Callable[[int, int], list[dict[str, Any]]]:
    """(start, end) -> the policy's tokens there; none where texts of tokens are not wanted."""
    if decode is None:
        return lambda start, end: []
    logprobs_T = trajectory.logprobs
    named: dict[str, np.ndarray] = {"logprob": logprobs_T}
    if streams is not None:
        for name, values_T in (
            ("gate", streams.gates_T),
            ("advantage", streams.advantages_T),
            ("gap", streams.trainer_logprobs_T),
            ("teacher", streams.divergences_T),
        ):
            if values_T is None:
                continue
            if np.shape(values_T) != np.shape(logprobs_T):
                raise ValueError(
                    f"got a stream ({name}) of shape {np.shape(values_T)} for a trajectory of {len(logprobs_T)} "
                    "tokens; give one number for each token"
                )
            named[name] = np.abs(logprobs_T - values_T) if name == "gap" else values_T

    def tokens(start: int, end: int) -> list[dict[str, Any]]:
        said = start + np.flatnonzero(trajectory.mask[start:end])
        texts = decode([int(t) for t in trajectory.token_ids[said]])
        return [
            {"text": text} | {name: round(float(values_T[t]), 4) for name, values_T in named.items()}
            for t, text in zip(said, texts, strict=True)
        ]

    return tokens


def _plain(value: Any, depth: int = 0) -> Any:
    """JSON's own types: numbers that are not finite become null, other objects their text."""
    if isinstance(value, np.ndarray):
        return _plain(value.tolist(), depth)
    if isinstance(value, np.generic):
        return _plain(value.item(), depth)
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping | Sequence) and depth >= _MAX_DEPTH:
        return "…"
    if isinstance(value, Mapping):
        return {str(k): _plain(v, depth + 1) for k, v in value.items()}
    if isinstance(value, Sequence):
        return [_plain(v, depth + 1) for v in value]
    return str(value)
