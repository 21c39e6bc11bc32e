"""One stage of a recipe that trains: from what is on disk of it to its result."""

import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.table import Table

from posttrain.build import make_evaluation
from posttrain.checkpoints import save_weights, seed_everything
from posttrain.config import ModelSection, TrainingStage
from posttrain.evaluation import Evaluation
from posttrain.loaded import Loaded, load
from posttrain.model.parts import PartCount
from posttrain.records import Trajectory
from posttrain.report import TrajectoryRecorder
from posttrain.run_parts import RunParts
from posttrain.runs import StageFolder, read_json, write_json
from posttrain.stage_builder import StageBuilder, resumable
from posttrain.teachers.room import same_teachers


@dataclass(kw_only=True)
class StageRun:
    """A stage with all that its run wants."""

    parts: RunParts
    name: str
    stage: TrainingStage
    """Its data resolved to paths."""
    folder: StageFolder
    model: ModelSection
    start: Path | str
    fingerprint: str

    def result(self, measured_before: dict[str, float] | None) -> dict[str, Any]:
        """Runs what is left of the stage. measured_before: what its origin was measured with, where it was."""
        if self.folder.result.is_file():
            self.parts.console.print(f"[bold]{self.name}[/bold] is finished: not run again")
            return read_json(self.folder.result)
        started = time.perf_counter()
        checkpoint = resumable(self.folder, self.fingerprint)
        seed_everything(self.parts.recipe.seed)
        loaded = load(self.model, checkpoint.model if checkpoint else self.start, self.parts.accelerator)
        table = self.parts.teachers.table(self.name, self.stage, loaded, self.model)
        if table is not None:
            same_teachers(self.folder, table, resumed=checkpoint is not None)
        builder = StageBuilder(
            recipe_model=self.model,
            stage=self.stage,
            seed=self.parts.recipe.seed,
            loaded=loaded,
            start=self.start,
            engines=self.parts.engines,
            rewards=self.parts.rewards,
            accelerator=self.parts.accelerator,
            folder=self.folder,
            fingerprint=self.fingerprint,
            title=self.name,
            environments=self.parts.environments,
            teachers=table,
        )
        counts = builder.freeze()
        self.parts.console.rule(f"[bold]{self.name}[/bold]  {self.stage.algorithm}, {builder.steps} steps")
        self.parts.console.print(parts_table(counts))
        if checkpoint is not None:
            self.parts.console.print(f"resuming before step {checkpoint.step} from {short(checkpoint.path)}")
        evaluation = self._evaluation(loaded)
        known = read_json(self.folder.before) if checkpoint and self.folder.before.is_file() else measured_before
        before = self._before(evaluation, loaded, known)
        trainer = builder.trainer(checkpoint)
        try:
            trainer.train()
        finally:
            if table is not None:
                table.flush()
        save_weights(
            self.folder.final,
            model=loaded.policy.model,  # pyright: ignore[reportArgumentType]
            wrapped=trainer.wrapped,
            processor=loaded.processor,
            accelerator=self.parts.accelerator,
        )
        after, shown = evaluation.measure(loaded.policy, version=trainer.step) if evaluation else ({}, [])
        self._record(trainer.step, shown)
        result = {
            "name": self.name,
            "algorithm": self.stage.algorithm,
            "seconds": round(time.perf_counter() - started, 1),
            "steps": trainer.step,
            "before": before,
            "after": after,
            "fingerprint": self.fingerprint,
        }
        if self.parts.accelerator.is_main_process:
            write_json(self.folder.result, result)
            shutil.rmtree(self.folder.checkpoints, ignore_errors=True)
        self.parts.accelerator.wait_for_everyone()
        self.parts.accelerator.free_memory()
        return result

    def _evaluation(self, loaded: Loaded) -> Evaluation | None:
        section = self.parts.recipe.evaluation
        if section is None:
            return None
        return make_evaluation(
            section,
            self.parts.recipe,
            self.model,
            loaded,
            self.parts.engines,
            self.parts.rewards,
            self.parts.environments,
            self.parts.accelerator,
        )

    def _before(
        self, evaluation: Evaluation | None, loaded: Loaded, known: dict[str, float] | None
    ) -> dict[str, float]:
        """Measured once: what its origin ended with, or what a killed run of this stage had found."""
        if evaluation is None:
            return {}
        measured = known or evaluation.measure(loaded.policy)[0]
        if self.parts.accelerator.is_main_process:
            write_json(self.folder.before, measured)
        return measured

    def _record(self, step: int, shown: list[Trajectory]) -> None:
        if self.stage.record_trajectories and self.parts.accelerator.is_main_process:
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


def short(path: Path) -> str:
    """Relative to the working directory where it lies below it."""
    try:
        return str(path.relative_to(Path.cwd()))
    except ValueError:
        return str(path)
