"""A file of teachers' scores: half precision, written whole or not at all, read through a memory map, checksummed."""

import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from posttrain.teachers.teacher import TopScores

KEY_BYTES = 16
_HALF_MIN = float(np.finfo(np.float16).min)


class DamagedShard(ValueError):
    """A file that is cut short, changed, or of another kind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HalfScores:
    """`TopScores` as they lie on disk: 6 K + 2 bytes a token."""

    token_ids_NK: np.ndarray
    """int32."""
    logprobs_NK: np.ndarray
    """float16 nats."""
    tail_N: np.ndarray
    """float16 nats."""

    @classmethod
    def of(cls, scores: TopScores) -> "HalfScores":
        return cls(
            token_ids_NK=scores.token_ids_NK.astype(np.int32),
            logprobs_NK=np.maximum(scores.logprobs_NK, _HALF_MIN).astype(np.float16),  # a masked token's -1e9 too
            tail_N=scores.tail_N.astype(np.float16),
        )

    def whole(self) -> TopScores:
        """In float32, normalised: what rounding took from the K tokens and the tail together is spread over them."""
        logprobs_NK, tail_N = self.logprobs_NK.astype(np.float64), self.tail_N.astype(np.float64)
        total_N = np.logaddexp(np.logaddexp.reduce(logprobs_NK, axis=1), tail_N)
        return TopScores(
            token_ids_NK=self.token_ids_NK,
            logprobs_NK=(logprobs_NK - total_N[:, None]).astype(np.float32),
            tail_N=(tail_N - total_N).astype(np.float32),
        )

    @property
    def num_bytes(self) -> int:
        return self.token_ids_NK.nbytes + self.logprobs_NK.nbytes + self.tail_N.nbytes

    def checksum(self, key: bytes) -> int:
        check = zlib.crc32(key)
        for array in (self.token_ids_NK, self.logprobs_NK, self.tail_N):
            check = zlib.crc32(np.ascontiguousarray(array).tobytes(), check)
        return check


def write_shard(folder: Path, records: Mapping[bytes, HalfScores]) -> Path:
    """Writes the records under a name that no other process takes, and returns it. Raises OSError where it cannot."""
    scores = list(records.values())
    tensors = {
        "keys": np.frombuffer(b"".join(records), dtype=np.uint8).reshape(-1, KEY_BYTES),
        "offsets": np.cumsum([0, *(len(s.tail_N) for s in scores)], dtype=np.int64),
        "checksums": np.array([s.checksum(key) for key, s in records.items()], dtype=np.uint32),
        "token_ids": np.concatenate([s.token_ids_NK for s in scores]),
        "logprobs": np.concatenate([s.logprobs_NK for s in scores]),
        "tails": np.concatenate([s.tail_N for s in scores]),
    }
    name = uuid4().hex
    place, scratch = folder / f"{name}.safetensors", folder / f".{name}.tmp"
    try:
        with scratch.open("wb") as file:  # safetensors' own writer is silent about a full disk
            file.write(save(tensors))
            file.flush()
            os.fsync(file.fileno())
        scratch.rename(place)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    return place


class Shard:
    """An open file: its keys in memory, its scores on disk."""

    def __init__(self, path: Path, top_k: int) -> None:
        """Raises DamagedShard."""
        self.path = path
        try:
            self._file = safe_open(path, "np")
            keys_SB, offsets = self._file.get_tensor("keys"), self._file.get_tensor("offsets")
            checksums_S = self._file.get_tensor("checksums")
            shapes = [tuple(self._file.get_slice(name).get_shape()) for name in ("token_ids", "logprobs", "tails")]
            self.num_bytes = path.stat().st_size
        except (OSError, SafetensorError) as error:
            raise DamagedShard(str(error)) from error
        n = self.num_tokens = int(offsets[-1]) if len(offsets) else -1
        sizes = (len(keys_SB), len(checksums_S)) == (len(offsets) - 1,) * 2
        if shapes != [(n, top_k), (n, top_k), (n,)] or keys_SB.shape[1:] != (KEY_BYTES,) or not sizes:
            raise DamagedShard("its parts do not fit each other")
        self.keys = [row.tobytes() for row in keys_SB]
        self._offsets, self._checksums_S = offsets, checksums_S

    def read(self, place: int, key: bytes) -> HalfScores:
        """The scores of the sequence at `place` in `keys`. Raises DamagedShard where they are not what was written."""
        rows = slice(int(self._offsets[place]), int(self._offsets[place + 1]))
        try:
            found = HalfScores(
                token_ids_NK=self._file.get_slice("token_ids")[rows],
                logprobs_NK=self._file.get_slice("logprobs")[rows],
                tail_N=self._file.get_slice("tails")[rows],
            )
        except (OSError, SafetensorError) as error:
            raise DamagedShard(str(error)) from error
        if found.checksum(key) != self._checksums_S[place]:
            raise DamagedShard("a checksum differs")
        return found
