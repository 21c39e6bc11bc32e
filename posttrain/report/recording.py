"""Records sampled trajectories of a stage with their images, for the report; never stops a training that goes well."""

import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING

from PIL import Image

from posttrain.report.pictures import encode, format_of
from posttrain.report.recorded_row import DecodeTokens, TokenStreams, recorded_row

if TYPE_CHECKING:  # records import torch, and opening a report must not
    from posttrain.records import Trajectory

_log = logging.getLogger(__name__)

_MAX_SIDE = 768
"""Longest side of a stored image in pixels: the report shows 512."""
_JPEG_QUALITY = 90


class TrajectoryRecorder:
    """Appends to `trajectories.jsonl` in a stage's folder, and writes each distinct image once into `images/`.

    Coordinates of boxes are 0-1000 of their image. A disk error is logged as a warning once, and the training goes on.
    """

    def __init__(self, stage_folder: Path, max_per_step: int = 8, *, decode_tokens: DecodeTokens | None = None) -> None:
        """`decode_tokens`: records each token of the policy with its log-probability, to be coloured."""
        if max_per_step < 0:
            raise ValueError(f"max_per_step must be 0 or more, got {max_per_step}; 0 records nothing")
        self._folder = Path(stage_folder)
        self._max_per_step = max_per_step
        self._decode_tokens = decode_tokens
        self._has_warned = False

    def record(
        self,
        step: int,
        trajectories: Sequence["Trajectory"],
        *,
        streams: Sequence[TokenStreams | None] | None = None,
    ) -> None:
        """Writes at most `max_per_step` of the step's trajectories.

        `streams`: for each trajectory what training knew of its tokens, None for one that it was not trained on.
        """
        if streams is not None and len(streams) != len(trajectories):
            raise ValueError(f"got streams of {len(streams)} trajectories for {len(trajectories)}; give one for each")
        chosen = choose(trajectories, self._max_per_step)
        if not chosen:
            return
        try:
            lines = [self._line(step, trajectories[i], streams[i] if streams else None) for i in chosen]
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

    def _line(self, step: int, trajectory: "Trajectory", streams: TokenStreams | None) -> str:
        row = recorded_row(step, trajectory, streams, store=self._store, decode=self._decode_tokens)
        return json.dumps(row, ensure_ascii=False, allow_nan=False, separators=(",", ":")) + "\n"

    def _store(self, image: Image.Image) -> str:
        """The image's path in the stage's folder; the name is a hash of its pixels, so equal images are one file."""
        small = image.convert("RGB")
        small.thumbnail((_MAX_SIDE, _MAX_SIDE), Image.Resampling.LANCZOS)
        digest = hashlib.sha256(f"{small.width}x{small.height}:".encode() + small.tobytes()).hexdigest()[:20]
        kind = format_of(small)
        path = self._folder / "images" / f"{digest}.{kind}"
        if not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            partial = path.with_suffix(f".{os.getpid()}.partial")
            partial.write_bytes(encode(small, kind, quality=_JPEG_QUALITY))
            partial.replace(path)
        return f"images/{path.name}"


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
