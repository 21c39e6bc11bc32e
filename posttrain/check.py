"""Checks a recipe before it costs anything: its keys, its data, its references, and what it will take."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from accelerate import Accelerator
from rich.table import Table

from posttrain.answers.checking import teacher_problems
from posttrain.build import make_environments, make_renderer, make_rewards, make_source
from posttrain.check_rows import answer_problems, environment_problems, first_rows, num_shown_tokens, reference_problems
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
from posttrain.data import DataSource, Mixture, TooLong
from posttrain.errors import ConfigError, DataError, TeacherError
from posttrain.lineage import make_tiny, origins
from posttrain.loaded import Loaded, load, make_accelerator
from posttrain.model.parts import freeze
from posttrain.rewards import RewardTable
from posttrain.rollout.rolling_batch import TaskEnvironment
from posttrain.teachers.room import TeacherRoom

_MANY_PROBLEMS = 20
_REFERENCES_S = 60.0
"""Wall-clock seconds for the references of one source, beyond the rows that are looked at in full."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEstimate:
    """What a stage will take, from the rows that were looked at."""

    name: str
    algorithm: str
    steps: int
    rows: int
    """Rows of its data sources."""
    mean_tokens: float
    longest: int
    too_long: int
    """Rows looked at that exceed max_length."""
    references: int
    """Rows whose references were scored; 0 where nothing scores them."""
    tokens: float
    """Tokens of the whole stage, answers at their limit."""
    gibibytes: float
    """Weights, gradients and optimiser state."""


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
        for name, stage in recipe.stages.items():
            wanted = origin[name].model if name in origin else recipe.model
            if loaded is None or wanted != model:
                model = wanted
                start = model.path or make_tiny(model, Path(scratch) / name, seed=recipe.seed)
                loaded = load(model, start, accelerator)
            estimates.append(
                _check_stage(recipe, name, stage, model or recipe.model, loaded, rewards, environments, rows, problems)
            )
            problems += _teacher_problems(recipe, name, stage, model or recipe.model, loaded, accelerator)
        if recipe.evaluation is not None and rewards is not None:
            for section in recipe.evaluation.data:
                seconds = _seconds_for(section)
                found, _ = reference_problems(make_source(section), rewards, rows, every_task=False, seconds=seconds)
                problems += [f"evaluation: {problem}" for problem in found]
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
        for index in first_rows(source, rows):
            try:
                example = source[index]
                if given:
                    lengths += [s.num_tokens for s in renderer.render_training(example)]
                else:
                    lengths.append(num_shown_tokens(example, environments, renderer))
            except TooLong as error:
                too_long += 1
                lengths.append(error.num_tokens)
            except DataError as error:
                problems.append(f"stages.{name}: {error}")
        found: list[str] = []
        if isinstance(stage, AnswersStage):
            routes, played = routes_of(name, stage, recipe.teachers), set(environments)
            found += answer_problems(source, stage, rewards, recipe.teachers, routes, played, rows)
        if not given:
            found += environment_problems(source, environments, rows)
        if scored and rewards is not None:
            needed = not isinstance(stage, AnswersStage) or stage.min_reward is not None
            seconds = _seconds_for(sections[place])
            of_references, num_scored = reference_problems(source, rewards, rows, every_task=needed, seconds=seconds)
            found += of_references
            num_references += num_scored
        problems += [f"stages.{name}: {problem}" for problem in found]
    if lengths and too_long == len(lengths):
        problems.append(f"stages.{name}: every row looked at exceeds max_length {stage.max_length}")
    steps = _steps(recipe, stage, sources)
    mean = sum(lengths) / max(len(lengths), 1)
    return StageEstimate(
        name=name,
        algorithm=stage.algorithm,
        steps=steps,
        rows=sum(len(s) for s in sources.values()),
        mean_tokens=mean,
        longest=max(lengths, default=0),
        too_long=too_long,
        references=num_references,
        tokens=steps * stage.batch_size * (mean + _said(stage)),
        gibibytes=0.0 if isinstance(stage, AnswersStage) else _gibibytes(loaded, stage.freeze, stage.optimizer),
    )


