"""The run's teachers: each made when a stage first asks it, and kept for the stages after it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from accelerate import Accelerator
from peft import PeftModel
from transformers import PreTrainedModel

from posttrain.config import ModelSection, OffPolicyDistillStage, SFTStage, TeacherSection, TrainingStage, routes_of
from posttrain.errors import ConfigError
from posttrain.loaded import Loaded
from posttrain.model import Budget, PackedPolicy, facts_of
from posttrain.model.attention import Kernel
from posttrain.teachers.cache import CachedTeacher
from posttrain.teachers.given import GivenTeacher
from posttrain.teachers.identity import checkpoint_identity
from posttrain.teachers.local import LocalTeacher, StudentTeacher
from posttrain.teachers.table import TeacherTable
from posttrain.teachers.teacher import Teacher
from posttrain.teachers.tokenizers import tokenizer_identity

if TYPE_CHECKING:
    from posttrain.teachers.server import ServerTeacher


class TeacherRoom:
    """Teachers by name, and the table of them that a stage asks."""

    def __init__(
        self,
        given: Mapping[str, GivenTeacher],
        accelerator: Accelerator,
        *,
        stage_model: Callable[[str], Path] | None = None,
        routes: Mapping[str, str] | None = None,
    ) -> None:
        """stage_model: the folder of what a stage of this run has made, for teachers with `stage`.

        routes: task -> name, for stages that do not say it themselves.
        """
        self._given, self._accelerator, self._stage_model = given, accelerator, stage_model
        self._routes = routes
        self._kept: dict[tuple[str, str, int], Teacher] = {}

    def table(self, name: str, stage: TrainingStage, loaded: Loaded, model: ModelSection) -> TeacherTable | None:
        """The teachers of one stage, by task; None where it asks none.

        Raises TeacherError for a teacher that does not fit the student, ConfigError where it is not said which to ask.
        """
        if isinstance(stage, SFTStage):
            return None
        try:
            routes = routes_of(name, stage, self._given)
        except ValueError as error:
            if not self._routes:
                raise ConfigError(str(error)) from None
            routes = self._routes
        if not routes:
            return None
        keeps = isinstance(stage, OffPolicyDistillStage)
        teachers = {
            key: self._teacher(key, loaded, model, top_k=stage.top_k if keeps else None)
            for key in dict.fromkeys(routes.values())
        }
        return TeacherTable(teachers, routes, top_k=stage.top_k)

    def path_of(self, name: str) -> str:
        """The checkpoint of a local teacher."""
        section = self._given[name]
        assert isinstance(section, TeacherSection)
        if section.path is not None:
            return section.path
        assert section.stage is not None and self._stage_model is not None
        return str(self._stage_model(section.stage))

    def server(self, name: str, section: TeacherSection, student: Loaded | None = None) -> "ServerTeacher":
        """student: wanted where its tokens are to be scored, not only prompts answered."""
        from posttrain.teachers.server import ServerTeacher

        assert section.server is not None
        return ServerTeacher(
            name,
            section.server,
            facts=student.facts if student else None,
            processor=student.processor if student else None,
            model=section.served_model,
            timeout_s=section.timeout_s,
            retries=section.retries,
            concurrency=section.concurrency,
            api_key_env=section.api_key_env,
        )

    def close(self) -> None:
        for teacher in self._kept.values():
            teacher.close()
        self._kept.clear()

    def _teacher(self, name: str, loaded: Loaded, model: ModelSection, *, top_k: int | None) -> Teacher:
        """top_k: of a stage whose scores are worth keeping, where the teacher has a folder for them."""
        section = self._given[name]
        if isinstance(section, (PreTrainedModel, PeftModel)):
            return self._in_memory(name, section, loaded)
        if not isinstance(section, TeacherSection):
            return section
        key = (name, tokenizer_identity(loaded.tokenizer), loaded.facts.vocab_size)
        if section.student:
            budget = Budget(tokens=section.tokens_per_microbatch)
            teacher: Teacher = StudentTeacher(name, loaded.policy, identity=_base_identity(loaded), budget=budget)
        else:
            if key not in self._kept:
                self._kept[key] = self._made(name, section, loaded, model)
            teacher = self._kept[key]
        if section.cache is None or top_k is None:
            return teacher
        settings = {
            "tokenizer": key[1],
            "min_pixels": model.min_pixels,
            "max_pixels": model.max_pixels,
        }
        return CachedTeacher(teacher, Path(section.cache), top_k=top_k, settings=settings)

    def _made(self, name: str, section: TeacherSection, loaded: Loaded, model: ModelSection) -> Teacher:
        if section.server is not None:
            server = self.server(name, section, loaded)
            server.check_tokenizer(loaded.tokenizer)
            return server
        return LocalTeacher.from_checkpoint(
            name,
            self.path_of(name),
            student=loaded.processor,
            student_facts=loaded.facts,
            budget=Budget(tokens=section.tokens_per_microbatch),
            device=section.device or self._accelerator.device,
            dtype=getattr(torch, section.dtype or model.dtype),
            kernel=None if model.attention == "auto" else Kernel(model.attention),
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
        )

    def _in_memory(self, name: str, teacher: PreTrainedModel | PeftModel, loaded: Loaded) -> Teacher:
        """A model that a Python caller has loaded: it is taken to read the student's tokens and images."""
        inner = teacher.get_base_model() if isinstance(teacher, PeftModel) else teacher
        facts = facts_of(inner.config, loaded.tokenizer)  # pyright: ignore[reportArgumentType, reportAttributeAccessIssue]
        return LocalTeacher(
            name,
            PackedPolicy(teacher, facts),
            identity=str(inner.name_or_path),
            budget=Budget(tokens=8192),
            vocab_size=loaded.facts.vocab_size,
        )


def _base_identity(loaded: Loaded) -> str:
    """Of the model without its adapters, whatever checkpoint of them is resumed."""
    model = loaded.policy.model
    base = model.peft_config["default"].base_model_name_or_path if isinstance(model, PeftModel) else None
    return checkpoint_identity(base or loaded.path)
