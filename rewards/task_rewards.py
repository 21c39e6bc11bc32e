"""The rewards of one task, and how what they give becomes one score."""

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, Literal, get_args, get_type_hints

from .aggregation import Aggregation, clipped, gated_sum, weighted_sum
from .batching import score_many
from .corruption import reference_problem, too_generous
from .extraction import EXTRACTIONS, Extraction, extract, extract_answer
from .options import checked_value
from .registry import nearest
from .score import Completion, Score, WholeTextReward
from .tool_calls import without_calls
from .weighted import WeightedReward, weighted_reward

Truncated = Literal["score", "zero", "unscored"]
Timed = Callable[[str, float], None]
"""Is told (reward's name, seconds) of every call."""


@dataclass(frozen=True, slots=True)
class TaskRewards:
    """The rewards of one task, and how they become its score."""

    rewards: tuple[WeightedReward, ...]
    truncated: Truncated = "score"
    """What a completion that the token limit ended gets: its score like any other, 0, or none."""
    answer: Extraction | None = None
    """What counts as the answer; None lets each reward look for it in its own way."""
    aggregation: Aggregation = "weighted_sum"
    clip: tuple[float, float] | None = None
    """Bounds of the sum."""
    error: Literal["unscored"] | float = "unscored"
    """What a completion earns for which a reward that counts has no verdict: no score, or this number."""
    deadline_s: float | None = None
    """Wall-clock seconds of one call of a reward that keeps no deadline itself."""
    min_scored: int = 2
    """Groups with fewer scores than this are not trained on."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "rewards", tuple(self.rewards))
        names = [weighted.name for weighted in self.rewards]
        if not any(weighted.weight > 0 for weighted in self.rewards):
            raise ValueError(f"a task needs a reward with a weight above 0, got {names or 'no reward'}")
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ValueError(f"two rewards of one task are named {twice[0]!r}; give one another name (label)")
        if self.truncated not in get_args(Truncated):
            raise ValueError(f"truncated must be 'score', 'zero' or 'unscored', got {self.truncated!r}")
        if self.answer is not None and self.answer not in EXTRACTIONS:
            raise ValueError(f"there is no extraction {self.answer!r}{nearest(str(self.answer), EXTRACTIONS)}")
        if self.min_scored < 1:
            raise ValueError(f"min_scored must be at least 1, got {self.min_scored}")
        if self.deadline_s is not None and not self.deadline_s > 0:
            raise ValueError(f"deadline_s must be above 0 seconds, got {self.deadline_s}")
        if self.error != "unscored" and not (isinstance(self.error, int | float) and math.isfinite(self.error)):
            raise ValueError(f"error must be 'unscored' or a number, got {self.error!r}")
        self._check_aggregation()

    @property
    def full_score(self) -> float:
        """What a perfect answer earns; penalties add nothing to it."""
        return clipped(sum(weighted.weight * weighted.full_marks for weighted in self.rewards), self.clip)

    @property
    def is_bounded(self) -> bool:
        """True where no answer can earn more than `full_score`."""
        return all(weighted.is_bounded for weighted in self.counted)

    @property
    def counted(self) -> tuple[WeightedReward, ...]:
        """Those with a weight above 0."""
        return tuple(weighted for weighted in self.rewards if weighted.weight > 0)

    def score_batch(
        self,
        completions: Sequence[Completion],
        references: Sequence[Mapping[str, Any]],
        *,
        timed: Timed | None = None,
    ) -> list[Score]:
        """One score for each completion, in order. Raises `BadRewardError` where a reward gives something else."""
        heard = [self.truncated == "score" or not completion.truncated for completion in completions]
        kept = [index for index, is_heard in enumerate(heard) if is_heard]
        read = [self._read(completions[i]) for i in kept]
        columns = []
        for weighted in self.rewards:
            start = time.perf_counter()
            views = read if isinstance(weighted.reward, WholeTextReward) else [self._view(c) for c in read]
            columns.append(
                score_many(
                    weighted.reward,
                    views,
                    [references[i] for i in kept],
                    name=weighted.name,
                    deadline_s=self.deadline_s,
                )
            )
            if timed is not None:
                timed(weighted.name, time.perf_counter() - start)
        silent = (
            Score(value=0.0, reason="cut off by the token limit")
            if self.truncated == "zero"
            else Score.unscored("cut off by the token limit")
        )
        scores = [silent] * len(completions)
        for index, row in zip(kept, zip(*columns, strict=True), strict=True):
            scores[index] = self._combine(row)
        return scores

    def values(self, score: Score) -> list[float] | None:
        """What each reward in `counted` gave, of one of this task's scores; None where it is unscored.

        In a completion that has its score from elsewhere (cut off, or worth `error` since a verdict is missing), all
        have the one value with which the weighted sum is right.
        """
        if score.value is None:
            return None
        found = [score.parts.get(weighted.name) for weighted in self.counted]
        values = [value for value in found if value is not None]
        if len(values) == len(found):
            return values
        return [score.value / sum(weighted.weight for weighted in self.counted)] * len(found)

    def check(self, reference: Mapping[str, Any]) -> list[str]:
        """A sentence for each reward that does not give its own perfect answer its full score."""
        found = (reference_problem(w.reward, w.full_marks, reference) for w in self.rewards)
        return [f"{w.name}: {problem}" for w, problem in zip(self.rewards, found, strict=True) if problem]

    def check_wrong(self, reference: Mapping[str, Any], others: Sequence[Mapping[str, Any]] = ()) -> list[str]:
        """A sentence for each reward that gives a wrong answer its full score; `others`: other rows' references."""
        return [
            f"{weighted.name}: {problem}"
            for weighted in self.rewards
            for problem in too_generous(weighted.reward, weighted.full_marks, reference, others)
        ]

    def _read(self, completion: Completion) -> Completion:
        said = _said(completion)
        return replace(completion, answer=extract_answer(said) if self.answer is None else extract(said, self.answer))

    def _view(self, completion: Completion) -> Completion:
        """What a reward of answers reads: what was said (last), or where the task says what counts, that alone."""
        if self.answer is None:
            return replace(completion, text=_said(completion)) if completion.turns else completion
        answer = completion.answer or ""
        is_plain = answer and "<answer>" not in answer and "</answer>" not in answer
        return replace(completion, text=f"<answer>{answer}</answer>" if is_plain else answer)

    def _combine(self, row: Sequence[Score]) -> Score:
        values, parts, unscored, remarks = [], {}, [], []
        for weighted, score in zip(self.rewards, row, strict=True):
            remark = f"{weighted.name}: {score.reason}"
            values.append(score.value or 0.0)
            if score.value is not None:
                parts[weighted.name] = score.value
            elif weighted.is_needed:
                unscored.append(remark)
            parts.update({f"{weighted.name}/{part}": value for part, value in score.parts.items()})
            if score.reason:
                remarks.append(remark)
        failed = any(s.error and w.is_needed for w, s in zip(self.rewards, row, strict=True))
        if unscored:
            worth = None if self.error == "unscored" else float(self.error)
            return Score(value=worth, parts=parts, reason="; ".join(unscored), error=failed)
        return Score(value=clipped(self._sum(values), self.clip), parts=parts, reason="; ".join(remarks))

    def _sum(self, values: Sequence[float]) -> float:
        weights = [weighted.weight for weighted in self.rewards]
        if self.aggregation == "gate_by_correctness":
            return gated_sum(values, weights, [weighted.opens_at for weighted in self.rewards])
        return weighted_sum(values, weights)

    def _check_aggregation(self) -> None:
        if self.aggregation not in get_args(Aggregation):
            known = ", ".join(get_args(Aggregation))
            raise ValueError(f"there is no aggregation {self.aggregation!r}; known are: {known}")
        gates = [weighted.name for weighted in self.rewards if weighted.opens_at is not None]
        if self.aggregation == "gate_by_correctness" and not gates:
            raise ValueError("gate_by_correctness needs a reward with gate: true, on whose full score bonuses depend")
        if self.aggregation != "gate_by_correctness" and gates:
            raise ValueError(f"{gates[0]!r} is a gate, which {self.aggregation} has none of; use gate_by_correctness")
        if self.clip is not None:
            low, high = self.clip
            if not low < high:
                raise ValueError(f"clip must be (low, high) with low below high, got {self.clip}")
            if self.aggregation == "normalise_then_sum":
                raise ValueError("normalise_then_sum compares rewards one by one: there is no sum to clip")
            if self.is_bounded and low >= sum(w.weight * w.full_marks for w in self.counted):
                raise ValueError(f"clip {self.clip} gives every answer the same score: none earns more than {low:g}")


