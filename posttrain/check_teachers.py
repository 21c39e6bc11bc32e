"""What `posttrain check` says of teachers: each is asked once, and not for long."""

from collections.abc import Iterator

from accelerate import Accelerator

from posttrain.answers.checking import modes_problem, teacher_problem
from posttrain.config import AnswersStage, ModelSection, Recipe, Stage, TeacherSection, routes_of
from posttrain.errors import ConfigError, TeacherError
from posttrain.loaded import Loaded
from posttrain.model.loading import Processor
from posttrain.teachers.room import TeacherRoom

_SERVER_S = 20.0
"""Longest wait for a server, which is asked without retries: a run waits for one that is starting, a check says so."""


class TeacherCheck:
    """Teachers that are not there, or read other tokens than their student, over the stages of a recipe in order."""

    def __init__(self, recipe: Recipe, accelerator: Accelerator) -> None:
        self._teachers = {name: _asked_shortly(section) for name, section in recipe.teachers.items()}
        self._room = TeacherRoom(self._teachers, accelerator)
        self._servers: dict[str, str | None] = {}
        """Those that were asked, and why each cannot be."""
        self._trained: dict[str, Processor] = {}

    def problems(self, name: str, stage: Stage, model: ModelSection, loaded: Loaded) -> Iterator[str]:
        """One sentence each. loaded: what a stage that trains starts from. What an earlier stage makes is not there
        yet, and not looked at but for its chat template."""
        asked = sorted(set(routes_of(name, stage, self._teachers).values()))
        for teacher in asked:
            if self._teachers[teacher].server is not None and teacher not in self._servers:
                self._servers[teacher] = self._unreachable(teacher)
                if (problem := self._servers[teacher]) is not None:
                    yield problem
        there = [teacher for teacher in asked if self._servers.get(teacher) is None]
        if isinstance(stage, AnswersStage):
            for teacher in there:
                if (problem := self._of_answers(teacher, stage)) is not None:
                    yield problem
            return
        self._trained[name] = loaded.processor
        if len(there) < len(asked) or any(self._teachers[teacher].stage is not None for teacher in asked):
            return
        try:
            self._room.table(name, stage, loaded, model)
        except (TeacherError, ConfigError) as error:
            yield str(error)

    def close(self) -> None:
        self._room.close()

    def _unreachable(self, name: str) -> str | None:
        try:
            self._room.server(name, self._teachers[name]).close()
        except (TeacherError, ConfigError) as error:
            return str(error)
        return None

    def _of_answers(self, name: str, stage: AnswersStage) -> str | None:
        section = self._teachers[name]
        if section.stage is not None:
            return modes_problem(name, self._trained[section.stage], stage)
        if section.server is None:
            return teacher_problem(name, section, stage)
        if stage.thinking == "template":
            return None
        server = self._room.server(name, section)
        try:
            server.check_modes()
        except TeacherError as error:
            return str(error)
        finally:
            server.close()
        return None


def _asked_shortly(section: TeacherSection) -> TeacherSection:
    return section.model_copy(update={"retries": 0, "timeout_s": min(section.timeout_s, _SERVER_S)})
