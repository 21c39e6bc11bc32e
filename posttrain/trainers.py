"""Trainers for Python: the shape that TRL users know, and the same objects that recipes are made of."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from peft import PeftModel
from pydantic import Field, ValidationError
from transformers import PreTrainedModel

from posttrain.config import GRPOStage, GSPOStage, OffPolicyDistillStage, OnPolicyDistillStage, SAPOStage, SFTStage
from posttrain.errors import ConfigError
from posttrain.recipe import explain
from posttrain.rewards import RewardTable, TaskRewards, make_table
from posttrain.stage_trainer import Arguments, Rows, StageTrainer
from posttrain.teachers.given import TeacherSpec

RewardSpec = str | Mapping[str, Any] | Callable[..., Any]
"""A registered name, {"name": ..., options}, "module:function", a Reward, or a TRL reward function."""


class _Arguments:
    """What a Python caller adds to a stage's keys. A wrong one raises ConfigError with the nearest valid key."""

    output_dir: str
    seed: int

    if not TYPE_CHECKING:  # type checkers keep the signature that pydantic makes of the fields

        def __init__(self, **values: Any) -> None:
            try:
                super().__init__(**values)
            except ValidationError as error:
                name = type(self).__name__
                raise ConfigError("\n".join(f"{name}: {line}" for line in explain(error, type(self)))) from None


class SFTConfig(_Arguments, SFTStage):
    output_dir: str = Field(default="runs/sft", description="Folder of the run.")
    seed: int = Field(default=0, ge=0, description="Equal seeds repeat exactly.")


class SAPOConfig(_Arguments, SAPOStage):
    output_dir: str = Field(default="runs/sapo", description="Folder of the run.")
    seed: int = Field(default=0, ge=0, description="Equal seeds repeat exactly.")


class GRPOConfig(_Arguments, GRPOStage):
    output_dir: str = Field(default="runs/grpo", description="Folder of the run.")
    seed: int = Field(default=0, ge=0, description="Equal seeds repeat exactly.")


class GSPOConfig(_Arguments, GSPOStage):
    output_dir: str = Field(default="runs/gspo", description="Folder of the run.")
    seed: int = Field(default=0, ge=0, description="Equal seeds repeat exactly.")


class DistillationConfig(_Arguments, OnPolicyDistillStage):
    output_dir: str = Field(default="runs/distill", description="Folder of the run.")
    seed: int = Field(default=0, ge=0, description="Equal seeds repeat exactly.")


class OffPolicyDistillationConfig(_Arguments, OffPolicyDistillStage):
    output_dir: str = Field(default="runs/distill", description="Folder of the run.")
    seed: int = Field(default=0, ge=0, description="Equal seeds repeat exactly.")


class SFTTrainer(StageTrainer[SFTConfig]):
    """Supervised fine-tuning: `SFTTrainer(model=..., train_dataset=..., args=SFTConfig(...)).train()`."""

    name = "sft"
    configs = (SFTConfig,)


class _RewardedTrainer(StageTrainer[Arguments]):
    def __init__(
        self,
        model: str | Path | PreTrainedModel | PeftModel,
        reward_funcs: RewardSpec | Sequence[RewardSpec] | RewardTable,
        train_dataset: Rows | Mapping[str, Rows],
        args: Arguments | None = None,
        *,
        reward_weights: Sequence[float] | None = None,
        **options: Any,
    ) -> None:
        """reward_funcs: one or several rewards for every task, {task: rewards} as `make_table` takes it, or a
        `RewardTable`."""
        super().__init__(model, train_dataset, args, reward_table=_table(reward_funcs, reward_weights), **options)


class SAPOTrainer(_RewardedTrainer[SAPOConfig]):
    """RL with SAPO: `SAPOTrainer(model=..., reward_funcs=..., train_dataset=..., args=SAPOConfig(...)).train()`."""

    name = "sapo"
    configs = (SAPOConfig,)


class GRPOTrainer(_RewardedTrainer[GRPOConfig]):
    """The same with GRPO's clip instead of the gate."""

    name = "grpo"
    configs = (GRPOConfig,)


class GSPOTrainer(_RewardedTrainer[GSPOConfig]):
    """The same with GSPO's sequence-level clip."""

    name = "gspo"
    configs = (GSPOConfig,)


class DistillationTrainer(StageTrainer[DistillationConfig]):
    """A teacher's distribution on the student's own answers, or on given ones with `OffPolicyDistillationConfig`:
    `DistillationTrainer(model=..., teacher=..., train_dataset=..., args=DistillationConfig(...)).train()`."""

    name = "distill"
    configs = (DistillationConfig, OffPolicyDistillationConfig)

    def __init__(
        self,
        model: str | Path | PreTrainedModel | PeftModel,
        teacher: TeacherSpec | Mapping[str, TeacherSpec],
        train_dataset: Rows | Mapping[str, Rows],
        args: "DistillationConfig | OffPolicyDistillationConfig | None" = None,
        **options: Any,
    ) -> None:
        """teacher: a checkpoint, a model in memory, {"server": address, "served_model": name}, {"student": True} for
        the student without its adapters, or a `Teacher`; or {task: one of these}."""
        if teacher is None:
            raise ConfigError("DistillationTrainer needs a teacher: a checkpoint, a server, or {'student': True}")
        super().__init__(model, train_dataset, args, teacher=teacher, **options)  # pyright: ignore[reportArgumentType]


def _table(
    rewards: RewardSpec | Sequence[RewardSpec] | RewardTable,
    weights: Sequence[float] | None,
) -> RewardTable:
    if isinstance(rewards, RewardTable):
        return rewards
    by_task: Mapping[str, Any] = (
        rewards if isinstance(rewards, Mapping) and "name" not in rewards else {"default": rewards}
    )
    try:
        table = make_table(by_task)
    except ValueError as error:
        problem = str(error).removeprefix("task 'default': ")
        raise ConfigError(f"reward_funcs: {problem}") from error
    if weights is None:
        return table
    return RewardTable({task: _reweighted(made, weights) for task, made in table.tasks.items()})


def _reweighted(made: TaskRewards, weights: Sequence[float]) -> TaskRewards:
    if len(weights) != len(made.rewards):
        raise ConfigError(f"{len(made.rewards)} rewards have {len(weights)} reward_weights; give one for each")
    try:
        weighted = [replace(reward, weight=float(weight)) for reward, weight in zip(made.rewards, weights, strict=True)]
        return replace(made, rewards=tuple(weighted))
    except ValueError as error:
        raise ConfigError(f"reward_weights: {error}") from error
