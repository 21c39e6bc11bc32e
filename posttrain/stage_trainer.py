"""What every Python trainer shares: a model, data and arguments in; a run with its report out."""

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Generic, Literal, TypeVar, get_args

from accelerate import Accelerator
from datasets import Dataset, IterableDataset
from peft import LoraConfig, PeftModel, get_peft_model, load_peft_weights, set_peft_model_state_dict
from pydantic import ValidationError
from transformers import PreTrainedModel

from posttrain.checkpoints import Checkpoint, save_weights, seed_everything
from posttrain.config import EngineSection, LoraSection, ModelSection, PolicyStage, TrainingStage
from posttrain.data import DataSource, Mixture, SourceSpec, from_rows, open_source
from posttrain.errors import ConfigError
from posttrain.given_environments import (
    GivenEnvironments,
    described_environment,
    given_environments,
    task_environments,
)
from posttrain.loaded import Loaded, load, make_accelerator, tokenizer_of
from posttrain.model import PackedPolicy, facts_of
from posttrain.model.loading import Processor, load_model, save_model
from posttrain.model.parts import PartCount
from posttrain.played_tasks import check_tasks
from posttrain.recipe import explain
from posttrain.report import write_report
from posttrain.rewards import RewardTable
from posttrain.rollout.engine import Engine
from posttrain.rollout.engine_room import EngineRoom
from posttrain.runs import RunFolder, write_json
from posttrain.stage_builder import HOW_NOT_WHAT, StageBuilder, fingerprint, resumable
from posttrain.teachers.given import TeacherSpec, described, given_teachers
from posttrain.teachers.room import TeacherRoom, same_teachers
from posttrain.trainer import Trainer

Rows = DataSource | Sequence[Mapping[str, Any]] | str | Path
"""A data source, a `datasets.Dataset` or a list of rows, or the path of a file."""

