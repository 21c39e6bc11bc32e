"""Runs a recipe: its stages in order, each from the one before, none twice, each measured before and after."""

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console
from rich.table import Table

from posttrain.build import (
    HOW_NOT_WHAT,
    AnyStage,
    EngineRoom,
    Loaded,
    StageBuilder,
    fingerprint,
    load,
    make_accelerator,
    make_evaluation,
    make_rewards,
    resumable,
)
from posttrain.checkpoints import save_weights, seed_everything
from posttrain.config import Recipe
from posttrain.data import corpus
from posttrain.errors import ConfigError
from posttrain.evaluation import Evaluation
from posttrain.export import last_model
from posttrain.model.families import Family
from posttrain.model.parts import PartCount
from posttrain.model.tiny import build_tiny
from posttrain.records import Trajectory
from posttrain.report import TrajectoryRecorder, stage_table, write_report
from posttrain.rewards import RewardTable
from posttrain.runs import RunFolder, StageFolder, read_json, write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A finished run."""

    folder: Path
    model: Path
    """The last stage's model or adapter."""
    summary: Mapping[str, Any]
    report: Path | None


def run_recipe(recipe: Recipe, *, restart: bool = False) -> RunResult:
    """Runs every stage that is not finished yet; resumes the one that was interrupted.

    Raises ConfigError where a finished or interrupted stage was made with other settings (unless `restart`, which
    deletes what the run's folder holds), and Interrupted after Ctrl-C.
    """
    folder = RunFolder(Path(recipe.output_dir or f"runs/{recipe.name}"))
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    accelerator = make_accelerator(recipe.model, recipe.trackers, folder.path)
    if not accelerator.is_main_process:
        return _run(recipe, folder, accelerator)
    with folder.lock():
        if restart:
            folder.forget()
        return _run(recipe, folder, accelerator)


def _run(recipe: Recipe, folder: RunFolder, accelerator: Accelerator) -> RunResult:
    started = time.perf_counter()
    console = Console(stderr=True, quiet=not accelerator.is_main_process)
    rewards = make_rewards(recipe.rewards) if recipe.rewards else None
    accelerator.wait_for_everyone()
    made_by = _fingerprints(recipe)
    begun = _is_begun(folder, made_by)
    if accelerator.is_main_process:
        folder.write_manifest(name=recipe.name, seed=recipe.seed, recipe=recipe.model_dump(mode="json"))
    if recipe.trackers:
        accelerator.init_trackers(recipe.name, config={"seed": recipe.seed})
    path = _start(recipe, folder, accelerator, begun)
    engines = EngineRoom(recipe.engine, recipe.model, recipe.seed, accelerator)
    results: list[dict[str, Any]] = []
    try:
        for name, stage in recipe.stages.items():
            run = _StageRun(
                recipe, name, stage, folder.stage(name), path, made_by[name], rewards, engines, accelerator, console
            )
            results.append(run.result(results[-1]["after"] if results else None))
            path = folder.stage(name).final
            if accelerator.is_main_process:
                _summarise(folder, results, started, report=None)
    finally:
        engines.close()
        accelerator.end_training()
        report = _report(folder, console) if accelerator.is_main_process else None
    summary = _summarise(folder, results, started, report) if accelerator.is_main_process else {}
    console.print(stage_table(results))
    if report is not None:
        console.print(f"[bold]report[/bold]  {_short(report)}\n[bold]model[/bold]   {_short(Path(path))}")
    return RunResult(folder=folder.path, model=Path(path), summary=summary, report=report)


def evaluate_recipe(recipe: Recipe, model: str | None = None) -> dict[str, float]:
    """Measures `model`, or what the recipe's run has made last, on the recipe's held-out data."""
    if recipe.evaluation is None:
        raise ConfigError("this recipe has no 'evaluation' section: say there what to measure")
    folder = RunFolder(Path(recipe.output_dir or f"runs/{recipe.name}"))
    if model is None and not (folder.path / "manifest.json").is_file():
        raise ConfigError(f"{folder.path} holds no run yet; run the recipe first, or name a model with --model")
    if recipe.threads is not None:
        torch.set_num_threads(recipe.threads)
    accelerator = make_accelerator(recipe.model, (), folder.path)
    loaded = load(recipe.model, model or last_model(folder.path), accelerator, trained=False)
    engines = EngineRoom(recipe.engine, recipe.model, recipe.seed, accelerator)
    rewards = make_rewards(recipe.rewards) if recipe.rewards else None
    try:
        evaluation = make_evaluation(recipe.evaluation, recipe, loaded, engines, rewards, accelerator)
        return evaluation.measure(loaded.policy)[0]
    finally:
        engines.close()


def _fingerprints(recipe: Recipe) -> dict[str, str]:
    """For each stage a hash of all that made it: its own settings and those of the stages before."""
    rewards = {task: section.model_dump(mode="json") for task, section in recipe.rewards.items()}
    made_by = fingerprint(recipe.model, recipe.seed, rewards)
    found = {}
    for name, stage in recipe.stages.items():
        found[name] = made_by = fingerprint(made_by, name, stage.model_dump(mode="json", exclude=set(HOW_NOT_WHAT)))
    return found


def _is_begun(folder: RunFolder, made_by: Mapping[str, str]) -> bool:
    """True where a stage is finished or can be resumed. Raises ConfigError, before anything is written, where one was
    made with other settings."""
    begun = False
    for name, wanted in made_by.items():
        stage = folder.stage(name)
        if not stage.result.is_file():
            begun = resumable(stage, wanted) is not None or begun
            continue
        if read_json(stage.result).get("fingerprint") != wanted:
            raise ConfigError(
                f"stage '{name}' was finished with other settings than this recipe's; put them back, choose another "
                "output_dir, or add --restart to start again"
            )
        begun = True
    return begun


