"""A teacher's scores kept in a folder: a second epoch, run or student costs no forward pass of the teacher."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from threading import Lock
from typing import Any
from uuid import uuid4

import numpy as np

from posttrain.errors import TeacherError
from posttrain.model import TokenSequence
from posttrain.teachers.shards import KEY_BYTES, DamagedShard, HalfScores, Shard, write_shard
from posttrain.teachers.teacher import Teacher, TopScores

_log = logging.getLogger(__name__)

_MANIFEST = "manifest.json"
_FORMAT = 1
_FLUSH_BYTES = 32 << 20


class CachedTeacher:
    """A `Teacher` that asks another one only for what the folder does not hold.

    A sequence is known by its tokens, its mask and its pixels; a manifest says whose scores these are. Scores are
    rounded to half precision before they are first returned, so that a run and its repetition train alike. Several
    processes may share a folder: each finds what the others have written. Threads may share the object.
    """

    def __init__(
        self,
        teacher: Teacher,
        folder: str | Path,
        *,
        top_k: int,
        settings: Mapping[str, Any],
        flush_bytes: int = _FLUSH_BYTES,
    ) -> None:
        """settings: what else scores depend on, as JSON knows it: pixel limits, the tokenizer, ...

        flush_bytes: scores in memory are written when they are more; a process that is killed loses only those.
        Raises TeacherError for a folder of another teacher, top_k or settings, and where it cannot be written to.
        """
        self.teacher = teacher
        self.folder = Path(folder).expanduser()
        self.top_k = top_k
        self.hits, self.misses = 0, 0
        """Sequences that were in the folder, and those that the teacher was asked for."""
        self._flush_bytes = flush_bytes
        self._lock = Lock()
        self._shards: dict[str, Shard | None] = {}
        """By file name; None for one that was damaged."""
        self._places: dict[bytes, tuple[Shard, int]] = {}
        self._pending: dict[bytes, HalfScores] = {}
        self._pending_bytes = 0
        manifest = {
            "format": _FORMAT,
            "teacher": teacher.name,
            "identity": teacher.identity,
            "top_k": top_k,
            "settings": dict(settings),
        }
        self._check_manifest(json.loads(json.dumps(manifest)))
        self._look_for_shards()

    @property
    def name(self) -> str:
        return self.teacher.name

    @property
    def identity(self) -> str:
        return self.teacher.identity

    @property
    def context(self) -> int:
        return self.teacher.context

    @property
    def bytes_per_token(self) -> float:
        """On disk, for each trained token, all told; NaN while nothing is there."""
        shards = [shard for shard in self._shards.values() if shard is not None]
        tokens = sum(shard.num_tokens for shard in shards)
        return sum(shard.num_bytes for shard in shards) / tokens if tokens else float("nan")

    def top_scores(self, sequences: Sequence[TokenSequence], top_k: int) -> list[TopScores]:
        if top_k != self.top_k:
            raise TeacherError(f"teacher '{self.name}': its cache holds top_k {self.top_k}, {top_k} was asked for")
        keys = [_key(sequence) for sequence in sequences]
        with self._lock:
            found = self._known(keys)
            if len(found) < len(set(keys)):
                self._look_for_shards()
                found |= self._known([key for key in keys if key not in found])
        missing = {key: sequence for key, sequence in zip(keys, sequences, strict=True) if key not in found}
        asked = self.teacher.top_scores(list(missing.values()), top_k) if missing else []
        made = {
            key: self._checked(scores, sequence) for (key, sequence), scores in zip(missing.items(), asked, strict=True)
        }
        with self._lock:
            self.hits += sum(key in found for key in keys)
            self.misses += sum(key in made for key in keys)
            self._pending |= made
            self._pending_bytes += sum(scores.num_bytes for scores in made.values())
            if self._pending_bytes > self._flush_bytes:
                self._write()
        found |= made
        return [found[key].whole() for key in keys]

    def logprobs(self, sequences: Sequence[TokenSequence]) -> list[np.ndarray]:
        """From the teacher itself: what was sampled from a student that learns is never asked twice."""
        return self.teacher.logprobs(sequences)

    def flush(self) -> None:
        """Writes what is only in memory. Raises TeacherError where the disk is full or not writable."""
        with self._lock:
            self._write()

    def close(self) -> None:
        try:
            self.flush()
        finally:
            self.teacher.close()

    def _known(self, keys: Sequence[bytes]) -> dict[bytes, HalfScores]:
        found: dict[bytes, HalfScores] = {}
        for key in keys:
            if key in self._pending:
                found[key] = self._pending[key]
            elif key in self._places:
                shard, place = self._places[key]
                try:
                    found[key] = shard.read(place, key)
                except DamagedShard as error:
                    self._drop(shard.path, error)
        return found

    def _checked(self, scores: TopScores, sequence: TokenSequence) -> HalfScores:
        """What is written is read for years: it is checked once more."""
        wanted = (sequence.num_trained, self.top_k)
        if scores.token_ids_NK.shape != wanted or scores.logprobs_NK.shape != wanted:
            raise TeacherError(
                f"teacher '{self.name}' gives scores of shape {scores.logprobs_NK.shape} for {wanted[0]} trained "
                f"tokens and top_k {wanted[1]}; nothing was kept of them"
            )
        if not np.isfinite(scores.logprobs_NK).all() or not (scores.tail_N < np.inf).all():
            raise TeacherError(f"teacher '{self.name}' gives scores that are not finite; nothing was kept of them")
        return HalfScores.of(scores)

    def _write(self) -> None:
        if not self._pending:
            return
        try:
            path = write_shard(self.folder, self._pending)
            self._add(Shard(path, self.top_k))
        except (OSError, DamagedShard) as error:
            raise TeacherError(
                f"teacher '{self.name}': its scores cannot be written to {self.folder} ({error}); free space and run "
                "again, what was written before is whole"
            ) from error
        self._pending, self._pending_bytes = {}, 0

    def _look_for_shards(self) -> None:
        """Takes in files that were written since the last look."""
        for path in sorted(self.folder.glob("*.safetensors")):
            if path.name not in self._shards:
                try:
                    self._add(Shard(path, self.top_k))
                except DamagedShard as error:
                    self._drop(path, error)

    def _add(self, shard: Shard) -> None:
        self._shards[shard.path.name] = shard
        self._places.update((key, (shard, place)) for place, key in enumerate(shard.keys))
        shard.keys = []

    def _drop(self, path: Path, error: DamagedShard) -> None:
        _log.warning(
            "dropped: %s in the teacher cache is damaged (%s); its sequences are scored again", path.name, error
        )
        damaged, self._shards[path.name] = self._shards.get(path.name), None
        if damaged is not None:
            self._places = {key: place for key, place in self._places.items() if place[0] is not damaged}
        with suppress(OSError):  # a folder that may only be read keeps it, and warns once in each process
            path.unlink()

    def _check_manifest(self, manifest: Mapping[str, Any]) -> None:
        path = self.folder / _MANIFEST
        try:
            if not path.is_file():
                self.folder.mkdir(parents=True, exist_ok=True)
                strange = any(self.folder.glob("[!.]*"))
                if strange and not path.is_file():  # another process may have made it just now
                    raise TeacherError(
                        f"{self.folder} holds files but no {_MANIFEST}, and is no teacher cache: choose another folder"
                    )
                scratch = self.folder / f".{_MANIFEST}.{uuid4().hex}"
                scratch.write_text(json.dumps(manifest, indent=1), encoding="utf-8")
                scratch.rename(path)
            there = json.loads(path.read_text(encoding="utf-8"))
            differences = _differences(there, manifest)
        except OSError as error:
            raise TeacherError(
                f"the teacher cache {self.folder} cannot be used ({error}); choose another folder"
            ) from error
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise TeacherError(
                f"{path} is damaged ({error}); delete {self.folder}, or choose another folder"
            ) from error
        if differences:
            raise TeacherError(
                f"the teacher cache {self.folder} was made with {' and '.join(differences)}; choose another folder, or "
                "delete it"
            )


def _differences(there: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """What was otherwise when the folder was made. A teacher's name may change."""
    found = []
    if there["format"] != wanted["format"]:
        found.append(f"format {there['format']}, not {wanted['format']}")
    if there["identity"] != wanted["identity"]:
        found.append(f"another teacher ('{there['teacher']}' {there['identity']}, not {wanted['identity']})")
    if there["top_k"] != wanted["top_k"]:
        found.append(f"top_k {there['top_k']}, not {wanted['top_k']}")
    before, now = there["settings"], wanted["settings"]
    for key in sorted(before.keys() | now.keys()):
        if before.get(key) != now.get(key):
            found.append(f"{key} {before.get(key)}, not {now.get(key)}")
    return found


def _key(sequence: TokenSequence) -> bytes:
    """What a sequence's scores depend on beside the teacher, and which of its tokens they are of."""
    digest = hashlib.blake2b(digest_size=KEY_BYTES)
    digest.update(len(sequence.token_ids).to_bytes(8, "little"))
    digest.update(sequence.token_ids.astype("<i8").tobytes())
    digest.update(np.packbits(sequence.mask).tobytes())
    for image in sequence.images:
        digest.update(image.key.encode() + b"\0")
    return digest.digest()
