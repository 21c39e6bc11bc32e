"""Whether environments meet rows: without one, a mistyped task would be trained on in single turns, and nobody told."""

import logging
from collections.abc import Callable, Collection, Iterator, Sequence
from functools import partial
from itertools import zip_longest

from posttrain.build import make_source
from posttrain.config import DataSection, Recipe
from posttrain.data import DataSource, PromptSource, RowSource, SceneSource
from posttrain.errors import ConfigError, DataError
from posttrain.rewards.registry import nearest
from posttrain.rewards.table import DEFAULT_TASK

_MOST_ROWS = 10_000
"""Rows of a source whose tasks are read, their images closed."""
_MOST_OPENED = 64
"""The same, of a source of a caller's own, which opens images to tell a row's task."""

_log = logging.getLogger(__name__)


def check_recipe_tasks(recipe: Recipe) -> None:
    """As `check_tasks`, for all stages and the evaluation; what a stage of answers keeps has the tasks of what it was
    asked."""
    sections: list[DataSection] = []
    given = [stage.data for stage in recipe.stages.values()]
    for data in [*given, recipe.evaluation.data if recipe.evaluation is not None else []]:
        sections += [section for section in data if section.stage is None and section not in sections]
    check_tasks(recipe.environments, [partial(make_source, section) for section in sections])


def check_tasks(environments: Collection[str], sources: Sequence[Callable[[], DataSource]]) -> None:
    """Raises ConfigError for an environment whose task no row has; warns of it where not every row could be looked at.

    sources: opened only where an environment has a task of its own; rows are read until each of them is met.
    """
    wanted = {task for task in environments if task != DEFAULT_TASK}
    if not wanted:
        return
    try:
        streams = [_tasks(source()) for source in sources]
    except DataError:  # whoever trains on it will say so; a finished stage does not need it any more
        return
    met: set[str] = set()
    is_whole = True
    for tasks in zip_longest(*streams, fillvalue=""):
        is_whole = is_whole and None not in tasks
        met.update(task for task in tasks if task)
        if wanted <= met:
            return
    for task in sorted(wanted - met):
        if is_whole:
            raise ConfigError(f"environments.{task}: no row has the task '{task}'{nearest(task, sorted(met))}")
        _log.warning("environments.%s: none of the rows that were looked at has the task '%s'", task, task)


def _tasks(rows: DataSource) -> Iterator[str | None]:
    """Of the rows in order; None for what cannot be read, and for all that is left unread."""
    if isinstance(rows, (SceneSource, PromptSource)):
        yield rows[0].task  # they have one
        return
    most = _MOST_ROWS if isinstance(rows, RowSource) else _MOST_OPENED
    for index in range(min(len(rows), most)):
        try:
            yield rows.task(index) if isinstance(rows, RowSource) else rows[index].task
        except DataError:
            yield None
    if len(rows) > most:
        yield None
