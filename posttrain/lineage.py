"""Where each stage of a recipe comes from: the model it starts with, the settings that made it, the data it reads."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from accelerate import Accelerator

from posttrain.answers.provenance import HOW_A_JUDGE_IS_ASKED
from posttrain.config import (
    AnswersStage,
    ModelSection,
    OffPolicyDistillStage,
    Recipe,
    SFTStage,
    Stage,
    TeacherSection,
    routes_of,
)
from posttrain.data import corpus
from posttrain.errors import ConfigError
from posttrain.model.families import Family
from posttrain.model.tiny import TinySize, build_tiny
from posttrain.runs import RunFolder, read_json
from posttrain.stage_builder import HOW_NOT_WHAT, fingerprint, resumable

ANSWERS_FILE = "answers.jsonl"

_SIZES = {
    "default": TinySize(),
    "small": TinySize(hidden=64, intermediate=128, heads=2, vision_hidden=32, vision_intermediate=64),
}
_HOW_A_TEACHER_IS_ASKED = frozenset(
    {"server", "timeout_s", "retries", "concurrency", "api_key_env", "cache", "device", "tokens_per_microbatch"}
)
"""Keys of a teacher that say where it is and how it is asked, not what it says."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What a stage that trains starts from."""

    model: ModelSection
    """How its model is loaded."""
    parent: str | None
    """The stage whose model it goes on with; None where it starts from `model` itself."""


def origins(recipe: Recipe) -> dict[str, Origin]:
    """The origin of every stage that trains."""
    found: dict[str, Origin] = {}
    before: str | None = None
    for name, stage in recipe.stages.items():
        if isinstance(stage, AnswersStage):
            continue
        if stage.model is not None:
            found[name] = Origin(model=stage.model, parent=None)
        else:
            parent = stage.start or before
            found[name] = Origin(model=found[parent].model if parent else recipe.model, parent=parent)
        before = name
    return found


def fingerprints(recipe: Recipe) -> dict[str, str]:
    """For each stage a hash of all that made it: its settings and those of what it starts from, reads and asks."""
    rewards = {task: _reward_settings(section.model_dump(mode="json")) for task, section in recipe.rewards.items()}
    played = {task: section.model_dump(mode="json") for task, section in recipe.environments.items()}
    origin = origins(recipe)
    found: dict[str, str] = {}
    for name, stage in recipe.stages.items():
        settings = stage.model_dump(mode="json", exclude={*HOW_NOT_WHAT, "start", "model"})
        routes = routes_of(name, stage, recipe.teachers)
        asked = {task: _teacher_settings(recipe.teachers[teacher], found) for task, teacher in routes.items()}
        read = {data.stage: found[data.stage] for data in stage.data if data.stage is not None}
        begun: Mapping[str, Any] = {"model": recipe.model.model_dump(mode="json")} if name not in origin else {}
        if name in origin:
            parent = origin[name].parent
            begun = {"from": found[parent] if parent else origin[name].model.model_dump(mode="json")}
        rules = (rewards, played) if _is_scored(stage) else ()
        found[name] = fingerprint(recipe.seed, *rules, name, settings, begun, asked, read)
    return found


def _is_scored(stage: Stage) -> bool:
    """False where rewards only measure what was trained, and environments are not entered."""
    return not isinstance(stage, (SFTStage, OffPolicyDistillStage))


def _reward_settings(value: Any) -> Any:
    """What decides a verdict: not where a judge's server is, or how it is asked."""
    if isinstance(value, list):
        return [_reward_settings(item) for item in value]
    if not isinstance(value, dict):
        return value
    settings = {key: _reward_settings(item) for key, item in value.items()}
    if isinstance(settings.get("server"), dict):
        settings["server"] = {k: v for k, v in settings["server"].items() if k not in HOW_A_JUDGE_IS_ASKED}
    return settings


def _teacher_settings(section: TeacherSection, made_by: Mapping[str, str]) -> dict[str, Any]:
    settings = section.model_dump(mode="json", exclude=set(_HOW_A_TEACHER_IS_ASKED))
    return {**settings, "made_by": made_by[section.stage] if section.stage is not None else ""}


def is_begun(folder: RunFolder, made_by: Mapping[str, str]) -> bool:
    """True where a stage is finished or can be resumed. Raises ConfigError, before anything is written, where one was
    made with other settings."""
    begun = False
    for name, wanted in made_by.items():
        stage = folder.stage(name)
        if not stage.result.is_file():
            begun = resumable(stage, wanted) is not None or begun
            continue
        if read_json(stage.result).get("fingerprint") != wanted:
            raise ConfigError(
                f"stage '{name}' was finished with other settings than this recipe's; put them back, choose another "
                "output_dir, or add --restart to start again"
            )
        begun = True
    return begun


def start_of(name: str, origin: Origin, folder: RunFolder, *, seed: int, begun: bool, accelerator: Accelerator) -> str:
    """The folder or hub name that a stage starts from; a tiny random model is built once, into the run's folder."""
    if origin.parent is not None:
        return str(folder.stage(origin.parent).final)
    section = origin.model
    if section.path is not None:
        return section.path
    assert section.tiny is not None
    target = folder.start_of(name)
    if accelerator.is_main_process and not (begun and (target / "config.json").is_file()):
        make_tiny(section, target, seed=seed)
    accelerator.wait_for_everyone()
    return str(target)


def make_tiny(section: ModelSection, target: Path, *, seed: int) -> Path:
    """The random model of a section with `tiny`; equal seeds give equal weights, all sizes the same tokenizer."""
    size = _SIZES[section.tiny_size]
    return build_tiny(Family(str(section.tiny)), target, seed=seed, size=size, corpus=corpus(1500, seed=0))


def with_answers(stage: Stage, folder: RunFolder) -> Stage:
    """The stage with the data sets of earlier `answers` stages in place of their names."""
    data = [
        section
        if section.stage is None
        else section.model_copy(update={"stage": None, "path": str(folder.stage(section.stage).data / ANSWERS_FILE)})
        for section in stage.data
    ]
    return stage.model_copy(update={"data": data})
