"""Rows of JSONL and JSON files, read exactly as written and by random access.

`datasets` would force one type on every column: rows whose turns are texts here and lists of parts there fail to load,
and nested objects come back filled with keys that they never had. So JSON is read by the standard library.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO, overload

import numpy as np

from posttrain.errors import DataError


class JsonLines(Sequence[Mapping[str, Any]]):
    """A JSONL file: every line is checked when it is opened, and kept as an offset only."""

    def __init__(self, path: Path, limit: int | None = None) -> None:
        self.path = path
        with path.open("rb") as file:
            found = list(self._scan(file, limit))
        self._starts = np.array([start for start, _ in found], dtype=np.int64)
        self._numbers = np.array([number for _, number in found], dtype=np.int64)

    def __len__(self) -> int:
        return len(self._starts)

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Mapping[str, Any]]: ...
    def __getitem__(self, index: int | slice) -> Mapping[str, Any] | Sequence[Mapping[str, Any]]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        with self.path.open("rb") as file:
            file.seek(int(self._starts[index]))
            return _parse(file.readline(), self.row_name(index))

    def row_name(self, index: int) -> str:
        """`train.jsonl:17`, lines counted from 1."""
        return f"{self.path.name}:{self._numbers[index]}"

    def _scan(self, file: BinaryIO, limit: int | None) -> Iterator[tuple[int, int]]:
        start, found = 0, 0
        for number, line in enumerate(file, 1):
            if line.strip():
                _parse(line, f"{self.path.name}:{number}")
                yield start, number
                found += 1
                if found == limit:
                    return
            start += len(line)


def read_json(path: Path, limit: int | None = None) -> Sequence[Mapping[str, Any]]:
    """The rows of a .json file: an array of objects, or JSON lines in spite of its name."""
    with path.open("rb") as file:
        is_array = next((line.lstrip()[:1] == b"[" for line in file if line.strip()), False)
    if not is_array:
        return JsonLines(path, limit)
    try:
        rows = json.loads(path.read_bytes())
    except json.JSONDecodeError as error:
        raise DataError(f"{path.name}:{error.lineno}: is not valid JSON ({error.msg}); mend or remove it") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path.name}: is not UTF-8 text ({error.reason} at byte {error.start})") from None
    for i, row in enumerate(rows):
        if not isinstance(row, dict):
            raise DataError(f"{path.name}[{i}]: a row must be a JSON object, got {type(row).__name__}")
    return rows[:limit]


def _parse(line: bytes, name: str) -> Mapping[str, Any]:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(f"{name}: is not valid JSON ({error.msg} at column {error.colno}); mend or remove it") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: is not UTF-8 text ({error.reason} at byte {error.start} of the line)") from None
    if not isinstance(row, dict):
        raise DataError(f"{name}: a row must be a JSON object, got {type(row).__name__}")
    return row
