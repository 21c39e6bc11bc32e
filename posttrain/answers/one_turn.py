"""A teacher that answers in one turn, as servers do: rows that are played in an environment are refused."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from posttrain.answers.source import AnswerSource
from posttrain.errors import DataError
from posttrain.records import Example
from posttrain.rewards.table import DEFAULT_TASK
from posttrain.rollout.engine import Sampling
from posttrain.teachers.answer import Answer


@dataclass(frozen=True, slots=True, kw_only=True)
class OneTurnAnswers:
    """Answers of `source`, for tasks that are not played."""

    source: AnswerSource
    played: Collection[str]
    """Tasks that have an environment; "default" is every other task."""

    @property
    def name(self) -> str:
        return self.source.name

    @property
    def identity(self) -> str:
        return self.source.identity

    def answer(
        self, examples: Sequence[Example], *, n: int, sampling: Sampling, thinking: bool | None
    ) -> list[list[Answer]]:
        """As an `AnswerSource`. Raises DataError, before anything is asked, for an example that is to be played."""
        for example in examples:
            if problem := one_turn_problem(example.task, self.name, self.played):
                raise DataError(f"{example.id} {problem}")
        return self.source.answer(examples, n=n, sampling=sampling, thinking=thinking)


def one_turn_problem(task: str, teacher: str, played: Collection[str]) -> str | None:
    """Why a server cannot answer rows of a task, which stand before the sentence; None where it can."""
    if task not in played and DEFAULT_TASK not in played:
        return None
    return (
        f"is of task '{task}', which is played in an environment, and teacher '{teacher}' is a server, which answers "
        "in one turn; give the task a teacher with a path, or a solver, in the stage's 'teachers'"
    )
