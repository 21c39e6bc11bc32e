"""Rewards that would rather see many completions at once: those whose verdict takes time or leaves the process."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from .score import BadReferenceError, Completion, Reward, Score


class BatchReward(ABC):
    """A `Reward` that also scores a whole batch: in worker processes, or by one call of a user's function."""

    __slots__ = ()

    @abstractmethod
    def score_batch(self, completions: Sequence[Completion], references: Sequence[Mapping[str, Any]]) -> list[Score]:
        """One score for each completion, in order; a reference that cannot be parsed gives an unscored one."""

    @abstractmethod
    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        """As `Reward.perfect_answer`."""

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        return self.score_batch([completion], [reference])[0]


def score_many(
    reward: Reward, completions: Sequence[Completion], references: Sequence[Mapping[str, Any]]
) -> list[Score]:
    """Scores of any reward for many completions; a bad reference leaves its own completion unscored, with the reason.

    `check` finds bad references before training. One that is met later must not end a run of hours, nor teach the
    policy that its answer was wrong.
    """
    if isinstance(reward, BatchReward):
        return reward.score_batch(completions, references)
    scores = []
    for completion, reference in zip(completions, references, strict=True):
        try:
            scores.append(reward(completion, reference))
        except BadReferenceError as error:
            scores.append(Score.unscored(f"bad reference: {error}"))
    return scores
