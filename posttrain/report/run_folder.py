"""Reads a run's folder as it lies, finished or killed in the middle; what could not be read is said in notes."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from posttrain.errors import ConfigError

Row = dict[str, Any]
"""One object of a JSONL file of a stage; `step` is an int."""


class Progress(StrEnum):
    """How far a stage has come."""

    FINISHED = "finished"
    UNFINISHED = "unfinished"
    NOT_STARTED = "not started"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One stage of a run."""

    name: str
    folder: Path
    progress: Progress
    result: Mapping[str, Any]
    """Name, algorithm, seconds, steps, before, after; empty until the stage has finished."""
    algorithm: str
    metrics: Sequence[Row] = ()
    """One row a step, in order."""
    histograms: Sequence[Row] = ()
    trajectory_steps: Sequence[tuple[int, int]] = ()
    """(line, step) of each recorded trajectory; `read_trajectories` reads the chosen ones."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """Everything the report shows of a run."""

    folder: Path
    manifest: Mapping[str, Any]
    summary: Mapping[str, Any]
    """Empty while the run has not finished."""
    stages: Sequence[Stage]
    notes: list[str] = field(default_factory=list)
    """One sentence for each thing that could not be read or was left out."""

    @property
    def name(self) -> str:
        return str(self.manifest.get("name") or self.folder.resolve().name)


def read_run(folder: Path) -> Run:
    """Reads `runs/NAME`. Raises ConfigError where the folder holds neither a manifest nor stages."""
    manifest_file, stages_folder = folder / "manifest.json", folder / "stages"
    if not manifest_file.is_file() and not stages_folder.is_dir():
        raise ConfigError(f"{folder} holds no run: it has no manifest.json and no stages/; give the folder of a run")
    notes: list[str] = []
    manifest = _read_object(manifest_file, folder, notes)
    summary = _read_object(folder / "summary.json", folder, notes)
    summaries = {str(s["name"]): s for s in summary.get("stages") or () if isinstance(s, dict) and "name" in s}
    planned = _planned_stages(manifest)
    found = sorted(p.name for p in stages_folder.iterdir() if p.is_dir()) if stages_folder.is_dir() else []
    names = dict.fromkeys([*planned, *summaries, *found])
    stages = [
        _read_stage(folder, stages_folder / name, summaries.get(name, {}), planned.get(name, ""), notes)
        for name in names
    ]
    return Run(folder=folder, manifest=manifest, summary=summary, stages=stages, notes=notes)


def read_trajectories(stage: Stage, lines: Sequence[int]) -> list[Row]:
    """The trajectories at these lines of the stage's file, in the file's order."""
    wanted = set(lines)
    with (stage.folder / "trajectories.jsonl").open("rb") as file:
        texts = [text for line, text in enumerate(file, start=1) if line in wanted]
    return [row for text in texts if (row := _parse(text)) is not None]


def _planned_stages(manifest: Mapping[str, Any]) -> dict[str, str]:
    """Stage name -> algorithm, in the recipe's order; recipes hold stages as a table or as a list with names."""
    recipe = manifest.get("recipe")
    stages = recipe.get("stages") if isinstance(recipe, dict) else None
    if isinstance(stages, dict):
        return {str(k): str(v.get("algorithm", "")) if isinstance(v, dict) else "" for k, v in stages.items()}
    if isinstance(stages, list):
        return {str(s["name"]): str(s.get("algorithm", "")) for s in stages if isinstance(s, dict) and "name" in s}
    return {}


def _read_stage(run_folder: Path, folder: Path, summary: Mapping[str, Any], algorithm: str, notes: list[str]) -> Stage:
    result = _read_object(folder / "result.json", run_folder, notes) or summary

    def rows(name: str) -> Iterator[tuple[int, Row]]:
        path = folder / name
        return _rows(path, lambda problem: notes.append(f"{path.relative_to(run_folder)}: {problem}"))

    steps = ((line, {"step": row["step"]}) for line, row in rows("trajectories.jsonl"))  # the texts stay on disk
    started = folder.is_dir() and any(folder.iterdir())
    return Stage(
        name=folder.name,
        folder=folder,
        progress=Progress.FINISHED if result else Progress.UNFINISHED if started else Progress.NOT_STARTED,
        result=result,
        algorithm=str(result.get("algorithm") or algorithm),
        metrics=[row for _, row in _without_replaced(rows("metrics.jsonl"), one_a_step=True)],
        histograms=[row for _, row in _without_replaced(rows("histograms.jsonl"))],
        trajectory_steps=[(line, row["step"]) for line, row in _without_replaced(steps)],
    )


def _read_object(path: Path, run_folder: Path, notes: list[str]) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        notes.append(f"{path.relative_to(run_folder)} could not be read: {error}")
        return {}
    if not isinstance(value, dict):
        notes.append(f"{path.relative_to(run_folder)} holds a {type(value).__name__} where an object was expected")
        return {}
    return value


def _rows(path: Path, complain: Callable[[str], None]) -> Iterator[tuple[int, Row]]:
    """(line, row) of every line that is an object with an integer step; the others are counted and named at the end."""
    if not path.is_file():
        return
    bad: list[int] = []
    line = 0
    try:
        with path.open("rb") as file:
            for line, text in enumerate(file, start=1):
                if not text.strip():
                    continue
                row = _parse(text)
                if row is None:
                    bad.append(line)
                else:
                    yield line, row
    except OSError as error:
        complain(f"could not be read: {error.strerror}")
    if bad == [line]:
        complain(f"the last line ({line}) is not whole, as a killed run leaves it; it was skipped")
    elif bad:
        complain(f"{len(bad)} unreadable line(s) skipped, the first is line {bad[0]}")


def _parse(text: bytes) -> Row | None:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return None
    whole = isinstance(row, dict) and isinstance(row.get("step"), int) and not isinstance(row["step"], bool)
    return row if whole else None


def _without_replaced(rows: Iterator[tuple[int, Row]], *, one_a_step: bool = False) -> list[tuple[int, Row]]:
    """Where the step number goes back, a run was resumed from a checkpoint: its rows replace the old ones."""
    kept: list[tuple[int, Row]] = []
    for line, row in rows:
        if kept and (kept[-1][1]["step"] > row["step"] or one_a_step):
            while kept and kept[-1][1]["step"] >= row["step"]:
                kept.pop()
        kept.append((line, row))
    return kept
