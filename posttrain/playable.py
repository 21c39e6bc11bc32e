"""Whether episodes can start with a stage's rows: asked of their environments before the stage begins."""

from collections.abc import Iterable, Mapping

from posttrain.answers.timed import EpisodeBroken, timed
from posttrain.data import DataSource
from posttrain.errors import DataError
from posttrain.rewards.table import DEFAULT_TASK
from posttrain.rollout.rolling_batch import TaskEnvironment

_FIRST_ROWS = 32
"""Of each source; their images are opened."""


def environment_of(task: str, environments: Mapping[str, TaskEnvironment]) -> TaskEnvironment | None:
    """What a task is played in; None where it is one turn."""
    return environments.get(task) or environments.get(DEFAULT_TASK)


def check_first_rows(sources: Iterable[DataSource], environments: Mapping[str, TaskEnvironment]) -> None:
    """Raises DataError, naming the row, for one of the first rows of a source with which no episode can start."""
    if not environments:
        return
    for source in sources:
        for index in range(min(_FIRST_ROWS, len(source))):
            example = source[index]
            if (task := environment_of(example.task, environments)) is None:
                continue
            try:
                with timed(task) as environment:
                    environment.validate(example)
            except EpisodeBroken as error:
                raise DataError(f"{example.id}: {error}") from error