Arguments = TypeVar("Arguments", bound=TrainingStage)
"""A stage's keys, with an `output_dir` and a `seed`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """What `train()` leaves behind."""

    output_dir: Path
    model_dir: Path
    """The trained model or adapter, in the standard format."""
    steps: int
    report: Path


class StageTrainer(Generic[Arguments]):
    """A stage run from Python. `train()` resumes an interrupted run of the same settings."""

    name: ClassVar[str]
    configs: ClassVar[tuple[type, ...]]
    """Classes of `args`; the first is the default."""

    def __init__(
        self,
        model: str | Path | PreTrainedModel | PeftModel,
        train_dataset: Rows | Mapping[str, Rows],
        args: Arguments | None = None,
        *,
        processing_class: Processor | None = None,
        peft_config: LoraSection | LoraConfig | None = None,
        reward_table: RewardTable | None = None,
        teacher: TeacherSpec | Mapping[str, TeacherSpec] | None = None,
        environments: GivenEnvironments | None = None,
        engine: EngineSection | Engine | None = None,
        model_section: Mapping[str, Any] | None = None,
    ) -> None:
        """model: a checkpoint folder, a hub name, or a model in memory (then with its `processing_class`), which is
        trained in place.

        train_dataset: rows, or {task: rows}; several are mixed evenly. `model_section`: further keys of a recipe's
        `model`, such as dtype, thinking and max_pixels. teacher: for stages with a `distill_coefficient` or a
        `teacher_advantage`: a checkpoint, a model in memory, {"server": address, ...}, {"student": True}, or a
        `Teacher`; or {task: one of these}. environments: of stages that sample: a class of environments, a function
        that makes one, or a name with options and limits as a recipe writes it; or {task: one of these}, where
        "default" is for every other task.
        """
        self.args: Any = args or self.configs[0](steps=100)
        if not isinstance(self.args, self.configs):
            wanted = " or ".join(config.__name__ for config in self.configs)
            raise ConfigError(f"{type(self).__name__} takes args of posttrain.{wanted}, got {type(args).__name__}")
        if self.args.data:
            raise ConfigError(f"{type(self.args).__name__}.data belongs to recipes: give the rows as train_dataset")
        self.folder = RunFolder(Path(self.args.output_dir))
        in_memory = not isinstance(model, (str, Path))
        lora = peft_config if isinstance(peft_config, LoraSection) else None
        try:
            self._section = ModelSection(
                path="in memory" if in_memory else str(model), lora=lora, **dict(model_section or {})
            )
        except ValidationError as error:
            raise ConfigError("\n".join(explain(error, ModelSection))) from None
        self.accelerator: Accelerator = make_accelerator(self._section, (), self.folder.path)
        self._stage_folder = self.folder.stage(self.name)
        tasks = given_environments(environments)
        self._fingerprint = fingerprint(
            self._section,
            self.args.model_dump(mode="json", exclude={"output_dir", *HOW_NOT_WHAT}),
            _plain(peft_config),
            described(teacher),
            {task: described_environment(played) for task, played in tasks.items()},
        )
        checkpoint = resumable(self._stage_folder, self._fingerprint)
        seed_everything(self.args.seed)
        start: Path | str = str(model)
        if isinstance(model, (str, Path)):
            self.loaded = _load(self._section, model, peft_config, checkpoint, self.accelerator)
            self.loaded.processor = processing_class or self.loaded.processor
        else:
            self.loaded = _wrap(model, processing_class, peft_config, self.accelerator)
            start = self._kept_start()
            if checkpoint is not None:
                _restore(self.model, checkpoint.model)
        self.parts: tuple[PartCount, ...] = ()
        room = EngineRoom(
            engine if isinstance(engine, EngineSection) else EngineSection(),  # pyright: ignore[reportCallIssue]
            self._section,
            self.args.seed,
            self.accelerator,
        )  # pyright: ignore[reportCallIssue]
        if engine is not None and not isinstance(engine, EngineSection):
            room = _GivenEngine(engine)
        self._room = room
        given = given_teachers(teacher)
        by_task = {task: task for task in given} if len(given) > 1 else None
        self._teachers = TeacherRoom(given, self.accelerator, routes=by_task)
        self._teacher_table = self._teachers.table(self.name, self.args, self.loaded, self._section)
        if given and self._teacher_table is None:
            raise ConfigError(
                f"{type(self).__name__} got a teacher, and {type(self.args).__name__} asks none: set "
                "distill_coefficient or teacher_advantage, or leave the teacher out"
            )
        if self._teacher_table is not None:
            same_teachers(self._stage_folder, self._teacher_table, resumed=checkpoint is not None)
        mixture = _mixture(train_dataset, self.args.seed)
        check_tasks(tasks, [lambda rows=rows: rows for rows in mixture.sources.values()])
        builder = StageBuilder(
            recipe_model=self._section,
            stage=self.args,
            seed=self.args.seed,
            loaded=self.loaded,
            start=start,
            engines=room,
            rewards=reward_table,
            accelerator=self.accelerator,
            folder=self._stage_folder,
            fingerprint=self._fingerprint,
            title=self.name,
            environments=task_environments(tasks),
            mixture=mixture,
            teachers=self._teacher_table,
        )
        self.parts = builder.freeze()
        self.trainer: Trainer = builder.trainer(checkpoint)

    @property
    def model(self) -> PreTrainedModel | PeftModel:
        return self.loaded.policy.model  # pyright: ignore[reportReturnType]

    def train(self) -> TrainResult:
        """Trains to the last step, saves the model and writes the report."""
        is_main = self.accelerator.is_main_process
        with self.folder.lock() if is_main else nullcontext():
            if is_main:
                recipe = {
                    "model": self._section.model_dump(mode="json"),
                    "stages": {self.name: self.args.model_dump(mode="json")},
                }
                self.folder.write_manifest(name=self.folder.path.name, seed=self.args.seed, recipe=recipe)
            started = time.perf_counter()
            try:
                self.trainer.train()
            finally:
                if self._teacher_table is not None:
                    self._teacher_table.flush()
            self.save_model(self._stage_folder.final)
            self._room.close()
            self._teachers.close()
            report = self.folder.path / "report.html"
            if is_main:
                result = {
                    "name": self.name,
                    "algorithm": self.args.algorithm,
                    "seconds": round(time.perf_counter() - started, 1),
                    "steps": self.trainer.step,
                    "before": {},
                    "after": {},
                }
                write_json(self._stage_folder.result, result)
                shutil.rmtree(self._stage_folder.checkpoints, ignore_errors=True)
                report = write_report(self.folder.path)
            self.accelerator.wait_for_everyone()
        return TrainResult(
            output_dir=self.folder.path, model_dir=self._stage_folder.final, steps=self.trainer.step, report=report
        )

    def save_model(self, folder: str | Path) -> None:
        """The model or the adapter, in the standard format; every process calls this."""
        save_weights(
            Path(folder),
            model=self.model,
            wrapped=self.trainer.wrapped,
            processor=self.loaded.processor,
            accelerator=self.accelerator,
        )

    def _kept_start(self) -> Path:
        """Where a model in memory is written that KL compares with: a resumed run has to find it again."""
        folder = self.folder.start_of(self.name)
        needs_reference = isinstance(self.args, _POLICY_STAGES) and self.args.kl_coefficient > 0
        if needs_reference and not isinstance(self.model, PeftModel):
            if self.accelerator.is_main_process:
                save_model(self.model, self.loaded.processor, folder)
            self.accelerator.wait_for_everyone()
        return folder


_POLICY_STAGES = get_args(PolicyStage)


class _GivenEngine(EngineRoom):
    """A caller's own engine."""

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def engine_for(self, loaded: Loaded, *, dtype: Literal["float32", "bfloat16"] | None = None) -> Engine:
        return self._engine

    def close(self) -> None:
        """The caller's to close."""


