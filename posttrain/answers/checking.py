"""What `posttrain check` says of a stage of answers: its teachers, its rows, and whether anything could be kept."""

from collections.abc import Iterator, Mapping, Set

from posttrain.answers.filtering import TOLERANCE
from posttrain.answers.rows import as_asked, check_writable
from posttrain.answers.solvers import make_solver
from posttrain.config import AnswersStage, TeacherSection
from posttrain.errors import ConfigError, DataError, TeacherError
from posttrain.loaded import tokenizer_of
from posttrain.model.loading import ModelLoadError, load_processor
from posttrain.records import Example
from posttrain.rewards import RewardTable
from posttrain.rewards.table import DEFAULT_TASK
from posttrain.teachers.identity import checkpoint_identity
from posttrain.teachers.room import TeacherRoom


def teacher_problems(room: TeacherRoom, teachers: Mapping[str, TeacherSection], names: set[str]) -> Iterator[str]:
    """A sentence for each teacher that could not answer: servers are asked what they serve, folders are looked into.

    Weights are not loaded. What an earlier stage makes is not there yet, and not looked at.
    """
    for name in sorted(names):
        section = teachers[name]
        try:
            if section.server is not None:
                room.server(name, section).close()
            elif section.solver is not None:
                make_solver(section.solver, section.options)
            elif section.path is not None:
                _look_into(section.path, section)
        except (TeacherError, ConfigError, ModelLoadError) as error:
            said = str(error)
            yield said if said.startswith(f"teacher '{name}'") else f"teacher '{name}': {said}"


def _look_into(path: str, section: TeacherSection) -> None:
    checkpoint_identity(path, revision=section.revision)
    processor = load_processor(path, revision=section.revision, trust_remote_code=section.trust_remote_code)
    if not (processor.chat_template or tokenizer_of(processor).chat_template):
        raise TeacherError(f"{path} has no chat template to be asked with; take an instruction-tuned checkpoint")


def row_problem(
    example: Example, stage: AnswersStage, routes: Mapping[str, str], solvers: Set[str], played: Set[str]
) -> str | None:
    """Why the answers to a row could not be asked for or written down; None where they can.

    solvers: teachers that are programs, which play in environments; played: tasks that have one.
    """
    teacher = routes.get(example.task) or routes.get(DEFAULT_TASK)
    if teacher is None:
        given = ", ".join(routes)
        return f"{example.id} is of task '{example.task}', which no teacher answers; teachers are given for: {given}"
    if teacher in solvers and not played & {example.task, DEFAULT_TASK}:
        return (
            f"{example.id} is of task '{example.task}', which has no environment for solver '{teacher}' to play in; "
            "add it to the recipe's 'environments'"
        )
    try:
        check_writable(as_asked(example, {"on": True, "off": False}.get(stage.thinking)))
    except DataError as error:
        return str(error)
    return None


def reward_problem(task: str, stage: AnswersStage, rewards: RewardTable | None) -> str | None:
    """Why no answer of the task could reach `min_reward`; None where one can, or where the task has no rewards."""
    if rewards is None or stage.min_reward is None or not rewards.serves(task):
        return None
    rules = rewards.rewards_for(task)
    if not rules.is_bounded or stage.min_reward <= rules.full_score + TOLERANCE:
        return None
    return (
        f"min_reward {stage.min_reward:g} is more than a perfect answer of task '{task}' earns, {rules.full_score:g}: "
        "nothing would be kept"
    )