def task_rewards(spec: Any, *, truncated: Truncated = "score") -> TaskRewards:
    """What a script says of a task: one reward, a list of them, or what a recipe holds, a mapping with `rewards`.

    Each reward is what `weighted_reward` takes; the other keys of the mapping are the fields of `TaskRewards`. Raises
    ValueError for an unknown key, and as `weighted_reward` and `TaskRewards` do.
    """
    if isinstance(spec, TaskRewards):
        return spec
    if not isinstance(spec, Mapping) or "rewards" not in spec or "name" in spec:
        listed = spec if isinstance(spec, list | tuple) else [spec]
        return TaskRewards(tuple(weighted_reward(item) for item in listed), truncated)
    hints = get_type_hints(TaskRewards)
    known = [field.name for field in fields(TaskRewards)]
    if unknown := [key for key in spec if key not in known]:
        raise ValueError(f"a task has no key {unknown[0]!r}{nearest(str(unknown[0]), known)}")
    options: dict[str, Any] = {"truncated": truncated}
    options |= {key: checked_value(value, hints[key], repr(key)) for key, value in spec.items() if key != "rewards"}
    listed = spec["rewards"]
    if not isinstance(listed, list | tuple):
        raise ValueError(f"a task's 'rewards' must be a list, got {listed!r:.80}")
    made = (weighted_reward(item, deadline_s=options.get("deadline_s")) for item in listed)
    return TaskRewards(rewards=tuple(made), **options)


def _said(completion: Completion) -> str:
    """Where the answer is looked for: of an episode in its last turn, for what the policy said before it had not seen
    all, and not in tool calls, whose arguments look like answers."""
    return without_calls(completion.response) if completion.turns else completion.text
