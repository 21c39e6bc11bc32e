"""The whole recipe, and what must hold between its parts."""

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from typing import Literal

from pydantic import Field, model_validator

from posttrain.config.sections import (
    EngineSection,
    EnvironmentSection,
    EvaluationSection,
    ModelSection,
    Section,
    TaskSection,
    TeacherSection,
)
from posttrain.config.stages import (
    AnswersStage,
    GRPOStage,
    GSPOStage,
    OffPolicyDistillStage,
    OnPolicyDistillStage,
    SAPOStage,
    SFTStage,
    Stage,
)


class Recipe(Section):
    name: str = Field(description="Name of the run.")
    output_dir: str | None = Field(default=None, description="Folder of the run; default runs/NAME.")
    seed: int = Field(
        default=0, ge=0, description="Of data order, sampling and initialisation; equal seeds repeat exactly."
    )
    threads: int | None = Field(default=None, ge=1, description="CPU threads; default: all cores. Tiny models want 1.")
    model: ModelSection
    rewards: dict[str, TaskSection] = Field(
        default={}, description="Task: its rewards; 'default' serves tasks without an entry."
    )
    environments: dict[str, EnvironmentSection] = Field(
        default={},
        description="Task: what it is played in, with tools and several turns; tasks without an entry are one turn.",
    )
    teachers: dict[str, TeacherSection] = Field(default={}, description="Name: a teacher that stages may ask.")
    engine: EngineSection = EngineSection()  # pyright: ignore[reportCallIssue]
    evaluation: EvaluationSection | None = Field(
        default=None, description="Held-out measurements; null measures nothing."
    )
    trackers: list[Literal["tensorboard", "wandb", "trackio"]] = Field(default=[], description="Beside metrics.jsonl.")
    stages: dict[str, Stage] = Field(min_length=1, description="Run in this order; each starts from the one before.")

    @model_validator(mode="after")
    def _episodes_have_one_engine_each(self) -> "Recipe":
        if self.environments and self.engine.tensor_parallel_size > 1:
            raise ValueError(
                "engine.tensor_parallel_size: ranks that share an engine must ask it alike, and episodes go on as soon "
                "as their tools answer; set it to 1, or start servers with `posttrain serve` and use them"
            )
        return self

    @model_validator(mode="after")
    def _stages_stand_on_earlier_ones(self) -> "Recipe":
        for place, data in enumerate(self.evaluation.data if self.evaluation else ()):
            if data.stage is not None:
                raise ValueError(f"evaluation.data.{place}.stage: what a stage keeps is for training; name a path")
        models: list[str] = []
        answers: list[str] = []
        for name, stage in self.stages.items():
            if not stage.data:
                raise ValueError(f"stages.{name}.data is empty: name at least one source")
            for place, data in enumerate(stage.data):
                if data.stage is not None:
                    _known(f"stages.{name}.data.{place}.stage", data.stage, answers, "earlier stage of answers")
            for task, teacher in routes_of(name, stage, self.teachers).items():
                _known(f"stages.{name}.teachers.{task}", teacher, self.teachers, "teacher of this recipe")
                section = self.teachers[teacher]
                if section.stage is not None:
                    _known(f"teachers.{teacher}.stage", section.stage, models, f"stage before '{name}' that trains")
                check_teaching(f"stages.{name}", stage, teacher, section)
            if isinstance(stage, AnswersStage):
                self._check_servers_answer_in_one_turn(name, stage)
                if stage.min_reward is not None and not self.rewards:
                    raise ValueError(
                        f"stages.{name}.min_reward needs rewards: add a 'rewards' section, or leave it out"
                    )
                answers.append(name)
                continue
            if stage.start is not None:
                _known(f"stages.{name}.start", stage.start, models, "earlier stage that trains")
            models.append(name)
        return self

    def _check_servers_answer_in_one_turn(self, name: str, stage: AnswersStage) -> None:
        """Of sources whose rows have one known task; rows of files are looked at when they are read."""
        routes = routes_of(name, stage, self.teachers)
        for place, data in enumerate(stage.data):
            task = data.scenes.task if data.scenes is not None else data.prompts.kind if data.prompts else None
            teacher = routes.get(task or "", routes.get("default", ""))
            if task is None or teacher not in self.teachers or self.teachers[teacher].server is None:
                continue
            if task in self.environments or "default" in self.environments:
                raise ValueError(
                    f"stages.{name}.data.{place}: task '{task}' is played in an environment, and teacher '{teacher}' "
                    "is a server, which answers in one turn; give the task a teacher with a path, or a solver, in the "
                    "stage's 'teachers'"
                )


def is_taught(stage: Stage) -> bool:
    """True where the stage asks a teacher."""
    match stage:
        case SFTStage():
            return False
        case AnswersStage() | OffPolicyDistillStage() | OnPolicyDistillStage():
            return True
        case _:
            return stage.distill_coefficient > 0 or stage.teacher_advantage > 0


def routes_of(name: str, stage: Stage, teachers: Mapping[str, object]) -> dict[str, str]:
    """Task -> name of the teacher; 'default' serves tasks without an entry. Empty where none is asked.

    Raises ValueError where it is not said which of several teachers is meant.
    """
    if isinstance(stage, SFTStage):
        return {}
    if not is_taught(stage):
        if stage.teachers:
            raise ValueError(
                f"stages.{name}.teachers: no teacher is asked while distill_coefficient and teacher_advantage are 0"
            )
        return {}
    if stage.teachers:
        return dict(stage.teachers)
    if len(teachers) != 1:
        wanted = "add a 'teachers' section" if not teachers else f"say which of {', '.join(teachers)} in its 'teachers'"
        raise ValueError(f"stages.{name} asks a teacher: {wanted}")
    return {"default": next(iter(teachers))}


def check_teaching(where: str, stage: Stage, teacher: str, section: TeacherSection) -> None:
    """Raises ValueError where this kind of teacher cannot be asked what this stage asks."""
    if isinstance(stage, (SFTStage, AnswersStage)):
        if section.student:
            raise ValueError(
                f"{where}: teacher '{teacher}' is the student itself, which cannot answer in its own stead"
            )
        return
    if section.solver is not None:
        raise ValueError(f"{where}: teacher '{teacher}' is a program, which has no logits: it can only give answers")
    if isinstance(stage, SAPOStage | GRPOStage | GSPOStage) and stage.teacher_advantage and stage.temperature != 1.0:
        raise ValueError(
            f"{where}: teacher_advantage compares log-probabilities at temperature 1: set temperature to 1"
        )
    ahead = section.server is not None or (section.cache is not None and isinstance(stage, OffPolicyDistillStage))
    if not ahead or not stage.distill_coefficient:
        return
    kind = "a server" if section.server is not None else "kept in a cache"
    if stage.top_k is None:
        raise ValueError(f"{where}: teacher '{teacher}' is {kind}, which gives top-k scores: set top_k, such as 64")
    if stage.support == "student":
        raise ValueError(
            f"{where}: teacher '{teacher}' is {kind}, which knows its own top k only: set support: teacher"
        )
    if stage.temperature != 1.0:
        raise ValueError(
            f"{where}: teacher '{teacher}' is {kind}, which scores at temperature 1: set temperature to 1, or take a "
            "local teacher without a cache"
        )


def _known(where: str, name: str, known: Iterable[str], what: str) -> None:
    names = list(known)
    if name in names:
        return
    close = get_close_matches(name, names, n=1)
    hint = f"; did you mean '{close[0]}'?" if close else f"; there are: {', '.join(names)}" if names else ""
    raise ValueError(f"{where}: '{name}' is no {what}{hint}")