def _plain(peft_config: LoraSection | LoraConfig | None) -> dict[str, Any]:
    """Settings of adapters, equal whenever they mean the same: peft keeps names in sets."""
    if not isinstance(peft_config, LoraConfig):
        return {}  # a LoraSection is part of the model's section
    return {key: sorted(v) if isinstance(v, set) else v for key, v in peft_config.to_dict().items()}


def _load(
    section: ModelSection,
    model: str | Path,
    peft_config: LoraSection | LoraConfig | None,
    checkpoint: Checkpoint | None,
    accelerator: Accelerator,
) -> Loaded:
    """A model from disk or the hub, or the checkpoint of it that is resumed."""
    path = checkpoint.model if checkpoint is not None else model
    if not isinstance(peft_config, LoraConfig):
        return load(section, path, accelerator)
    loaded = load(section, path, accelerator, trained=False)  # only adapters are trained: the base in its own dtype
    return _wrap(loaded.policy.model, loaded.processor, peft_config, accelerator)  # pyright: ignore[reportArgumentType]


def _restore(model: PreTrainedModel | PeftModel, folder: Path) -> None:
    """Puts the weights of a checkpoint into a model that a caller holds."""
    if isinstance(model, PeftModel):
        set_peft_model_state_dict(model, load_peft_weights(str(folder), device="cpu"))
    else:
        model.load_state_dict(load_model(folder, dtype=model.dtype).state_dict())


def _wrap(
    model: PreTrainedModel | PeftModel,
    processor: Processor | None,
    peft_config: LoraSection | LoraConfig | None,
    accelerator: Accelerator,
) -> Loaded:
    """A model that a caller has in memory already."""
    if processor is None:
        raise ConfigError(
            "a model in memory needs its processor: pass processing_class=AutoProcessor.from_pretrained(...)"
        )
    inner: Any = model.get_base_model() if isinstance(model, PeftModel) else model
    facts = facts_of(inner.config, tokenizer_of(processor), inner.generation_config)
    if isinstance(peft_config, LoraConfig) and not isinstance(model, PeftModel):
        model = get_peft_model(model, peft_config)  # pyright: ignore[reportAssignmentType]
    elif isinstance(peft_config, LoraSection) and not isinstance(model, PeftModel):
        from posttrain.model.lora import add_lora

        model = add_lora(
            model,
            facts,
            rank=peft_config.rank,
            alpha=peft_config.alpha,
            dropout=peft_config.dropout,
            parts=peft_config.parts,
        )
    model.to(accelerator.device)  # pyright: ignore[reportArgumentType]
    return Loaded(policy=PackedPolicy(model, facts), processor=processor, facts=facts, path=inner.name_or_path)


def _mixture(rows: Rows | Mapping[str, Rows], seed: int) -> Mixture:
    if isinstance(rows, Mapping):
        sources = {task: _source(given, task) for task, given in rows.items()}
    else:
        sources = {"train_dataset": _source(rows, "default")}
    return Mixture(sources, dict.fromkeys(sources, 1.0), seed=seed)


def _source(rows: Rows, task: str) -> DataSource:
    if isinstance(rows, (str, Path)):
        return open_source(SourceSpec(path=str(rows), task=task))
    if isinstance(rows, (list, tuple, Dataset, IterableDataset)):
        return from_rows(rows, SourceSpec(path="train_dataset", task=task))  # pyright: ignore[reportArgumentType]
    return rows  # pyright: ignore[reportReturnType]
