"""Makes the trainer of a stage: its batches, its objective, and what it may resume from."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from pydantic import BaseModel

from posttrain.algorithms import AdvantageKind
from posttrain.batches import BatchSource, SupervisedBatches
from posttrain.build import budget_of, make_mixture, make_renderer, make_rollouts, objective_of
from posttrain.checkpoints import Checkpoint, is_sharded, latest_checkpoint
from posttrain.config import (
    ModelSection,
    OffPolicyDistillStage,
    OnPolicyDistillStage,
    PolicyStage,
    SFTStage,
    TrainingStage,
)
from posttrain.data import Mixture
from posttrain.errors import ConfigError
from posttrain.loaded import Loaded, load
from posttrain.model import TokenSequence
from posttrain.model.parts import PartCount, freeze
from posttrain.playable import check_first_rows
from posttrain.report import TrajectoryRecorder
from posttrain.rewards import RewardTable
from posttrain.rollout.batches import ReferenceLogprobs, RolloutBatches, RolloutSettings, TeacherLogprobs
from posttrain.rollout.engine_room import EngineRoom
from posttrain.rollout.rolling_batch import TaskEnvironment
from posttrain.runs import StageFolder
from posttrain.teachers.table import TeacherTable
from posttrain.trainer import Trainer, TrainingSettings

HOW_NOT_WHAT = frozenset(
    {
        "checkpoint_every",
        "keep_checkpoints",
        "record_trajectories",
        "tokens_per_microbatch",
        "patches_per_microbatch",
        "gradient_checkpointing",
    }
)
"""Keys of a stage that change memory, speed or what is kept, and no result beyond float rounding: a run that ran out of
memory is resumed with a smaller micro-batch."""


def fingerprint(*parts: BaseModel | Mapping[str, Any] | str | int) -> str:
    """Hash of settings: equal for equal settings, whatever their order."""
    plain = [p.model_dump(mode="json") if isinstance(p, BaseModel) else p for p in parts]
    return hashlib.sha256(json.dumps(plain, sort_keys=True, default=str).encode()).hexdigest()[:16]


@dataclass
class StageBuilder:
    """Makes the trainer of one stage from its section."""

    recipe_model: ModelSection
    stage: TrainingStage
    seed: int
    loaded: Loaded
    start: Path | str
    """What the stage starts from; `loaded` is a checkpoint of it when a run is resumed."""
    engines: EngineRoom
    rewards: RewardTable | None
    accelerator: Accelerator
    folder: StageFolder
    fingerprint: str
    title: str
    environments: Mapping[str, TaskEnvironment] = field(default_factory=dict)
    """Task -> what it is played in; others are one turn each."""
    teachers: TeacherTable | None = None
    """Of a stage that asks one."""
    mixture: Mixture | None = None
    """Given by Python callers, who have data and no section."""

    @cached_property
    def sources(self) -> Mixture:
        return self.mixture or make_mixture(self.stage.data, self.seed)

    @property
    def steps(self) -> int:
        if self.stage.steps is not None:
            return self.stage.steps
        assert self.stage.epochs is not None
        return self.sources.steps_for(self.stage.epochs, self.stage.batch_size)

    def freeze(self) -> tuple[PartCount, ...]:
        try:
            return freeze(self.loaded.policy.model, self.loaded.facts, self.stage.freeze)
        except ValueError as error:
            raise ConfigError(str(error)) from error

    def batches(self) -> BatchSource:
        stage, accelerator = self.stage, self.accelerator
        renderer = make_renderer(self.recipe_model, self.loaded, stage.max_length)
        rank, world = accelerator.process_index, accelerator.num_processes
        if isinstance(stage, (SFTStage, OffPolicyDistillStage)):
            return SupervisedBatches(
                self.sources,
                renderer,
                batch_size=stage.batch_size,
                steps=self.steps,
                annotate=self.teachers,
                rank=rank,
                world=world,
            )
        check_first_rows(self.sources.sources.values(), self.environments)
        return RolloutBatches(
            mixture=self.sources,
            rollouts=make_rollouts(self.loaded, renderer, self.engines, self.environments, accelerator),
            rewards=self._rewards(stage),
            policy=self.loaded.policy,
            budget=budget_of(stage),
            settings=_rollout_settings(stage, self.seed),
            reference_logprobs=self._reference(stage),
            teacher_logprobs=self._teacher_logprobs(stage),
            annotate=self.teachers if stage.distill_coefficient else None,
            rank=rank,
            world=world,
        )

    def _rewards(self, stage: PolicyStage | OnPolicyDistillStage) -> RewardTable | None:
        """What scores the rollouts; not asked where the teacher alone judges them."""
        if isinstance(stage, OnPolicyDistillStage):
            return None
        if self.rewards is None and not stage.teacher_advantage:
            raise ConfigError(f"stage '{self.title}' runs {stage.algorithm} and needs rewards: add a 'rewards' section")
        for task, rewards in self.rewards.tasks.items() if self.rewards is not None else ():
            if rewards.min_scored > stage.group_size:
                raise ConfigError(
                    f"rewards.{task}.min_scored is {rewards.min_scored}, and the groups of stage '{self.title}' have "
                    f"{stage.group_size} answers: none would be trained on"
                )
        return self.rewards

    def _teacher_logprobs(self, stage: PolicyStage | OnPolicyDistillStage) -> TeacherLogprobs | None:
        if isinstance(stage, OnPolicyDistillStage) or not stage.teacher_advantage:
            return None
        assert self.teachers is not None
        return self.teachers.logprobs

    def _reference(self, stage: PolicyStage | OnPolicyDistillStage) -> ReferenceLogprobs | None:
        """Log-probabilities of the policy without its adapters, or of the one that the stage started from."""
        if isinstance(stage, OnPolicyDistillStage) or not stage.kl_coefficient:
            return None
        policy, budget = self.loaded.policy, budget_of(stage)
        if isinstance(policy.model, PeftModel):

            def without_adapters(sequences: Sequence[TokenSequence]) -> list[torch.Tensor]:
                with policy.without_adapters():
                    return policy.logprobs(sequences, budget, temperature=stage.temperature)

            return without_adapters
        # Not a copy of the policy: a resumed one has moved on from where the stage started.
        start = load(self.recipe_model, self.start, self.accelerator, trained=False).policy
        start.requires_grad_(False).eval()
        return partial(start.logprobs, budget=budget, temperature=stage.temperature)

    def trainer(self, checkpoint: Checkpoint | None) -> Trainer:
        stage = self.stage
        if stage.optimizer == "muon" and is_sharded(self.accelerator):
            raise ConfigError(
                f"stage '{self.title}': muon needs whole matrices, which FSDP and DeepSpeed cut into shards; "
                "set its optimizer to adamw"
            )
        if stage.gradient_checkpointing:
            self.loaded.policy.base_model.gradient_checkpointing_enable({"use_reentrant": False})
        recorder = None
        if stage.record_trajectories and self.accelerator.is_main_process:
            tokenizer = self.loaded.tokenizer
            recorder = TrajectoryRecorder(
                self.folder.path,
                stage.record_trajectories,
                decode_tokens=lambda ids: [str(tokenizer.decode([i])) for i in ids],
            )
        return Trainer(
            policy=self.loaded.policy,
            processor=self.loaded.processor,
            objective=objective_of(stage, self.teachers),
            batches=self.batches(),
            settings=TrainingSettings(
                steps=self.steps,
                learning_rate=stage.learning_rate,
                learning_rates={str(part): rate for part, rate in stage.learning_rates.items()},
                optimizer=stage.optimizer,
                weight_decay=stage.weight_decay,
                betas=stage.betas,
                schedule=stage.schedule,
                warmup_frac=stage.warmup_frac,
                final_frac=stage.final_frac,
                max_grad_norm=stage.max_grad_norm,
                budget=budget_of(stage),
                checkpoint_every=stage.checkpoint_every,
                keep_checkpoints=stage.keep_checkpoints,
                seed=self.seed,
                fingerprint=self.fingerprint,
            ),
            folder=self.folder,
            accelerator=self.accelerator,
            recorder=recorder,
            resume_from=checkpoint,
            title=self.title,
        )


def _rollout_settings(stage: PolicyStage | OnPolicyDistillStage, seed: int) -> RolloutSettings:
    taught_alone = isinstance(stage, OnPolicyDistillStage)
    return RolloutSettings(
        batch_size=stage.batch_size,
        group_size=stage.group_size,
        mini_batches=stage.mini_batches,
        max_new_tokens=stage.max_new_tokens,
        temperature=stage.temperature,
        advantage=AdvantageKind.GRPO if taught_alone else AdvantageKind(stage.advantage),
        recompute_logprobs=not taught_alone and stage.importance_cap is not None,
        zero_signal="keep" if taught_alone else stage.zero_signal,
        resample_limit=0 if taught_alone else stage.resample_limit,
        seed=seed,
        without_score=taught_alone or stage.distill_coefficient > 0 or stage.teacher_advantage > 0,
        teacher_advantage=0.0 if taught_alone else stage.teacher_advantage,
    )


def resumable(folder: StageFolder, wanted: str) -> Checkpoint | None:
    """The stage's newest checkpoint. Raises ConfigError where other settings made it."""
    checkpoint = latest_checkpoint(folder.checkpoints)
    if checkpoint is not None and checkpoint.fingerprint != wanted:
        raise ConfigError(
            f"{checkpoint.path} was made with other settings than this recipe's; put them back to resume, choose "
            "another output_dir, or add --restart to start again"
        )
    return checkpoint