def _start(recipe: Recipe, folder: RunFolder, accelerator: Accelerator, begun: bool) -> Path | str:
    """What the first stage starts from; a tiny random model is built once into the run's folder."""
    if recipe.model.path is not None:
        return recipe.model.path
    assert recipe.model.tiny is not None
    if accelerator.is_main_process and not (begun and (folder.model / "config.json").is_file()):
        build_tiny(Family(recipe.model.tiny), folder.model, seed=recipe.seed, corpus=corpus(1500, seed=0))
    accelerator.wait_for_everyone()
    return folder.model


@dataclass
class _StageRun:
    """One stage, from what is on disk of it to its result."""

    recipe: Recipe
    name: str
    stage: AnyStage
    folder: StageFolder
    start: Path | str
    fingerprint: str
    rewards: RewardTable | None
    engines: EngineRoom
    accelerator: Accelerator
    console: Console

    def result(self, measured_before: dict[str, float] | None) -> dict[str, Any]:
        if self.folder.result.is_file():
            return self._finished()
        started = time.perf_counter()
        checkpoint = resumable(self.folder, self.fingerprint)
        seed_everything(self.recipe.seed)
        loaded = load(self.recipe.model, checkpoint.model if checkpoint else self.start, self.accelerator)
        builder = StageBuilder(
            recipe_model=self.recipe.model,
            stage=self.stage,
            seed=self.recipe.seed,
            loaded=loaded,
            start=self.start,
            engines=self.engines,
            rewards=self.rewards,
            accelerator=self.accelerator,
            folder=self.folder,
            fingerprint=self.fingerprint,
            title=self.name,
        )
        parts = builder.freeze()
        self.console.rule(f"[bold]{self.name}[/bold]  {self.stage.algorithm}, {builder.steps} steps")
        self.console.print(parts_table(parts))
        if checkpoint is not None:
            self.console.print(f"resuming before step {checkpoint.step} from {_short(checkpoint.path)}")
        evaluation = self._evaluation(loaded)
        known = read_json(self.folder.before) if checkpoint and self.folder.before.is_file() else measured_before
        before = self._before(evaluation, loaded, known)
        trainer = builder.trainer(checkpoint)
        trainer.train()
        save_weights(
            self.folder.final,
            model=loaded.policy.model,  # pyright: ignore[reportArgumentType]
            wrapped=trainer.wrapped,
            processor=loaded.processor,
            accelerator=self.accelerator,
        )
        after, shown = evaluation.measure(loaded.policy, version=trainer.step) if evaluation else ({}, [])
        self._record(loaded, trainer.step, shown)
        result = {
            "name": self.name,
            "algorithm": self.stage.algorithm,
            "seconds": round(time.perf_counter() - started, 1),
            "steps": trainer.step,
            "before": before,
            "after": after,
            "fingerprint": self.fingerprint,
        }
        if self.accelerator.is_main_process:
            write_json(self.folder.result, result)
            shutil.rmtree(self.folder.checkpoints, ignore_errors=True)
        self.accelerator.wait_for_everyone()
        self.accelerator.free_memory()
        return result

    def _finished(self) -> dict[str, Any]:
        self.console.print(f"[bold]{self.name}[/bold] is finished: not run again")
        return read_json(self.folder.result)

    def _evaluation(self, loaded: Loaded) -> Evaluation | None:
        section = self.recipe.evaluation
        if section is None:
            return None
        return make_evaluation(section, self.recipe, loaded, self.engines, self.rewards, self.accelerator)

    def _before(
        self, evaluation: Evaluation | None, loaded: Loaded, known: dict[str, float] | None
    ) -> dict[str, float]:
        """Measured once: what the stage before ended with, or what a killed run of this stage had found."""
        if evaluation is None:
            return {}
        measured = known or evaluation.measure(loaded.policy)[0]
        if self.accelerator.is_main_process:
            write_json(self.folder.before, measured)
        return measured

    def _record(self, loaded: Loaded, step: int, shown: list[Trajectory]) -> None:
        if self.stage.record_trajectories and self.accelerator.is_main_process:
            TrajectoryRecorder(self.folder.path, 2 * self.stage.record_trajectories).record(step, shown)


def parts_table(parts: tuple[PartCount, ...]) -> Table:
    """Parameters by part, and how many of them are trained."""
    table = Table(box=None, pad_edge=False)
    for column, justify in (("part", "left"), ("parameters", "right"), ("trained", "right")):
        table.add_column(column, justify=justify)  # pyright: ignore[reportArgumentType]
    for part in parts:
        table.add_row(part.part.value, f"{part.total:,}", f"{part.trained:,}")
    table.add_row("all", f"{sum(p.total for p in parts):,}", f"{sum(p.trained for p in parts):,}", style="bold")
    return table


def _summarise(folder: RunFolder, results: list[dict[str, Any]], started: float, report: Path | None) -> dict[str, Any]:
    fields = ("name", "algorithm", "seconds", "steps", "before", "after")
    summary = {
        "seconds": round(max(time.perf_counter() - started, sum(r["seconds"] for r in results)), 1),
        "stages": [{key: result[key] for key in fields} for result in results],
        "report": str(report or folder.path / "report.html"),
    }
    write_json(folder.summary, summary)
    return summary


def _report(folder: RunFolder, console: Console) -> Path | None:
    """A report that cannot be made costs a sentence, not the run."""
    try:
        return write_report(folder.path)
    except OSError as error:
        console.print(f"the report could not be written: {error}")
        return None


def _short(path: Path) -> str:
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)


__all__ = ["RunResult", "evaluate_recipe", "parts_table", "run_recipe"]
