"""What each stage of a recipe will take, as `posttrain check` shows it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from rich.table import Table

from posttrain.config import AnswersStage, OffPolicyDistillStage, Recipe, SFTStage, Stage
from posttrain.data import DataSource, Mixture
from posttrain.loaded import Loaded
from posttrain.model.parts import freeze


@dataclass(frozen=True, slots=True, kw_only=True)
class StageEstimate:
    """What a stage will take, from the rows that were looked at. None where it depends on how many answers an earlier
    stage will keep."""

    name: str
    algorithm: str
    steps: int | None
    rows: int | None
    """Rows of its data sources."""
    mean_tokens: float | None
    longest: int | None
    too_long: int
    """Rows looked at that exceed max_length."""
    references: int
    """Rows whose references were scored; 0 where nothing scores them."""
    tokens: float | None
    """Tokens of the whole stage, answers at their limit."""
    gibibytes: float
    """Weights, gradients and optimiser state."""


def estimate(
    recipe: Recipe,
    name: str,
    stage: Stage,
    loaded: Loaded,
    sources: Mapping[str, DataSource],
    *,
    lengths: Sequence[int],
    too_long: int,
    references: int,
) -> StageEstimate:
    """sources: those that are there already. lengths: tokens of the rows that were looked at."""
    fed_by_answers = len(sources) < len(stage.data)
    steps = _steps(recipe, stage, sources, fed_by_answers)
    mean = sum(lengths) / len(lengths) if lengths else None
    known = steps is not None and (mean is not None or not fed_by_answers)
    return StageEstimate(
        name=name,
        algorithm=stage.algorithm,
        steps=steps,
        rows=None if fed_by_answers else sum(len(source) for source in sources.values()),
        mean_tokens=mean,
        longest=max(lengths, default=None),
        too_long=too_long,
        references=references,
        tokens=(steps or 0) * stage.batch_size * ((mean or 0.0) + _said(stage)) if known else None,
        gibibytes=0.0 if isinstance(stage, AnswersStage) else _gibibytes(loaded, stage.freeze, stage.optimizer),
    )


def _steps(recipe: Recipe, stage: Stage, sources: Mapping[str, DataSource], fed_by_answers: bool) -> int | None:
    if isinstance(stage, AnswersStage):
        if stage.prompts is None and fed_by_answers:
            return None
        return math.ceil((stage.prompts or sum(len(source) for source in sources.values())) / stage.batch_size)
    if stage.steps is not None:
        return stage.steps
    if fed_by_answers:
        return None
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
            _count(e.steps),
            _count(e.rows),
            _count(e.references or None),
            _count(e.mean_tokens),
            _count(e.longest),
            str(e.too_long),
            _short(e.tokens),
            f"{e.gibibytes:.2f} GiB",
        )
    return table


def _count(number: float | None) -> str:
    """A dash for what is not known yet, or was not asked for."""
    return "-" if number is None else f"{number:,.0f}"


def _short(number: float | None) -> str:
    """1234567 as 1.2 M."""
    for limit, unit in ((1e9, " G"), (1e6, " M"), (1e3, " k")):
        if number is not None and number >= limit:
            return f"{number / limit:.1f}{unit}"
    return _count(number)
