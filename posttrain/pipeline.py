"""Runs a recipe: its stages in order, each from the one before, none twice, each measured before and after."""

import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from rich.console import Console

from posttrain.build import make_environments, make_evaluation, make_rewards
from posttrain.config import AnswersStage, Recipe
from posttrain.errors import ConfigError
from posttrain.export import last_model
from posttrain.lineage import fingerprints, is_begun, origins, start_of, with_answers
from posttrain.loaded import load, make_accelerator
from posttrain.played_tasks import check_recipe_tasks
from posttrain.report import stage_table, write_report
from posttrain.rollout.engine_room import EngineRoom
from posttrain.run_parts import RunParts
from posttrain.runs import RunFolder, write_json
from posttrain.stage_answers import AnswersRun
from posttrain.stage_run import StageRun, short
from posttrain.teachers.room import TeacherRoom


@dataclass(frozen=True, slots=True, kw_only=True)
class RunResult:
    """A finished run."""

    folder: Path
    model: Path | None
    """The model or adapter of the last stage that trains; None where the recipe has none."""
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
    check_recipe_tasks(recipe)
    accelerator.wait_for_everyone()
    made_by = fingerprints(recipe)
    begun = is_begun(folder, made_by)
    if accelerator.is_main_process:
        folder.write_manifest(name=recipe.name, seed=recipe.seed, recipe=recipe.model_dump(mode="json"))
    if recipe.trackers:
        accelerator.init_trackers(recipe.name, config={"seed": recipe.seed})
    parts = RunParts(
        recipe=recipe,
        rewards=rewards,
        environments=make_environments(recipe.environments),
        engines=EngineRoom(recipe.engine, recipe.model, recipe.seed, accelerator),
        teachers=TeacherRoom(recipe.teachers, accelerator, stage_model=lambda name: folder.stage(name).final),
        accelerator=accelerator,
        console=console,
    )
    origin = origins(recipe)
    results: dict[str, dict[str, Any]] = {}
    path: Path | None = None
    try:
        for name, stage in recipe.stages.items():
            resolved, own = with_answers(stage, folder), folder.stage(name)
            if isinstance(resolved, AnswersStage):
                run = AnswersRun(parts=parts, name=name, stage=resolved, folder=own, fingerprint=made_by[name])
                results[name] = run.result()
            else:
                start = start_of(name, origin[name], folder, seed=recipe.seed, begun=begun, accelerator=accelerator)
                run = StageRun(
                    parts=parts,
                    name=name,
                    stage=resolved,
                    folder=own,
                    model=origin[name].model,
                    start=start,
                    fingerprint=made_by[name],
                )
                results[name] = run.result(results.get(origin[name].parent or "", {}).get("after"))
                path = own.final
            if accelerator.is_main_process:
                _summarise(folder, list(results.values()), started, report=None)
    finally:
        parts.engines.close()
        parts.teachers.close()
        accelerator.end_training()
        report = _report(folder, console) if accelerator.is_main_process else None
    summary = _summarise(folder, list(results.values()), started, report) if accelerator.is_main_process else {}
    console.print(stage_table(results.values()))
    if report is not None:
        console.print(f"[bold]report[/bold]  {short(report)}")
    if path is not None:
        console.print(f"[bold]model[/bold]   {short(path)}")
    return RunResult(folder=folder.path, model=path, summary=summary, report=report)


def evaluate_recipe(recipe: Recipe, model: str | None = None) -> dict[str, float]:
    """Measures `model`, or what the recipe's run has made last, on the recipe's held-out data."""
    if recipe.evaluation is None:
        raise ConfigError("this recipe has no 'evaluation' section: say there what to measure")
    check_recipe_tasks(recipe)
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
        environments = make_environments(recipe.environments)
        evaluation = make_evaluation(
            recipe.evaluation, recipe, recipe.model, loaded, engines, rewards, environments, accelerator
        )
        return evaluation.measure(loaded.policy)[0]
    finally:
        engines.close()


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


__all__ = ["RunResult", "evaluate_recipe", "run_recipe"]
