"""The table task -> weighted rewards: each task of a mixture is scored by its own verifiers."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .batching import score_many
from .registry import RewardSpec, make_reward, nearest, reward_name
from .score import BadReferenceError, Completion, Reward, Score

DEFAULT_TASK = "default"
"""The entry for tasks that have none of their own."""

Truncated = Literal["score", "zero", "unscored"]


@dataclass(frozen=True, slots=True)
class WeightedReward:
    """One reward of a task."""

    reward: Reward
    weight: float = 1.0
    """0 only logs it."""
    name: str = ""
    """Its name in metrics and the report; by default the registered name, the function's, or the class's."""
    full_score: float = 1.0
    """What a perfect answer earns, before the weight; 0 for a pure penalty."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(
                f"a reward's weight must be 0 or more, got {self.weight}; write a penalty as a reward below 0"
            )
        if not self.name:
            object.__setattr__(self, "name", reward_name(self.reward))


@dataclass(frozen=True, slots=True)
class TaskRewards:
    """The rewards of one task; their weighted sum is its score."""

    rewards: tuple[WeightedReward, ...]
    truncated: Truncated = "score"
    """What a completion that the token limit ended gets: its score like any other, 0, or none."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rewards", tuple(self.rewards))
        names = [weighted.name for weighted in self.rewards]
        if not any(weighted.weight > 0 for weighted in self.rewards):
            raise ValueError(f"a task needs a reward with a weight above 0, got {names or 'no reward'}")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two rewards of one task are named {twice[0]!r}; give one another name")
        if self.truncated not in ("score", "zero", "unscored"):
            raise ValueError(f"truncated must be 'score', 'zero' or 'unscored', got {self.truncated!r}")

    @property
    def full_score(self) -> float:
        """What a perfect answer earns."""
        return sum(weighted.weight * weighted.full_score for weighted in self.rewards)

    def score_batch(self, completions: Sequence[Completion], references: Sequence[Mapping[str, Any]]) -> list[Score]:
        """One score for each completion, in order."""
        heard = [self.truncated == "score" or not completion.truncated for completion in completions]
        kept = [index for index, is_heard in enumerate(heard) if is_heard]
        columns = [
            score_many(weighted.reward, [completions[i] for i in kept], [references[i] for i in kept])
            for weighted in self.rewards
        ]
        silent = (
            Score(value=0.0, reason="cut off by the token limit")
            if self.truncated == "zero"
            else Score.unscored("cut off by the token limit")
        )
        scores = [silent] * len(completions)
        for index, row in zip(kept, zip(*columns, strict=True), strict=True):
            scores[index] = self._combine(row)
        return scores

    def check(self, reference: Mapping[str, Any]) -> list[str]:
        """A sentence for each reward that does not give its own perfect answer its full score."""
        return [problem for weighted in self.rewards if (problem := _problem(weighted, reference))]

    def _combine(self, row: Sequence[Score]) -> Score:
        total, parts, unscored, remarks = 0.0, {}, [], []
        for weighted, score in zip(self.rewards, row, strict=True):
            remark = f"{weighted.name}: {score.reason}"
            if score.value is not None:
                total += weighted.weight * score.value
                parts[weighted.name] = score.value
            elif weighted.weight > 0:
                unscored.append(remark)
            parts.update({f"{weighted.name}/{part}": value for part, value in score.parts.items()})
            if score.reason:
                remarks.append(remark)
        if unscored:
            return Score(value=None, parts=parts, reason="; ".join(unscored))
        return Score(value=total, parts=parts, reason="; ".join(remarks))


@dataclass(frozen=True, slots=True)
class RewardTable:
    """Which rewards score which task. The entry "default", if there is one, serves every other task."""

    tasks: Mapping[str, TaskRewards]

    def __post_init__(self) -> None:
        if not self.tasks:
            raise ValueError("a reward table needs at least one task")

    def score(self, task: str, completion: Completion, reference: Mapping[str, Any]) -> Score:
        """The weighted sum, with every reward's value in `parts` under its name, and its own parts as `name/part`.

        Unscored, with the reason, where a reward with a weight above 0 has no verdict.
        """
        return self.rewards_for(task).score_batch([completion], [reference])[0]

    def score_batch(self, items: Sequence[tuple[str, Completion, Mapping[str, Any]]]) -> list[Score]:
        """`score` of each (task, completion, reference), in order; each task's rewards see its completions at once."""
        rows: dict[str, list[int]] = {}
        for index, (task, _, _) in enumerate(items):
            rows.setdefault(task, []).append(index)
        scores: dict[int, Score] = {}
        for task, indices in rows.items():
            completions, references = [items[i][1] for i in indices], [items[i][2] for i in indices]
            scores.update(zip(indices, self.rewards_for(task).score_batch(completions, references), strict=True))
        return [scores[index] for index in range(len(items))]

    def check(self, task: str, reference: Mapping[str, Any]) -> list[str]:
        """What is wrong with a row's reference, in sentences; empty where its perfect answer earns its full score."""
        return self.rewards_for(task).check(reference)

    def full_score(self, task: str) -> float:
        """What a perfect answer to this task earns."""
        return self.rewards_for(task).full_score

    def serves(self, task: str) -> bool:
        """True where `task` has rewards, its own or the default ones."""
        return task in self.tasks or DEFAULT_TASK in self.tasks

    def rewards_for(self, task: str) -> TaskRewards:
        """The task's rewards, or the default entry's. Raises ValueError where there is neither."""
        rewards = self.tasks.get(task) or self.tasks.get(DEFAULT_TASK)
        if rewards is None:
            raise ValueError(f"no rewards for task {task!r}{nearest(task, self.tasks)}")
        return rewards


