"""What `posttrain check` says of single rows: their references, their environments, what teachers answer to them."""

import asyncio
import inspect
import time
from collections.abc import Iterator, Mapping, Set
from typing import Any

from posttrain.answers.checking import reward_problem, row_problem
from posttrain.config import AnswersStage, TeacherSection
from posttrain.data import DataSource, Renderer
from posttrain.errors import DataError
from posttrain.records import Example
from posttrain.rewards import RewardTable
from posttrain.rollout.environment_turns import closed, opened
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


def environment_problems(source: DataSource, environments: Mapping[str, TaskEnvironment], rows: int) -> Iterator[str]:
    """Rows with which no episode can start."""
    for example in _readable(source, rows):
        played = environments.get(example.task) or environments.get("default")
        if played is None:
            continue
        try:
            played.make().validate(example)
        except DataError as error:
            yield str(error)


def num_shown_tokens(example: Example, environments: Mapping[str, TaskEnvironment], renderer: Renderer) -> int:
    """Tokens of what the policy is shown first: of an episode, what its environment opens with.

    Raises DataError where it cannot be shown.
    """
    played = environments.get(example.task) or environments.get("default")
    if played is None:
        return len(renderer.render_prompt(example).token_ids)
    environment = played.make()
    environment.validate(example)
    try:
        opening = opened(environment, example, renderer)
        _, shown = asyncio.run(opening) if inspect.iscoroutine(opening) else opening
    except DataError:
        raise
    except Exception as error:  # a user's own environment
        raise DataError(f"{example.id}: its environment does not start: {type(error).__name__}: {error}") from error
    closing = closed(environment)
    if inspect.iscoroutine(closing):
        asyncio.run(closing)
    return len(shown.token_ids)


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
    solvers = {name for name, teacher in teachers.items() if teacher.solver is not None}
    for example in _readable(source, rows):
        asked = row_problem(example, stage, routes, solvers, played)
        for problem in (asked, reward_problem(example.task, stage, rewards)):
            if problem is not None:
                yield problem


def _readable(source: DataSource, rows: int) -> Iterator[Example]:
    """Rows that can be opened: the others are named where they are rendered."""
    for index in first_rows(source, rows):
        try:
            yield source[index]
        except DataError:
            continue
