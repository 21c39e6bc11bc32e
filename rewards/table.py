"""The table task -> rewards: each task of a mixture is scored by its own verifiers, in its own way."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .registry import RewardSpec, nearest
from .score import Completion, Score
from .task_rewards import TaskRewards, Timed, Truncated, task_rewards

DEFAULT_TASK = "default"
"""The entry for tasks that have none of their own."""


@dataclass(frozen=True, slots=True)
class RewardTable:
    """Which rewards score which task. The entry "default", if there is one, serves every other task."""

    tasks: Mapping[str, TaskRewards]

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("a reward table needs at least one task")

    def score(self, task: str, completion: Completion, reference: Mapping[str, Any]) -> Score:
        """The task's score, with every reward's value in `parts` under its name, and its own parts as `name/part`.

        Unscored, with the reason, where a reward with a weight above 0 has no verdict.
        """
        return self.rewards_for(task).score_batch([completion], [reference])[0]

    def score_batch(
        self, items: Sequence[tuple[str, Completion, Mapping[str, Any]]], *, timed: Timed | None = None
    ) -> list[Score]:
        """`score` of each (task, completion, reference), in order; each task's rewards see its completions at once."""
        rows: dict[str, list[int]] = {}
        for index, (task, _, _) in enumerate(items):
            rows.setdefault(task, []).append(index)
        scores: dict[int, Score] = {}
        for task, indices in rows.items():
            found = self.rewards_for(task).score_batch(
                [items[i][1] for i in indices], [items[i][2] for i in indices], timed=timed
            )
            scores.update(zip(indices, found, strict=True))
        return [scores[index] for index in range(len(items))]

    def check(self, task: str, reference: Mapping[str, Any]) -> list[str]:
        """What is wrong with a row's reference, in sentences; empty where its perfect answer earns its full score."""
        return self.rewards_for(task).check(reference)

    def check_wrong(
        self, task: str, reference: Mapping[str, Any], others: Sequence[Mapping[str, Any]] = ()
    ) -> list[str]:
        """Wrong answers that earn full marks, in sentences; `others`: references of other rows of the task."""
        return self.rewards_for(task).check_wrong(reference, others)

    def full_score(self, task: str) -> float:
        """What a perfect answer to this task earns."""
        return self.rewards_for(task).full_score

    def serves(self, task: str) -> bool:
        """True where `task` has rewards, its own or the default ones."""
        return task in self.tasks or DEFAULT_TASK in self.tasks

    def entry_of(self, task: str) -> str:
        """The task itself, or "default". Raises ValueError where the table has neither."""
        if not self.serves(task):
            raise ValueError(f"no rewards for task {task!r}{nearest(task, self.tasks)}")
        return task if task in self.tasks else DEFAULT_TASK

    def rewards_for(self, task: str) -> TaskRewards:
        """The task's rewards, or the default entry's. Raises ValueError where there is neither."""
        return self.tasks[self.entry_of(task)]


def make_table(
    tasks: Mapping[str, RewardSpec | Sequence[RewardSpec] | TaskRewards], *, truncated: Truncated = "score"
) -> RewardTable:
    """A table from a script: task -> one reward, a list, each as `make_reward` takes it, or finished `TaskRewards`.

    A reward's mapping may also hold `weight` (1 by default), `label`, its name in metrics, and `gate`:
    `{"gsm8k": [{"name": "math", "weight": 0.9}, {"name": "format", "pattern": "boxed", "weight": 0.1}]}`. A task may be
    what it is in a recipe: `{"gsm8k": {"rewards": [{"name": "math", "options": {"deadline_s": 9}}], "clip": [0, 1]}}`.
    Raises ValueError as `make_reward` does, naming the task.
    """
    made = {}
    for task, spec in tasks.items():
        try:
            made[task] = task_rewards(spec, truncated=truncated)
        except ValueError as error:
            raise ValueError(f"task {task!r}: {error}") from error
    return RewardTable(made)
