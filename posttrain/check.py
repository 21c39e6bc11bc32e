"""Checks a recipe before it costs anything: its keys, its data, its references, and what it will take."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

from posttrain.build import make_environments, make_renderer, make_rewards, make_source
from posttrain.check_estimates import StageEstimate, estimate, estimate_table
from posttrain.check_rows import FirstTurns, answer_problems, environment_problems, first_rows, reference_problems
from posttrain.check_teachers import TeacherCheck
from posttrain.config import (
    AnswersStage,
    DataSection,
    GRPOStage,
    GSPOStage,
    ModelSection,
    OffPolicyDistillStage,
    OnPolicyDistillStage,
    Recipe,
    SAPOStage,
    SFTStage,
    Stage,
    routes_of,
)
from posttrain.data import TooLong
from posttrain.errors import ConfigError, DataError
from posttrain.lineage import make_tiny, origins
from posttrain.loaded import Loaded, load, make_accelerator
from posttrain.played_tasks import check_recipe_tasks
from posttrain.rewards import RewardTable
from posttrain.rollout.rolling_batch import TaskEnvironment

_MANY_PROBLEMS = 20
_REFERENCES_S = 60.0
"""Wall-clock seconds for the references of one source, beyond the rows that are looked at in full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    stages: Sequence[StageEstimate]
    problems: Sequence[str]
    """One sentence each; empty where the recipe can be run."""


def check_recipe(recipe: Recipe, *, rows: int = 64) -> CheckResult:
    """Parses, renders and scores the first `rows` of every source, and the references of the others. Trains nothing."""
    problems: list[str] = []
    rewards = make_rewards(recipe.rewards) if recipe.rewards else None
    environments = make_environments(recipe.environments)
    with TemporaryDirectory(prefix="posttrain-check-") as scratch:
        accelerator = make_accelerator(recipe.model, (), Path(scratch))
        estimates = []
        origin = origins(recipe)
        model: ModelSection | None = None
        loaded: Loaded | None = None
        teachers = TeacherCheck(recipe, accelerator)
        for name, stage in recipe.stages.items():
            wanted = origin[name].model if name in origin else recipe.model
            if loaded is None or wanted != model:
                model = wanted
                start = model.path or make_tiny(model, Path(scratch) / name, seed=recipe.seed)
                loaded = load(model, start, accelerator)
            estimates.append(
                _check_stage(recipe, name, stage, model or recipe.model, loaded, rewards, environments, rows, problems)
            )
            of_teachers = teachers.problems(name, stage, model or recipe.model, loaded)
            problems += [f"stages.{name}: {problem}" for problem in of_teachers]
        teachers.close()
    if recipe.evaluation is not None and rewards is not None:
        for section in recipe.evaluation.data:
            source, seconds = make_source(section), _seconds_for(section)
            found, _ = reference_problems(source, rewards, rows, every_task=False, seconds=seconds)
            found += environment_problems(source, environments, rows)
            problems += [f"evaluation: {problem}" for problem in found]
    try:
        check_recipe_tasks(recipe)
    except ConfigError as error:
        problems.append(str(error))
    named = list(dict.fromkeys(problems))
    if len(named) > _MANY_PROBLEMS:
        named = [*named[:_MANY_PROBLEMS], f"and {len(named) - _MANY_PROBLEMS} more"]
    return CheckResult(stages=estimates, problems=named)


def _check_stage(
    recipe: Recipe,
    name: str,
    stage: Stage,
    model: ModelSection,
    loaded: Loaded,
    rewards: RewardTable | None,
    environments: Mapping[str, TaskEnvironment],
    rows: int,
    problems: list[str],
) -> StageEstimate:
    given = isinstance(stage, (SFTStage, OffPolicyDistillStage))  # answers are in the data; else somebody gives them
    renderer = make_renderer(model, loaded, stage.max_length)
    scored = not given and not isinstance(stage, OnPolicyDistillStage)
    if isinstance(stage, SAPOStage | GRPOStage | GSPOStage) and rewards is None and not stage.teacher_advantage:
        problems.append(f"stages.{name}: {stage.algorithm} needs a 'rewards' section")
    sections = {str(place): section for place, section in enumerate(_readable(stage.data))}
    sources = {place: make_source(section) for place, section in sections.items()}
    lengths: list[int] = []
    too_long = num_references = 0
    for place, source in sources.items():
        turns = FirstTurns(environments, renderer)
        for index in first_rows(source, rows):
            try:
                example = source[index]
                if given:
                    lengths += [s.num_tokens for s in renderer.render_training(example)]
                elif (length := turns.num_tokens(example)) is not None:
                    lengths.append(length)
            except TooLong as error:
                too_long += 1
                lengths.append(error.num_tokens)
            except DataError as error:
                problems.append(f"stages.{name}: {error}")
        found: list[str] = []
        if isinstance(stage, AnswersStage):
            routes, played = routes_of(name, stage, recipe.teachers), set(environments)
            found += answer_problems(source, stage, rewards, recipe.teachers, routes, played, rows)
        if scored and rewards is not None:
            needed = not isinstance(stage, AnswersStage) or stage.min_reward is not None
            seconds = _seconds_for(sections[place])
            of_references, num_scored = reference_problems(source, rewards, rows, every_task=needed, seconds=seconds)
            found += of_references
            num_references += num_scored
        problems += [f"stages.{name}: {problem}" for problem in found]
    if lengths and too_long == len(lengths):
        problems.append(f"stages.{name}: every row looked at exceeds max_length {stage.max_length}")
    return estimate(recipe, name, stage, loaded, sources, lengths=lengths, too_long=too_long, references=num_references)


def _seconds_for(section: DataSection) -> float:
    """For references beyond the first rows; those of drawn rows are made by the same rule as the first."""
    return _REFERENCES_S if section.path is not None else 0.0


def _readable(sections: Sequence[DataSection]) -> list[DataSection]:
    """The sources that are there before the run: not what a stage will keep."""
    return [section for section in sections if section.stage is None]


__all__ = ["CheckResult", "StageEstimate", "check_recipe", "estimate_table"]
