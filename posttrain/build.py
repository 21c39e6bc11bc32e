"""Turns a recipe's sections into objects. The one file that may import everything."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from posttrain.algorithms import Reduction, divergence
from posttrain.config import (
    AnswersStage,
    DataSection,
    EnvironmentSection,
    EvaluationSection,
    ModelSection,
    OffPolicyDistillStage,
    OnPolicyDistillStage,
    PolicyStage,
    Recipe,
    SFTStage,
    TaskSection,
    TrainingStage,
)
from posttrain.data import (
    DataSource,
    Mixture,
    PromptSource,
    PromptSpec,
    Renderer,
    SceneSource,
    SceneSpec,
    SourceSpec,
    open_source,
)
from posttrain.distillation import Distillation
from posttrain.environments import EnvironmentFactory, make_environment_factory
from posttrain.errors import ConfigError
from posttrain.evaluation import Evaluation
from posttrain.loaded import Loaded
from posttrain.model import Budget
from posttrain.objectives import Grpo, Gspo, Objective, PolicyGradient, Sapo, Supervised, Surrogate
from posttrain.rewards import RewardTable, TaskRewards, WeightedReward, make_reward
from posttrain.rollout.engine_room import EngineRoom
from posttrain.rollout.episode import Limits
from posttrain.rollout.rolling import Rollouts
from posttrain.rollout.rolling_batch import TaskEnvironment
from posttrain.teachers.table import TeacherTable


def make_source(section: DataSection) -> DataSource:
    if section.scenes is not None:
        scenes = section.scenes
        return SceneSource(SceneSpec(task=scenes.task, size=scenes.size, loose=scenes.loose, seed=scenes.seed))
    if section.prompts is not None:
        prompts = section.prompts
        return PromptSource(PromptSpec(kind=prompts.kind, size=prompts.size, seed=prompts.seed))
    assert section.path is not None
    return open_source(
        SourceSpec(
            path=section.path,
            split=section.split,
            subset=section.subset,
            allow_urls=section.allow_urls,
            image_root=section.image_root,
            image_strip=section.image_strip,
            task=section.task,
            format=section.format,
            columns=section.columns,
            prompt_template=section.prompt_template,
            answer_regex=section.answer_regex,
            limit=section.limit,
            system=section.system,
            thinking=section.thinking,
        )
    )


def make_mixture(sections: Sequence[DataSection], seed: int) -> Mixture:
    """The order of rows follows from the seed and the names of the files, not from the folder that they lie in: a run
    in another folder repeats exactly."""
    sources = {
        f"{place}:{Path(section.path).name if section.path else section.scenes or section.prompts}": make_source(
            section
        )
        for place, section in enumerate(sections)
    }
    return Mixture(sources, dict(zip(sources, (s.ratio for s in sections), strict=True)), seed=seed)


def make_rewards(tasks: Mapping[str, TaskSection]) -> RewardTable:
    """The table task -> rewards. Raises ConfigError naming the nearest valid reward or option."""
    table: dict[str, TaskRewards] = {}
    for task, section in tasks.items():
        rewards = []
        for place, item in enumerate(section.rewards):
            try:
                reward = make_reward({"name": item.name, **item.options}, deadline_s=section.deadline_s)
                label = item.label or item.name
                rewards.append(WeightedReward(reward=reward, weight=item.weight, name=label, gate=item.gate))
            except (ValueError, ImportError) as error:
                raise ConfigError(f"rewards.{task}.rewards.{place}: {error}") from error
        try:
            table[task] = TaskRewards(
                rewards=tuple(rewards),
                truncated=section.truncated,
                answer=section.answer,
                aggregation=section.aggregation,
                clip=section.clip,
                error=section.error,
                deadline_s=section.deadline_s,
                min_scored=section.min_scored,
            )
        except ValueError as error:
            raise ConfigError(f"rewards.{task}: {error}") from error
    return RewardTable(table)


def make_environments(sections: Mapping[str, EnvironmentSection]) -> dict[str, TaskEnvironment]:
    """Task -> what it is played in. Raises ConfigError naming the nearest valid environment or option."""
    table: dict[str, TaskEnvironment] = {}
    for task, section in sections.items():
        try:
            factory = make_environment_factory({"name": section.name, **section.options})
        except (ConfigError, ImportError) as error:
            raise ConfigError(f"environments.{task}: {error}") from error
        except Exception as error:  # a user's own class
            raise ConfigError(
                f"environments.{task}: '{section.name}' cannot be made: {type(error).__name__}: {error}"
            ) from error
        limits = Limits(max_turns=section.max_turns, max_images=section.max_images)
        table[task] = played_in(task, factory, limits=limits, timeout_s=section.timeout_s)
    return table


def played_in(task: str, factory: EnvironmentFactory, **options: Any) -> TaskEnvironment:
    """Raises ConfigError where an answer's deadline would come before the environment's own of a turn."""
    made = TaskEnvironment(make=factory, **options)
    turn = inspect.signature(factory).parameters.get("turn_timeout_s")
    turn_s = turn.default if turn is not None else None
    if isinstance(turn_s, (int, float)) and turn_s >= made.timeout_s:
        raise ConfigError(
            f"environments.{task}: timeout_s {made.timeout_s:g} would end an episode before its option "
            f"turn_timeout_s {turn_s:g} ends the calls of a turn; set the option lower"
        )
    return made


def make_renderer(section: ModelSection, loaded: Loaded, max_length: int) -> Renderer:
    return Renderer(
        loaded.processor,
        loaded.facts,
        max_length=max_length,
        enable_thinking=section.thinking,
        min_pixels=section.min_pixels,
        max_pixels=section.max_pixels,
    )


def budget_of(stage: TrainingStage) -> Budget:
    if stage.patches_per_microbatch is None:
        return Budget(tokens=stage.tokens_per_microbatch)
    return Budget(tokens=stage.tokens_per_microbatch, patches=stage.patches_per_microbatch)


def objective_of(stage: TrainingStage, teachers: TeacherTable | None = None) -> Objective:
    """The loss of a stage. A new algorithm is one more line here.

    teachers: wanted where the stage's `distill_coefficient` is above 0.
    """
    if isinstance(stage, SFTStage):
        return Supervised(reduction=Reduction(stage.reduction))
    own, weight = _own_objective(stage)
    if not stage.distill_coefficient:
        return own
    if teachers is None:
        raise ConfigError(f"{stage.algorithm} with distill_coefficient {stage.distill_coefficient} needs a teacher")
    return Distillation(
        divergence=divergence(stage.beta),
        reference=teachers.reference,
        coefficient=stage.distill_coefficient,
        top_k=stage.top_k,
        support=stage.support,
        beside=own,
        beside_coefficient=weight,
    )


def _own_objective(stage: PolicyStage | OffPolicyDistillStage | OnPolicyDistillStage) -> tuple[Objective, float]:
    """What a stage minimises beside its teacher's divergence, and the weight of that."""
    if isinstance(stage, (OffPolicyDistillStage, OnPolicyDistillStage)):
        supervised = Supervised(reduction=Reduction(stage.reduction), temperature=stage.temperature)
        return supervised, stage.sft_coefficient if isinstance(stage, OffPolicyDistillStage) else 0.0
    gradient = PolicyGradient(
        surrogate=_SURROGATES[stage.algorithm](stage),
        reduction=Reduction(stage.reduction),
        constant_length=stage.max_new_tokens,
        temperature=stage.temperature,
        kl_coefficient=stage.kl_coefficient,
        importance_cap=stage.importance_cap,
    )
    return gradient, 1.0


