"""Writes docs/recipe-keys.md from the sections of posttrain/config/: `python docs/make_recipe_keys.py`.

A test compares the page with what this makes, so that no key is without its line.
"""

from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel

from posttrain.config import (
    AnswersStage,
    DataSection,
    EngineSection,
    EnvironmentSection,
    EvaluationSection,
    GRPOStage,
    GSPOStage,
    LoraSection,
    ModelSection,
    OffPolicyDistillStage,
    OnPolicyDistillStage,
    PromptSection,
    Recipe,
    RewardItem,
    SAPOStage,
    SceneSection,
    SFTStage,
    TaskSection,
    TeacherSection,
)

PAGE = Path(__file__).resolve().parent / "recipe-keys.md"
TRAINING, POLICY, TAUGHT = SFTStage.__mro__[1], SAPOStage.__mro__[1], SAPOStage.__mro__[2]
"""What all stages that train share, what all stages of RL share, and what all share that a teacher may join."""
STAGE = AnswersStage.__mro__[1]
"""What all stages share."""
assert all(issubclass(section, BaseModel) for section in (STAGE, TRAINING, TAUGHT, POLICY))

SECTIONS: tuple[tuple[str, str, type[BaseModel], type[BaseModel] | None], ...] = (
    ("The recipe", "", Recipe, None),
    ("model", "", ModelSection, None),
    ("model.lora", "", LoraSection, None),
    ("rewards.TASK", "", TaskSection, None),
    ("rewards.TASK.rewards", "A list; each entry has these keys.", RewardItem, None),
    (
        "teachers.NAME",
        "Whom stages may ask; a teacher is local, a stage of this recipe, a server, or the student.",
        TeacherSection,
        None,
    ),
    (
        "environments.TASK",
        "What a task is played in, with tools and several turns; `default` is for every other task.",
        EnvironmentSection,
        None,
    ),
    ("engine", "What samples rollouts and held-out answers.", EngineSection, None),
    ("evaluation", "", EvaluationSection, None),
    ("stages.NAME, every algorithm", "", STAGE, None),
    ("stages.NAME, every algorithm that trains", "All but `answers`:", TRAINING, STAGE),
    ("stages.NAME with a teacher", "Every algorithm that trains, but `sft`:", TAUGHT, TRAINING),
    ("stages.NAME with algorithm: sft", "", SFTStage, TRAINING),
    ("stages.NAME with algorithm: distill_off_policy", "", OffPolicyDistillStage, TAUGHT),
    ("stages.NAME with algorithm: distill_on_policy", "", OnPolicyDistillStage, TAUGHT),
    ("stages.NAME with algorithm: sapo, grpo or gspo", "", POLICY, TAUGHT),
    ("stages.NAME with algorithm: sapo", "", SAPOStage, POLICY),
    ("stages.NAME with algorithm: grpo", "", GRPOStage, POLICY),
    ("stages.NAME with algorithm: gspo", "", GSPOStage, POLICY),
    ("stages.NAME with algorithm: answers", "", AnswersStage, STAGE),
    ("A data source", "An entry of `stages.NAME.data` or of `evaluation.data`.", DataSection, None),
    ("scenes", "Drawn scenes instead of a file.", SceneSection, None),
    ("prompts", "Generated prompts instead of a file.", PromptSection, None),
)
"""Heading, sentence, section, and the section whose keys are not repeated."""

HEAD = """# Recipe keys

Made from `posttrain/config/` by `python docs/make_recipe_keys.py`. What a recipe is: [recipes.md](recipes.md).
"""


def page() -> str:
    """The whole page as Markdown."""
    parts = [HEAD]
    for title, sentence, section, without in SECTIONS:
        lines = [f"## {title}\n", *([f"{sentence}\n"] if sentence else [])]
        lines += ["| key | type | default | meaning |", "|---|---|---|---|"]
        lines += [_line(name, section) for name in own_keys(section, without)]
        parts.append("\n".join(lines) + "\n")
    return "\n".join(parts)


def own_keys(section: type[BaseModel], without: type[BaseModel] | None) -> list[str]:
    """The section's keys, less those that it has unchanged from `without`."""
    fields, known = section.model_fields, without.model_fields if without else {}
    return [name for name, field in fields.items() if name not in known or repr(field) != repr(known[name])]


def _line(name: str, section: type[BaseModel]) -> str:
    field = section.model_fields[name]
    default = "required" if field.is_required() else f"`{_value(field.default)}`"
    cells = (f"`{name}`", _type(field.annotation), default, field.description or _DESCRIBED.get(name, ""))
    return "| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |"


_DESCRIBED = {
    "model": "See [model](#model).",
    "engine": "See [engine](#engine).",
    "algorithm": "What the stage runs.",
}
"""Keys whose section says nothing of itself."""


def _value(default: Any) -> str:
    if isinstance(default, BaseModel):
        return "{}"
    if default is None:
        return "null"
    if isinstance(default, tuple):
        return str(list(default))
    return str(default).lower() if isinstance(default, bool) else str(default) if default != "" else '""'


def _type(hint: Any) -> str:
    """An annotation in the words of a recipe."""
    arguments, origin = get_args(hint), get_origin(hint)
    if origin is Literal:
        return ", ".join(f"`{value}`" for value in arguments)
    if origin is Annotated:
        return _type(arguments[0])
    if origin in (Union, UnionType):
        said = " or ".join(dict.fromkeys(_type(argument) for argument in arguments if argument is not NoneType))
        return f"{said} or null" if NoneType in arguments else said
    if origin is list:
        return f"list of {_type(arguments[0]).replace('section', 'sections')}"
    if origin is tuple:
        return f"{len(arguments)} numbers"
    if origin is dict:
        return f"mapping to {_type(arguments[1]).replace('section', 'sections')}"
    if isinstance(hint, type) and issubclass(hint, BaseModel):
        return "section"
    return {str: "text", int: "whole number", float: "number", bool: "true or false"}.get(hint, "anything")


if __name__ == "__main__":
    PAGE.write_text(page(), encoding="utf-8")
