"""Writes report.html: one file with everything in it, no network, readable without JavaScript."""

import base64
import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import jinja2
import yaml
from markupsafe import Markup

from posttrain.report import numerals
from posttrain.report.card_images import image_files
from posttrain.report.card_tokens import SCALES, Scale, coloured_frac, within_budget
from posttrain.report.cards import Card, card, chosen_rows
from posttrain.report.changes import Change, changes, higher_is_better
from posttrain.report.histogram_chart import Histogram, histograms
from posttrain.report.line_chart import BOTTOM, HEIGHT, LEFT, RIGHT, TOP, WIDTH
from posttrain.report.numerals import as_number
from posttrain.report.panels import PanelGroup, not_finite, panel_groups
from posttrain.report.pictures import Album, album
from posttrain.report.run_folder import Progress, Run, Stage, read_run
from posttrain.report.time_table import TimeTable, time_table

_HERE = Path(__file__).parent
_MAX_CARDS = 96
"""Trajectories of one page, shared by the stages that recorded some."""
_MUST_BE_FINITE = ("loss", "grad_norm", "reward", "entropy")
"""Others are null where a step had nothing to average, such as a task that was not drawn."""
_TELLING = 0.01
"""Share of the tokens that a scale must colour for the page to begin with it."""
_PICTURE_BUDGET = 1_800_000
"""Bytes of all pictures of a page."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StageView:
    """What the page shows of one stage."""

    name: str
    algorithm: str
    progress: Progress
    seconds: float | None
    steps: int
    share: float
    """Of the run's time, in per cent."""
    changes: Sequence[Change]
    groups: Sequence[PanelGroup]
    histograms: Sequence[Histogram]
    times: TimeTable | None
    cards: Sequence[Card]
    num_recorded: int


def write_report(run_folder: Path) -> Path:
    """Writes `report.html` into the run's folder, replacing an older one only when the new one is whole.

    Works on a run that has not finished. Raises ConfigError where the folder holds no run, and OSError
    where it cannot be written.
    """
    run_folder = Path(run_folder)
    html = render(read_run(run_folder))
    path = run_folder / "report.html"
    partial = run_folder / f".report.{os.getpid()}.partial"
    try:
        partial.write_bytes(html.encode("utf-8", "replace"))  # a policy's text may hold lone surrogates
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
    return path


