"""What `posttrain check` says of a stage of answers: its teachers, its rows, and whether anything could be kept."""

import random
from collections.abc import Collection, Mapping

from posttrain.answers.filtering import TOLERANCE
from posttrain.answers.one_turn import one_turn_problem
from posttrain.answers.rows import as_asked, check_writable
from posttrain.answers.solvers import Solver, ValidatingSolver, make_solver
from posttrain.answers.source import same_prompt
from posttrain.config import AnswersStage, TeacherSection
from posttrain.errors import ConfigError, DataError, PosttrainError, TeacherError
from posttrain.loaded import tokenizer_of
from posttrain.model.loading import ModelLoadError, Processor, load_processor
from posttrain.records import Example
from posttrain.rewards import RewardTable
from posttrain.rewards.table import DEFAULT_TASK
from posttrain.teachers.identity import checkpoint_identity


def teacher_problem(name: str, section: TeacherSection, stage: AnswersStage) -> str | None:
    """Why a teacher that is a program or a folder could not answer; None where it could. Weights are not loaded."""
    try:
        if section.solver is not None:
            make_solver(section.solver, section.options)
        elif section.path is not None:
            return modes_problem(name, _look_into(section.path, section), stage)
    except (TeacherError, ConfigError, ModelLoadError) as error:
        return f"teacher '{name}': {error}"
    return None


def modes_problem(name: str, processor: Processor, stage: AnswersStage) -> str | None:
    """Why it cannot be told to think or not to; None where it can, or is not."""
    if stage.thinking == "template":
        return None
    asked = [{"role": "user", "content": "hi"}]
    on, off = (
        processor.apply_chat_template(asked, tokenize=False, add_generation_prompt=True, enable_thinking=mode)
        for mode in (True, False)
    )
    return same_prompt(name) if on == off else None


def _look_into(path: str, section: TeacherSection) -> Processor:
    checkpoint_identity(path, revision=section.revision)
    processor = load_processor(path, revision=section.revision, trust_remote_code=section.trust_remote_code)
    if not (processor.chat_template or tokenizer_of(processor).chat_template):
        raise TeacherError(f"{path} has no chat template to be asked with; take an instruction-tuned checkpoint")
    return processor


def row_problem(
    example: Example,
    stage: AnswersStage,
    routes: Mapping[str, str],
    solvers: Mapping[str, Solver | None],
    servers: Collection[str],
    played: Collection[str],
) -> str | None:
    """Why the answers to a row could not be asked for or written down; None where they can.

    solvers: teachers that are programs, which play in environments; None for one that cannot be made. servers: teachers
    that answer in one turn. played: tasks that have an environment.
    """
    teacher = routes.get(example.task) or routes.get(DEFAULT_TASK)
    if teacher is None:
        given = ", ".join(routes)
        return f"{example.id} is of task '{example.task}', which no teacher answers; teachers are given for: {given}"
    if teacher in servers and (problem := one_turn_problem(example.task, teacher, played)):
        return f"{example.id} {problem}"
    if teacher in solvers and example.task not in played and DEFAULT_TASK not in played:
        return (
            f"{example.id} is of task '{example.task}', which has no environment for solver '{teacher}' to play in; "
            "add it to the recipe's 'environments'"
        )
    try:
        check_writable(as_asked(example, {"on": True, "off": False}.get(stage.thinking)))
    except DataError as error:
        return str(error)
    solver = solvers.get(teacher)
    return solver_problem(example, teacher, solver) if solver is not None else None


def solver_problem(example: Example, name: str, solver: Solver) -> str | None:
    """Why a program cannot play a row: what its `validate` says, or what becomes of its first turn."""
    try:
        if isinstance(solver, ValidatingSolver):
            solver.validate(example)
            return None
        text = solver(example, (), random.Random(0))
    except PosttrainError as error:
        return str(error)
    except Exception as error:  # a user's own program
        return f"{example.id}: solver '{name}' failed: {type(error).__name__}: {error}"
    return None if isinstance(text, str) else f"{example.id}: solver '{name}' returned {type(text).__name__}, not text"


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
