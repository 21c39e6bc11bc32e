"""Data sources: examples by index, from files, saved data sets, the hub, or rows in memory."""

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from posttrain.data.formats import parse_row
from posttrain.data.images import open_image
from posttrain.data.json_rows import JsonLines, read_json
from posttrain.data.source_spec import SourceSpec
from posttrain.errors import DataError
from posttrain.records import Example


class DataSource(Protocol):
    """Examples by index; the same index always gives the same example."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Example:
        """The example, its images opened now. Raises DataError, naming the row, where the row cannot be used."""
        ...


class RowSource:
    """A data source over rows: each is parsed, and its images are opened, when it is asked for."""

    def __init__(self, rows: Sequence[Mapping[str, Any]], spec: SourceSpec, row_name: Callable[[int], str]) -> None:
        self.spec = spec
        self._rows = rows
        self._row_name = row_name
        self._image_root = Path(spec.image_root) if spec.image_root is not None else Path.cwd()
        self._num_rows = len(rows) if spec.limit is None else min(spec.limit, len(rows))
        if self._num_rows == 0:
            raise DataError(f"data set {spec.path} has no rows")

    def __len__(self) -> int:
        return self._num_rows

    def __getitem__(self, index: int, /) -> Example:
        if not -self._num_rows <= index < self._num_rows:
            raise IndexError(f"data set {self.spec.path} has {self._num_rows} rows, asked for row {index}")
        index %= self._num_rows
        name = self._row_name(index)
        row = parse_row(self._rows[index], self.spec, name)
        images = tuple(
            open_image(
                _strip(ref, self.spec.image_strip),
                root=self._image_root,
                row=name,
                allow_urls=self.spec.allow_urls,
            )
            for ref in row.image_refs
        )
        return Example(id=name, task=row.task, messages=row.messages, images=images, reference=row.reference)

    def task(self, index: int) -> str:
        """Of one row, whose images are not opened. Raises DataError where the row cannot be used."""
        return parse_row(self._rows[index], self.spec, self._row_name(index)).task


def open_source(spec: SourceSpec) -> RowSource:
    """The data set that `spec` names. Raises DataError where it is missing, empty, damaged or of an unknown kind."""
    path = Path(spec.path).expanduser()
    if path.is_file():
        if spec.split is not None or spec.subset is not None:
            raise DataError(f"data set {spec.path} is one file: split and subset do not apply; remove them")
        rows = _read_file(path, spec.limit)
    elif path.is_dir():
        rows = _read_saved(path, spec.split)
    elif re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", spec.path) and path.suffix[1:] not in _FILE_KINDS:
        rows = _read_hub(spec)
    else:
        raise DataError(f"data set {spec.path} does not exist (looked for {path.absolute()})")
    if spec.image_root is None:
        folder = path.parent if path.is_file() else path if path.is_dir() else Path.cwd()
        spec = replace(spec, image_root=str(folder))
    elif not Path(spec.image_root).is_dir():
        raise DataError(f"data set {spec.path}: image_root {spec.image_root} is not a folder")
    row_name = rows.row_name if isinstance(rows, JsonLines) else lambda index: f"{path.name}[{index}]"
    return RowSource(rows, spec, row_name)


def from_rows(rows: Sequence[Mapping[str, Any]], spec: SourceSpec | None = None) -> RowSource:
    """Rows in memory: a list of dicts or a `datasets.Dataset`. `spec.path` is only the name in messages."""
    import datasets

    spec = spec or SourceSpec(path="rows")
    if isinstance(rows, datasets.IterableDataset | datasets.IterableDatasetDict | datasets.DatasetDict):
        raise DataError(
            f"data set {spec.path} is a {type(rows).__name__}; give a Dataset (one split, not streamed), "
            "because training draws rows by index"
        )
    if isinstance(rows, datasets.Dataset):
        rows = _undecoded(rows)
    return RowSource(rows, spec, lambda index: f"{spec.path}[{index}]")


_FILE_KINDS = ("jsonl", "ndjson", "json", "parquet")


def _read_file(path: Path, limit: int | None) -> Sequence[Mapping[str, Any]]:
    kind = path.suffix.lower().removeprefix(".")
    if kind in ("jsonl", "ndjson"):
        return JsonLines(path, limit)
    if kind == "json":
        return read_json(path, limit)
    if kind == "parquet":
        import datasets
        from datasets.exceptions import DatasetGenerationError

        try:
            return _undecoded(datasets.load_dataset("parquet", data_files=str(path), split="train"))
        except (OSError, ValueError, DatasetGenerationError) as error:
            cause = error.__cause__ or error
            raise DataError(f"{path.name}: cannot be read as Parquet ({_first_line(cause)})") from error
    raise DataError(f"data set {path} has an unknown ending; known are: {', '.join('.' + k for k in _FILE_KINDS)}")


def _read_saved(folder: Path, split: str | None) -> Sequence[Mapping[str, Any]]:
    import datasets

    try:
        found = datasets.load_from_disk(str(folder))
    except (OSError, ValueError) as error:
        raise DataError(
            f"data set {folder} is a folder, but not one saved by datasets.save_to_disk ({_first_line(error)}); "
            "name the file in it"
        ) from error
    if isinstance(found, datasets.DatasetDict):
        if split not in found:
            raise DataError(
                f"data set {folder} has the splits {', '.join(map(str, found))}; choose one by `split`, got {split}"
            )
        found = found[split]
    elif split is not None:
        raise DataError(f"data set {folder} has no splits; remove split: {split}")
    return _undecoded(found)


def _read_hub(spec: SourceSpec) -> Sequence[Mapping[str, Any]]:
    import datasets
    from datasets.exceptions import DatasetGenerationError

    try:
        return _undecoded(datasets.load_dataset(spec.path, spec.subset, split=spec.split or "train"))
    except (OSError, ValueError, DatasetGenerationError) as error:
        raise DataError(
            f"data set {spec.path} is neither a file here nor to be had from the hub ({_first_line(error)})"
        ) from error


def _undecoded(rows: Any) -> Sequence[Mapping[str, Any]]:
    """Images of a `datasets.Dataset` as {"bytes", "path"}: our own checks open them."""
    import datasets

    for name, feature in rows.features.items():
        if isinstance(feature, datasets.Image):
            rows = rows.cast_column(name, datasets.Image(decode=False))
        elif isinstance(feature, datasets.List) and isinstance(feature.feature, datasets.Image):
            rows = rows.cast_column(name, datasets.List(datasets.Image(decode=False)))
    return rows.with_format(None)


def _strip(ref: Any, prefix: str) -> Any:
    return ref.removeprefix(prefix) if isinstance(ref, str) else ref


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]
