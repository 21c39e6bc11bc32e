"""Teachers as Python callers give them: a path, a model in memory, a section's keys, or a `Teacher` of their own."""

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from peft import PeftModel
from pydantic import ValidationError
from transformers import PreTrainedModel

from posttrain.config import TeacherSection
from posttrain.errors import ConfigError
from posttrain.recipe import explain
from posttrain.teachers.teacher import Teacher

TeacherSpec = str | Path | PreTrainedModel | PeftModel | TeacherSection | Mapping[str, Any] | Teacher
"""A checkpoint, a model in memory, keys such as {"server": address} or {"student": True}, or a `Teacher`."""

GivenTeacher = TeacherSection | PreTrainedModel | PeftModel | Teacher

_KEYS = frozenset(TeacherSection.model_fields)


def given_teachers(teacher: "TeacherSpec | Mapping[str, TeacherSpec] | None") -> dict[str, GivenTeacher]:
    """{name: teacher}; a mapping of tasks names them by their tasks. Raises ConfigError for keys that are not right."""
    if teacher is None:
        return {}
    if isinstance(teacher, Mapping) and not _KEYS & set(teacher):
        for task in teacher:
            if near := get_close_matches(task, _KEYS, n=1, cutoff=0.75):
                raise ConfigError(f"teacher: '{task}' is not a key; did you mean '{near[0]}'?")
        return {task: _given(spec) for task, spec in teacher.items()}
    return {"teacher": _given(teacher)}


def described(teacher: "TeacherSpec | Mapping[str, TeacherSpec] | None") -> dict[str, Any]:
    """What of it decides a run's numbers, as far as its settings tell."""
    return {name: _described(spec) for name, spec in given_teachers(teacher).items()}


def _given(spec: Any) -> GivenTeacher:
    if isinstance(spec, (str, Path)):
        spec = {"path": str(spec)}
    if not isinstance(spec, Mapping):
        return spec
    if spec.get("stage") is not None:
        raise ConfigError("teacher: 'stage' names a stage of a recipe; give the folder of its model as 'path'")
    try:
        return TeacherSection(**spec)
    except ValidationError as error:
        raise ConfigError("\n".join(f"teacher: {line}" for line in explain(error, TeacherSection))) from None


def _described(spec: GivenTeacher) -> Any:
    if isinstance(spec, TeacherSection):
        return spec.model_dump(mode="json", include={"path", "revision", "served_model", "student", "dtype"})
    return spec.name_or_path if isinstance(spec, (PreTrainedModel, PeftModel)) else spec.identity
