"""Records sampled trajectories of a stage with their images, for the report; never stops a training that goes well."""

import hashlib
import io
import json
import logging
import math
import os
from collections.abc import Callable, Mapping, Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from posttrain.rewards import BadReferenceError
from posttrain.rewards.boxes import parse_boxes
from posttrain.rewards.grounding import reference_boxes

if TYPE_CHECKING:  # records import torch, and opening a report must not
    from posttrain.records import Example, Message, Trajectory

_log = logging.getLogger(__name__)

_MAX_SIDE = 768
"""Longest side of a stored image in pixels: the report shows 512."""

DecodeTokens = Callable[[Sequence[int]], Sequence[str]]
"""Token ids to one text each."""


class TrajectoryRecorder:
    """Appends to `trajectories.jsonl` in a stage's folder, and writes each distinct image once into `images/`.

    Coordinates of boxes are 0-1000 of their image. A disk error is logged as a warning once, and the training goes on.
    """

    def __init__(self, stage_folder: Path, max_per_step: int = 8, *, decode_tokens: DecodeTokens | None = None) -> None:
        """`decode_tokens`: records each token of the policy with its log-probability (and gate), to be coloured."""
        if max_per_step < 0:
            raise ValueError(f"max_per_step must be 0 or more, got {max_per_step}; 0 records nothing")
        self._folder = Path(stage_folder)
        self._max_per_step = max_per_step
        self._decode_tokens = decode_tokens
        self._has_warned = False

    def record(
        self, step: int, trajectories: Sequence["Trajectory"], *, gates: Sequence[np.ndarray] | None = None
    ) -> None:
        """Writes at most `max_per_step` of the step's trajectories.

        `gates`: for each trajectory [T] float, aligned with its token_ids; read where its mask is True.
        """
        if gates is not None and len(gates) != len(trajectories):
            raise ValueError(f"got gates of {len(gates)} trajectories for {len(trajectories)}; give one array for each")
        chosen = choose(trajectories, self._max_per_step)
        if not chosen:
            return
        try:
            lines = [self._line(step, trajectories[i], None if gates is None else gates[i]) for i in chosen]
            self._append("".join(lines))
        except (OSError, Image.DecompressionBombError) as error:  # an example's image may be opened only here
            if not self._has_warned:
                self._has_warned = True
                _log.warning(
                    "sampled trajectories cannot be recorded in %s (%s); training goes on, the report will lack them",
                    self._folder,
                    error,
                )

    def _append(self, text: str) -> None:
        """One write; a line that a killed run left unfinished is ended first, so that it spoils no other."""
        self._folder.mkdir(parents=True, exist_ok=True)
        with (self._folder / "trajectories.jsonl").open("ab+") as file:
            if file.tell():
                file.seek(-1, os.SEEK_END)
                if file.read(1) != b"\n":
                    text = "\n" + text
            # A lone surrogate, which UTF-8 cannot hold, becomes \udXXX: in JSON that is its escape.
            file.write(text.encode("utf-8", "backslashreplace"))

    def _line(self, step: int, trajectory: "Trajectory", gates_T: np.ndarray | None) -> str:
        example, score = trajectory.example, trajectory.score
        row = {
            "step": step,
            "example": example.id,
            "task": example.task,
            "messages": _messages(_asked(example.messages)),
            "images": [self._store(image) for image in example.images],
            "completion": trajectory.text,
            "status": str(trajectory.status),
            "reward": score.value if score else None,
            "parts": dict(score.parts) if score else {},
            "reason": "; ".join(r for r in (score.reason if score else "", trajectory.error) if r),
            "advantage": trajectory.advantage,
            "reference": dict(example.reference),
            "boxes": _boxes(example, trajectory.text) if example.images else [],
        }
        if self._decode_tokens is not None:
            row["tokens"] = _tokens(trajectory, gates_T, self._decode_tokens)
        return json.dumps(_plain(row), ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"

    def _store(self, image: Image.Image) -> str:
        """The image's path in the stage's folder; the name is a hash of its pixels, so equal images are one file."""
        small = image.convert("RGB")
        small.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
        digest = hashlib.sha256(f"{small.width}x{small.height}:".encode() + small.tobytes()).hexdigest()[:20]
        name = f"images/{digest}.png"
        path = self._folder / name
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            buffer = io.BytesIO()
            small.save(buffer, "PNG")
            partial = path.with_suffix(f".{os.getpid()}.partial")
            partial.write_bytes(buffer.getvalue())
            partial.replace(path)
        return name


def choose(trajectories: Sequence["Trajectory"], limit: int) -> list[int]:
    """Indices, in order, of at most `limit`: of each example its best and its worst first: they tell the most."""
    by_example: dict[str, list[int]] = {}
    for index, trajectory in enumerate(trajectories):
        by_example.setdefault(trajectory.example.id, []).append(index)
    pairs: list[int] = []
    rests: list[list[int]] = []
    for indices in by_example.values():
        ranked = sorted(indices, key=lambda i: -_reward(trajectories[i]))
        pairs.extend(dict.fromkeys((ranked[0], ranked[-1])))
        rests.append(ranked[1:-1])
    others = [i for layer in zip_longest(*rests) for i in layer if i is not None]
    return sorted((pairs + others)[:limit])


def _reward(trajectory: "Trajectory") -> float:
    """Unscored ones count as the worst here, because here they are the most worth a look."""
    value = trajectory.score.value if trajectory.score else None
    return -math.inf if value is None else value


def _asked(messages: Sequence["Message"]) -> Sequence["Message"]:
    """What the policy saw: not the answer that a training row ends with."""
    end = len(messages)
    while end and messages[end - 1]["role"] == "assistant":
        end -= 1
    return messages[:end]


def _messages(messages: Sequence["Message"]) -> list[dict[str, Any]]:
    """Text of each message, with <image> where an image stands, and the indices of its images."""
    flat: list[dict[str, Any]] = []
    num_images = 0
    for message in messages:
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        images = [p for p in parts if p["type"] == "image"]
        text = "".join("<image>" if p["type"] == "image" else str(p.get("text", f"<{p['type']}>")) for p in parts)
        indices = list(range(num_images, num_images + len(images)))
        flat.append({"role": message["role"], "text": text, "images": indices})
        num_images += len(images)
    return flat


def _boxes(example: "Example", completion: str) -> list[dict[str, Any]]:
    """Predicted and reference boxes, of the first image: the formats name no other."""
    try:
        reference = reference_boxes(example.reference)
    except BadReferenceError:  # most tasks have no boxes to compare with
        reference = []
    return [
        {"bbox_2d": [box.x1, box.y1, box.x2, box.y2], "label": box.label, "kind": kind, "image": 0}
        for kind, boxes in (("predicted", parse_boxes(completion) or []), ("reference", reference))
        for box in boxes
    ]


def _tokens(trajectory: "Trajectory", gates_T: np.ndarray | None, decode: DecodeTokens) -> list[dict[str, Any]]:
    said = np.flatnonzero(trajectory.mask)
    texts = decode([int(t) for t in trajectory.token_ids[said]])
    tokens: list[dict[str, Any]] = []
    for t, text in zip(said, texts, strict=True):
        token = {"text": text, "logprob": round(float(trajectory.logprobs[t]), 4)}
        if gates_T is not None:
            token["gate"] = round(float(gates_T[t]), 4)
        tokens.append(token)
    return tokens


def _plain(value: Any) -> Any:
    """JSON's own types: numbers that are not finite become null, other objects their text."""
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, np.generic):
        return _plain(value.item())
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, Sequence):
        return [_plain(v) for v in value]
    return str(value)