def _teacher_problems(
    recipe: Recipe, name: str, stage: Stage, model: ModelSection, loaded: Loaded, accelerator: Accelerator
) -> Iterator[str]:
    """Teachers that are not there, or read other tokens than the student; a stage's own model is not made yet."""
    made = {key for key, teacher in recipe.teachers.items() if teacher.stage is not None}
    asked = set(routes_of(name, stage, recipe.teachers).values())
    room = TeacherRoom(recipe.teachers, accelerator)
    if isinstance(stage, AnswersStage):
        for problem in teacher_problems(room, recipe.teachers, asked):
            yield f"stages.{name}: {problem}"
        return
    if made & asked:
        return
    try:
        room.table(name, stage, loaded, model)
    except (TeacherError, ConfigError) as error:
        yield f"stages.{name}: {error}"
    finally:
        room.close()


def _seconds_for(section: DataSection) -> float:
    """For references beyond the first rows; those of drawn rows are made by the same rule as the first."""
    return _REFERENCES_S if section.path is not None else 0.0


def _readable(sections: Sequence[DataSection]) -> list[DataSection]:
    """The sources that are there before the run: not what a stage will keep."""
    return [section for section in sections if section.stage is None]


def _steps(recipe: Recipe, stage: Stage, sources: Mapping[str, DataSource]) -> int:
    """0 where it depends on how many answers an earlier stage will keep."""
    if isinstance(stage, AnswersStage):
        rows = stage.prompts or sum(len(source) for source in sources.values())
        return math.ceil(rows / stage.batch_size)
    if stage.steps is not None:
        return stage.steps
    if len(sources) < len(stage.data):
        return 0
    shares = dict(zip(sources, (s.ratio for s in stage.data), strict=True))
    return Mixture(dict(sources), shares, seed=recipe.seed).steps_for(stage.epochs or 1.0, stage.batch_size)


def _said(stage: Stage) -> int:
    """Tokens that are sampled for a prompt, answers at their limit."""
    match stage:
        case SFTStage() | OffPolicyDistillStage():
            return 0
        case AnswersStage():
            return stage.answers_per_prompt * stage.max_new_tokens
        case _:
            return stage.group_size * stage.max_new_tokens


def _gibibytes(loaded: Loaded, frozen: Sequence[str], optimizer: str) -> float:
    freeze(loaded.policy.model, loaded.facts, frozen)
    return _state_bytes(loaded.policy.model, optimizer) / 2**30


def _state_bytes(model: torch.nn.Module, optimizer: str) -> int:
    """Weights once; for what is trained, a gradient and the optimiser's one or two moments beside it."""
    moments = 1 if optimizer == "muon" else 2
    return sum(p.numel() * p.element_size() * (2 + moments if p.requires_grad else 1) for p in model.parameters())


def estimate_table(estimates: Sequence[StageEstimate]) -> Table:
    table = Table(
        title="what each stage takes: rows (references scored), tokens a row and in all, weights with optimiser state",
        title_justify="left",
        box=None,
        pad_edge=False,
    )
    table.add_column("stage", no_wrap=True)
    for column in ("steps", "rows", "scored", "a row", "longest", "too long", "tokens", "memory"):
        table.add_column(column, justify="right", no_wrap=True)
    for e in estimates:
        table.add_row(
            e.name,
            f"{e.steps:,}",
            f"{e.rows:,}",
            f"{e.references:,}" if e.references else "-",
            f"{e.mean_tokens:,.0f}",
            f"{e.longest:,}",
            str(e.too_long),
            _short(e.tokens),
            f"{e.gibibytes:.2f} GiB",
        )
    return table


def _short(number: float) -> str:
    """1234567 as 1.2 M."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number >= limit:
            return f"{number / limit:.1f}{unit}"
    return f"{number:.0f}"
