"""Finished batches on disk: what a killed run keeps, and what the data set is made from at the end.

Each process appends to a journal of its own: a header that says what is being made, then one line for each finished
batch with its rows and counts. A line is whole or it does not count. Any number of processes may go on where another
number stopped: batches are known by their number, and the data set has them in that order.
"""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from posttrain.answers.disk import json_line, not_written
from posttrain.answers.tally import Group, Tallies, Tally, merge
from posttrain.errors import CheckpointError, ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class _Batch:
    file: Path
    start: int
    """Where its line begins."""
    tallies: Mapping[Group, Tally]


class Journal:
    """The finished batches of a data set that is being made in `folder`."""

    def __init__(self, folder: Path, made_with: Mapping[str, Any], rank: int = 0) -> None:
        """Reads what is there. Raises ConfigError, naming the first difference, where other settings made a batch.

        Where none is finished they made nothing: a reward or a teacher that failed at once may be put right.
        """
        self._folder, self._own = folder, folder / f"journal-{rank}.jsonl"
        self._made_with = plain_json(made_with)
        self._batches: dict[int, _Batch] = {}
        self.reread()
        self._open()

    @property
    def done(self) -> frozenset[int]:
        """Numbers of the finished batches."""
        return frozenset(self._batches)

    @property
    def tallies(self) -> dict[Group, Tally]:
        """Counts of all finished batches."""
        return merge(self._batches[index].tallies for index in sorted(self._batches))

    def reread(self) -> None:
        """Finds also what other processes have finished since."""
        self._batches = {}
        for file in sorted(self._folder.glob("journal-*.jsonl")):
            header: Mapping[str, Any] = {}
            for place, (start, line) in enumerate(_whole_lines(file)):
                if place == 0:
                    header = line["made_with"]
                    continue
                if place == 1:
                    check_same(self._made_with, header, self._folder)
                tallies = {(t.pop("task"), t.pop("thinking")): Tally(**t) for t in line["tallies"]}
                self._batches[line["batch"]] = _Batch(file=file, start=start, tallies=tallies)

    def append(self, batch: int, rows: Sequence[Mapping[str, Any]], tallies: Tallies) -> None:
        """Keeps a finished batch. Raises CheckpointError, with all earlier ones kept, where the disk is full."""
        start = self._own.stat().st_size
        counts = [{"task": task, "thinking": way, **asdict(tally)} for (task, way), tally in tallies.items()]
        self._write({"batch": batch, "tallies": counts, "rows": rows})
        self._batches[batch] = _Batch(file=self._own, start=start, tallies=dict(tallies))

    def rows(self) -> Iterator[dict[str, Any]]:
        """The rows of all finished batches, in the order of the batches."""
        for index in sorted(self._batches):
            batch = self._batches[index]
            with batch.file.open("rb") as stream:
                stream.seek(batch.start)
                yield from json.loads(stream.readline())["rows"]

    def _open(self) -> None:
        """Cuts off the line that a killed process or a full disk left unfinished in this process's own journal."""
        lines = list(_whole_lines(self._own)) if self._own.exists() else []
        if len(lines) < 2:  # nobody's batch: the header may be that of other settings
            self._own.unlink(missing_ok=True)
            self._write({"made_with": self._made_with})
            return
        with self._own.open("rb+") as stream:
            stream.seek(lines[-1][0])
            stream.readline()
            stream.truncate()

    def _write(self, line: Mapping[str, Any]) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            with self._own.open("ab") as stream:
                stream.write(json_line(line))
                stream.flush()
                os.fsync(stream.fileno())
        except OSError as error:
            raise not_written(self._own, error) from error


def delete_journals(folder: Path) -> None:
    for file in folder.glob("journal-*.jsonl"):
        file.unlink(missing_ok=True)


def plain_json(content: Mapping[str, Any]) -> dict[str, Any]:
    """As it will be when it has been written and read."""
    return json.loads(json.dumps(content))


def check_same(now: Mapping[str, Any], before: Mapping[str, Any], folder: Path) -> None:
    """Raises ConfigError, naming the first difference, where a data set was begun or made with other settings."""
    if (difference := _difference(before, now, "")) is not None:
        raise ConfigError(
            f"{folder} holds answers that were asked for with other settings ({difference}); put them back, choose "
            "another folder, or delete this one to start again"
        )


def _difference(before: Any, now: Any, where: str) -> str | None:
    if isinstance(before, Mapping) and isinstance(now, Mapping):
        for key in sorted(before.keys() | now.keys()):
            found = _difference(before.get(key), now.get(key), f"{where}.{key}" if where else key)
            if found is not None:
                return found
        return None
    return None if before == now else f"{where} was {before!r:.60}, is {now!r:.60}"


def _whole_lines(file: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """(where it begins, its content) of each line up to the first that is not whole."""
    start = 0
    with file.open("rb") as stream:
        for line in stream:
            if not line.endswith(b"\n"):
                return
            try:
                content = json.loads(line)
            except ValueError:
                raise CheckpointError(
                    f"{file} is damaged at byte {start}; delete it to ask again for what it held"
                ) from None
            yield start, content
            start += len(line)