def make_table(
    tasks: Mapping[str, RewardSpec | Sequence[RewardSpec]], *, truncated: Truncated = "score"
) -> RewardTable:
    """A table from a recipe: task -> one reward or a list, each as `make_reward` takes it.

    A mapping may also hold `weight` (1 by default) and `as`, its name in metrics:
    `{"gsm8k": [{"name": "math", "weight": 0.9}, {"name": "format", "pattern": "boxed", "weight": 0.1}]}`.
    Raises ValueError as `make_reward` does, naming the task.
    """
    made = {}
    for task, specs in tasks.items():
        listed = specs if isinstance(specs, list | tuple) else [specs]
        try:
            made[task] = TaskRewards(tuple(_weighted(spec) for spec in listed), truncated)
        except ValueError as error:
            raise ValueError(f"task {task!r}: {error}") from error
    return RewardTable(made)


def _weighted(spec: Any) -> WeightedReward:
    if isinstance(spec, WeightedReward):
        return spec
    if not isinstance(spec, Mapping):
        return WeightedReward(make_reward(spec))
    options = dict(spec)
    weight, name = options.pop("weight", 1.0), options.pop("as", "")
    if isinstance(weight, bool) or not isinstance(weight, int | float):
        raise ValueError(f"a reward's weight must be a number, got {weight!r:.80}")
    return WeightedReward(make_reward(options), float(weight), str(name))


def _problem(weighted: WeightedReward, reference: Mapping[str, Any]) -> str | None:
    try:
        perfect = weighted.reward.perfect_answer(reference)
        if perfect is None:
            return None
        score = weighted.reward(Completion(text=perfect), reference)
    except BadReferenceError as error:
        return f"{weighted.name}: {error}"
    if score.value is not None and math.isclose(score.value, weighted.full_score, abs_tol=1e-9):
        return None
    earned = f"unscored ({score.reason})" if score.value is None else f"{score.value:g}"
    return f"{weighted.name}: its own perfect answer {perfect!r:.80} earns {earned}, not {weighted.full_score:g}"
