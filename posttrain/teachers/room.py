"""The run's teachers: each made when a stage first asks it, and kept for the stages after it."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import Accelerator
from peft import PeftModel
from transformers import PreTrainedModel

from posttrain.config import (
    ModelSection,
    OffPolicyDistillStage,
    SFTStage,
    TeacherSection,
    TrainingStage,
    check_teaching,
    routes_of,
)
from posttrain.errors import ConfigError, TeacherError
from posttrain.loaded import Loaded, tokenizer_of
from posttrain.model import Budget, PackedPolicy, facts_of
from posttrain.model.attention import Kernel
from posttrain.model.loading import load_processor
from posttrain.runs import StageFolder, read_json, write_json
from posttrain.teachers.cache import CachedTeacher
from posttrain.teachers.given import GivenTeacher
from posttrain.teachers.identity import checkpoint_identity
from posttrain.teachers.local import LocalTeacher, StudentTeacher
from posttrain.teachers.table import TeacherTable
from posttrain.teachers.teacher import Teacher
from posttrain.teachers.tokenizers import check_tokenizers, tokenizer_identity

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
        self._check(name, stage, routes)
        keeps = isinstance(stage, OffPolicyDistillStage)
        teachers = {
            key: self._teacher(key, loaded, model, top_k=stage.top_k if keeps else None)
            for key in dict.fromkeys(routes.values())
        }
        return TeacherTable(teachers, routes, top_k=stage.top_k, vocab_size=loaded.facts.vocab_size)

    def _check(self, name: str, stage: TrainingStage, routes: Mapping[str, str]) -> None:
        """What a recipe has checked already, for Python callers."""
        for task, teacher in routes.items():
            if teacher not in self._given:
                raise ConfigError(f"task '{task}' is given to teacher '{teacher}'; there are: {', '.join(self._given)}")
            section = self._given[teacher]
            if not isinstance(section, TeacherSection):
                continue
            try:
                check_teaching(name, stage, teacher, section)
            except ValueError as error:
                raise ConfigError(str(error)) from None

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
            "dtype": None if section.server else section.dtype or model.dtype,
            "vocab_size": loaded.facts.vocab_size,
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
            device=_device(name, section.device) or self._accelerator.device,
            dtype=getattr(torch, section.dtype or model.dtype),
            kernel=None if model.attention == "auto" else Kernel(model.attention),
            revision=section.revision,
            trust_remote_code=section.trust_remote_code,
        )

    def _in_memory(self, name: str, teacher: PreTrainedModel | PeftModel, loaded: Loaded) -> Teacher:
        """A model that a Python caller has loaded. Raises for one that is the student, or reads other tokens."""
        inner: Any = teacher.get_base_model() if isinstance(teacher, PeftModel) else teacher
        trained = {id(parameter) for parameter in loaded.policy.parameters()}
        if any(id(parameter) in trained for parameter in teacher.parameters()):
            raise ConfigError(
                "teacher and student are the same model in memory; load a second one, or give "
                "teacher={'student': True} with a peft_config: the student without its adapters"
            )
        if Path(inner.name_or_path).is_dir():
            check_tokenizers(loaded.tokenizer, tokenizer_of(load_processor(inner.name_or_path)), name=name)
        rows = inner.config.get_text_config().vocab_size
        if rows < len(loaded.tokenizer):
            raise TeacherError(
                f"teacher '{name}' knows {rows} tokens, the student's tokenizer has {len(loaded.tokenizer)}; choose a "
                "teacher with the student's tokenizer"
            )
        facts = facts_of(inner.config, loaded.tokenizer)
        return LocalTeacher(
            name,
            PackedPolicy(teacher, facts),
            identity=str(inner.name_or_path),
            budget=Budget(tokens=8192),
            vocab_size=loaded.facts.vocab_size,
        )


def same_teachers(folder: StageFolder, table: TeacherTable, *, resumed: bool) -> None:
    """Keeps whose scores a stage trains on; raises TeacherError where a resumed one is to go on with another's."""
    now = table.identities
    if resumed and folder.teachers.is_file():
        then = read_json(folder.teachers)
        if changed := [name for name in now if then.get(name) != now[name]]:
            raise TeacherError(
                f"teacher '{changed[0]}' is not the one that this stage began with ({then.get(changed[0])}, now "
                f"{now[changed[0]]}); bring it back to resume, choose another output_dir, or add --restart"
            )
    write_json(folder.teachers, now)


def _device(name: str, device: str | None) -> torch.device | None:
    """Raises ConfigError for a device that this machine has not."""
    if device is None:
        return None
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(
            f"teachers.{name}.device: '{device}' cannot be used here: {str(error).splitlines()[0]}"
        ) from None
    return found


def _base_identity(loaded: Loaded) -> str:
    """Of the model without its adapters, whatever checkpoint of them is resumed."""
    model = loaded.policy.model
    base = model.peft_config["default"].base_model_name_or_path if isinstance(model, PeftModel) else None
    return checkpoint_identity(base or loaded.path)