_SURROGATES: Mapping[str, Callable[[Any], Surrogate]] = {
    "sapo": lambda s: Sapo(tau_positive=s.tau_positive, tau_negative=s.tau_negative),
    "grpo": lambda s: Grpo(clip_low=s.clip_low, clip_high=s.clip_high),
    "gspo": lambda s: Gspo(clip_low=s.clip_low, clip_high=s.clip_high),
}


def make_rollouts(
    loaded: Loaded,
    renderer: Renderer,
    engines: EngineRoom,
    environments: Mapping[str, TaskEnvironment],
    accelerator: Accelerator,
) -> Rollouts:
    return Rollouts(
        engine=engines.engine_for(loaded),
        renderer=renderer,
        decode=loaded.decode,
        environments=environments,
        autocast=lambda: accelerator.autocast(),
        repeatable=engines.section.repeatable,
    )


def make_evaluation(
    section: EvaluationSection,
    recipe: Recipe,
    model: ModelSection,
    loaded: Loaded,
    engines: EngineRoom,
    rewards: RewardTable | None,
    environments: Mapping[str, TaskEnvironment],
    accelerator: Accelerator,
) -> Evaluation:
    sources = {str(place): make_source(data) for place, data in enumerate(section.data)}
    longest = max(stage.max_length for stage in recipe.stages.values())
    training = [stage for stage in recipe.stages.values() if not isinstance(stage, AnswersStage)]
    renderer = make_renderer(model, loaded, longest)
    return Evaluation(
        sources=sources,
        renderer=renderer,
        rollouts=make_rollouts(loaded, renderer, engines, environments, accelerator) if rewards is not None else None,
        rewards=rewards,
        num_examples=section.num_examples,
        temperatures=section.temperatures,
        max_new_tokens=section.max_new_tokens,
        batch_size=section.batch_size,
        budget=budget_of(training[0]) if training else Budget(tokens=8192),
        seed=recipe.seed,
        autocast=lambda: accelerator.autocast(),
        rank=accelerator.process_index,
        world=accelerator.num_processes,
    )
