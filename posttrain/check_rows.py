"""What `posttrain check` says of single rows: their references, their environments, what teachers answer to them."""

import time
from collections.abc import Iterator, Mapping, Set
from typing import Any

from posttrain.answers.checking import reward_problem, row_problem
from posttrain.answers.solvers import Solver, make_solver
from posttrain.answers.timed import EpisodeBroken, timed
from posttrain.config import AnswersStage, TeacherSection
from posttrain.data import DataSource, Renderer
from posttrain.errors import ConfigError, DataError, PosttrainError
from posttrain.playable import environment_of
from posttrain.records import Example
from posttrain.rewards import RewardTable
from posttrain.rollout.environment_turns import shown_opening
from posttrain.rollout.rolling_batch import TaskEnvironment

_NEIGHBOURS = 2
"""Rows whose right answers must be wrong ones for the next row of their task."""


def first_rows(source: DataSource, rows: int) -> range:
    return range(min(rows, len(source)))


def reference_problems(
    source: DataSource, rewards: RewardTable, rows: int, *, every_task: bool, seconds: float
) -> tuple[list[str], int]:
    """Rows whose own reference would not earn its full reward, or whose wrong answers would; and how many were scored.

    Wrong answers are tried for the first `rows`, references as far as `seconds` go: one that cannot be parsed must not
    be met for the first time in the middle of a run. every_task: a row of a task without rewards is a problem too.
    """
    problems: list[str] = []
    earlier: dict[str, list[Mapping[str, Any]]] = {}
    end = time.monotonic() + seconds
    num_scored = 0
    for index in range(len(source)):
        if index >= rows and time.monotonic() > end:
            break
        try:
            example = source[index]
        except DataError as error:
            problems.append(str(error))
            continue
        if not rewards.serves(example.task):
            if every_task:
                problems.append(f"{example.id} is of task '{example.task}', which has no rewards")
            continue
        found = rewards.check(example.task, example.reference)
        if index < rows:
            others = earlier.setdefault(example.task, [])
            found += rewards.check_wrong(example.task, example.reference, others[-_NEIGHBOURS:])
            others.append(example.reference)
        problems += [f"{example.id}: {problem}" for problem in found]
        num_scored += 1
    return problems, num_scored


class FirstTurns:
    """What the policy is shown first of each row of one source. An environment that has failed is not asked again: the
    next row would only wait for the same."""

    def __init__(self, environments: Mapping[str, TaskEnvironment], renderer: Renderer) -> None:
        self._environments, self._renderer = environments, renderer
        self._failed: set[str] = set()
        """Tasks whose environment has."""

    def num_tokens(self, example: Example) -> int | None:
        """Of an episode, what its environment opens with; None where that has failed before.

        Raises DataError where it cannot be shown.
        """
        task = environment_of(example.task, self._environments)
        if task is None:
            return len(self._renderer.render_prompt(example).token_ids)
        if example.task in self._failed:
            return None
        try:
            with timed(task) as environment:
                environment.validate(example)
                _, shown = shown_opening(environment.start(example), example, self._renderer)
        except PosttrainError:
            raise
        except EpisodeBroken as error:
            self._failed.add(example.task)
            raise DataError(f"{example.id}: {error}") from error
        except Exception as error:  # an opening that no template can show
            said = f"{type(error).__name__}: {error}"
            raise DataError(f"{example.id}: what its environment opens with cannot be shown: {said}") from error
        return len(shown.token_ids)


def environment_problems(source: DataSource, environments: Mapping[str, TaskEnvironment], rows: int) -> Iterator[str]:
    """Rows with which no episode can start; an environment that has failed is not asked again."""
    failed: set[str] = set()
    for example in _readable(source, rows):
        task = environment_of(example.task, environments)
        if task is None or example.task in failed:
            continue
        try:
            with timed(task) as environment:
                environment.validate(example)
        except DataError as error:
            yield str(error)
        except EpisodeBroken as error:
            failed.add(example.task)
            yield f"{example.id}: {error}"


def answer_problems(
    source: DataSource,
    stage: AnswersStage,
    rewards: RewardTable | None,
    teachers: Mapping[str, TeacherSection],
    routes: Mapping[str, str],
    played: Set[str],
    rows: int,
) -> Iterator[str]:
    """Rows that no teacher answers, or whose answers could not be kept."""
    solvers = {name: _solver(teachers[name]) for name in set(routes.values()) if teachers[name].solver is not None}
    servers = {name for name, teacher in teachers.items() if teacher.server is not None}
    for example in _readable(source, rows):
        asked = row_problem(example, stage, routes, solvers, servers, played)
        for problem in (asked, reward_problem(example.task, stage, rewards)):
            if problem is not None:
                yield problem


def _solver(section: TeacherSection) -> Solver | None:
    """None for one that cannot be made, which is said of the teacher, not of each row."""
    assert section.solver is not None
    try:
        return make_solver(section.solver, section.options)
    except ConfigError:
        return None


def _readable(source: DataSource, rows: int) -> Iterator[Example]:
    """Rows that can be opened: the others are named where they are rendered."""
    for index in first_rows(source, rows):
        try:
            yield source[index]
        except DataError:
            continue