def render(run: Run) -> str:
    """The page as text."""
    notes = list(run.notes)
    style, script = (_read(*names) for names in (("style.css", "cards.css"), ("charts.js", "cards.js")))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(_HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "number": numerals.number,
        "change": numerals.change,
        "duration": numerals.duration,
        "seconds": numerals.seconds,
    }
    environment.tests["higher_is_better"] = lambda metric: higher_is_better(metric) is True
    environment.tests["lower_is_better"] = lambda metric: higher_is_better(metric) is False
    stages, pictures = _stage_views(run, notes)
    scales = _scales(stages)
    return environment.get_template("report.html").render(
        run=run,
        stages=stages,
        album=pictures,
        scales=scales,
        shade=_first_shade(stages, scales),
        notes=notes,
        facts=_facts(run, stages),
        versions=_table(run.manifest.get("versions")),
        recipe=_yaml(run.manifest.get("recipe")),
        command=_command(run.manifest.get("command")),
        is_finished=bool(run.summary),
        plot={"w": WIDTH, "h": HEIGHT, "left": LEFT, "right": WIDTH - RIGHT, "top": TOP, "bottom": HEIGHT - BOTTOM},
        Progress=Progress,
        style=Markup(style),
        script=Markup(script),
        script_hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def _stage_views(run: Run, notes: list[str]) -> tuple[list[StageView], Album]:
    recorded = [s for s in run.stages if s.trajectory_steps]
    limit = max(8, _MAX_CARDS // max(1, len(recorded)))
    rows = {s.name: chosen_rows(s, limit) for s in recorded}
    late_first = [(s, row) for s in reversed(recorded) for row in reversed(rows[s.name])]
    files = [file for s, row in late_first for file in image_files(s, row)]
    coloured = within_budget(row for _, row in late_first)
    pictures = album(files, run_folder=run.folder, budget_bytes=_PICTURE_BUDGET)
    if pictures.problems:
        notes.append(
            f"{len(pictures.problems)} of {len(set(files))} pictures are not in this page; their cards say why."
        )
    total = sum(_seconds(s) or 0.0 for s in run.stages)
    views = []
    for index, stage in enumerate(run.stages):
        charts, unusable = histograms(stage.histograms)
        if unusable:
            notes.append(
                f"stage {stage.name}: {unusable} histogram(s) skipped: edges must ascend, one more than counts."
            )
        for key, steps in not_finite(stage.metrics).items():
            if key in _MUST_BE_FINITE:
                notes.append(
                    f"stage {stage.name}: {key} was not finite at {len(steps)} step(s), the first is {steps[0]}."
                )
        seconds = _seconds(stage)
        views.append(
            StageView(
                name=stage.name,
                algorithm=stage.algorithm,
                progress=stage.progress,
                seconds=seconds,
                steps=int(as_number(stage.result.get("steps")) or _last_step(stage)),
                share=100 * (seconds or 0.0) / total if total else 0.0,
                changes=changes(stage.result),
                groups=panel_groups(stage.metrics),
                histograms=charts,
                times=time_table(stage.metrics),
                cards=[
                    card(stage, index, place, row, pictures, is_coloured=id(row) in coloured)
                    for place, row in enumerate(rows.get(stage.name, ()))
                ],
                num_recorded=len(stage.trajectory_steps),
            )
        )
    return views, pictures


def _read(*names: str) -> str:
    return "\n".join((_HERE / name).read_text(encoding="utf-8") for name in names)


def _scales(stages: Sequence[StageView]) -> list[Scale]:
    """What tokens of this page can be coloured by."""
    found = {name for stage in stages for c in stage.cards for name in c.scales}
    return [scale for scale in SCALES if scale.name in found]


def _first_shade(stages: Sequence[StageView], scales: Sequence[Scale]) -> str:
    """What the page begins with: the first scale that colours anything to speak of. Of on-policy updates, for one, all
    gates are 1."""
    cards = [c for stage in stages for c in stage.cards]
    tokens = [token for c in cards for held in (c.tokens, *(turn.tokens for turn in c.turns)) for token in held]
    telling = [scale.name for scale in scales if coloured_frac(tokens, scale) >= _TELLING]
    return next(iter([*telling, *(scale.name for scale in scales)]), "")


def _seconds(stage: Stage) -> float | None:
    """As the result says; of an unfinished stage the time of its last logged step."""
    logged = as_number(stage.metrics[-1].get("time")) if stage.metrics else None
    return as_number(stage.result.get("seconds")) if stage.result else logged


def _last_step(stage: Stage) -> int:
    return stage.metrics[-1]["step"] if stage.metrics else 0


def _facts(run: Run, stages: Sequence[StageView]) -> list[tuple[str, str]]:
    """(label, value) of the tiles at the top."""
    total = as_number(run.summary.get("seconds")) or sum(s.seconds or 0.0 for s in stages)
    done = sum(s.progress is Progress.FINISHED for s in stages)
    facts = [
        ("Wall time", numerals.duration(total)),
        ("Stages finished", f"{done} of {len(stages)}"),
        ("Optimiser steps", f"{sum(s.steps for s in stages):,}"),
    ]
    rates = [v for s in run.stages for row in s.metrics if (v := as_number(row.get("tokens_per_s"))) is not None]
    if rates:
        facts.append(("Tokens per second, median", numerals.number(median(rates))))
    if "seed" in run.manifest:
        facts.append(("Seed", str(run.manifest["seed"])))
    return facts


def _table(value: Any) -> list[tuple[str, str]]:
    return [(str(k), str(v)) for k, v in value.items()] if isinstance(value, Mapping) else []


def _yaml(value: Any) -> str:
    return yaml.safe_dump(value, sort_keys=False, allow_unicode=True, width=100) if value else ""


def _command(value: Any) -> str:
    return " ".join(map(str, value)) if isinstance(value, list) else str(value or "")
