"""Scores of trajectories, and the comparison within their groups and over the batch that makes advantages of them."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
from accelerate.utils import gather_object

from posttrain.algorithms import AdvantageKind, Average, batch_deviation, decoupled_advantages, group_advantages
from posttrain.errors import ConfigError, DataError
from posttrain.records import Example, Group, Message, Status, Trajectory, Turn
from posttrain.rewards import (
    BadRewardError,
    Completion,
    ConversationTurn,
    RewardTable,
    Score,
    TaskRewards,
    judge_metrics,
)

_EPSILON = 1e-4


def score(trajectories: Sequence[Trajectory], rewards: RewardTable) -> list[Score]:
    """One score for each. Raises ConfigError, naming the reward, where one returns anything else."""
    try:
        return rewards.score_batch([(t.example.task, completion_of(t), t.example.reference) for t in trajectories])
    except BadRewardError as error:
        raise ConfigError(str(error)) from error


def completion_of(trajectory: Trajectory) -> Completion:
    """What rewards see of a trajectory; of an episode, what its environment showed, counted and answered.

    A call that the environment refused is one of `tool_calls`, and is not counted in `num_tool_calls`.
    """
    opening = trajectory.opening or trajectory.example.messages
    shown = trajectory.opening_images if trajectory.opening else trajectory.example.images
    calls = tuple(call for turn in trajectory.turns for call in turn.calls)
    return Completion(
        text=trajectory.text,
        prompt=_last_user_text(opening),
        truncated=trajectory.status is Status.TRUNCATED,
        token_ids=tuple(trajectory.token_ids[trajectory.mask].tolist()),
        num_tool_calls=sum(not call.error for call in calls),
        tool_calls=calls,
        num_turns=len(trajectory.turns) or 1,
        images=(*shown, *(image for turn in trajectory.turns for image in turn.images)),
        turns=tuple(part for turn in trajectory.turns for part in _conversation(turn)),
        environment_score=trajectory.environment_score,
    )


def last_user_text(example: Example) -> str:
    """What was asked last; empty where nobody asked."""
    return _last_user_text(example.messages)


def _last_user_text(messages: Sequence[Message]) -> str:
    asked = (message for message in reversed(messages) if message["role"] == "user")
    return next((_text(message) for message in asked), "")


def _text(message: Message) -> str:
    content = message["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def _conversation(turn: Turn) -> list[ConversationTurn]:
    """What was said in the turn and what it was answered."""
    return [
        ConversationTurn(role="assistant", text=turn.text),
        *(
            ConversationTurn(
                role="tool" if message["role"] == "tool" else "user",
                text=_text(message),
                num_images=_num_images(message),
            )
            for message in turn.observation
        ),
    ]


def _num_images(message: Message) -> int:
    content = message["content"]
    return 0 if isinstance(content, str) else sum(part["type"] == "image" for part in content)


def advantages_of(scores: Sequence[Score], rules: TaskRewards | None, kind: AdvantageKind) -> list[float]:
    """How much better each completion of a group was than the others; 0 for one without a score.

    Where the task's rewards are normalised one by one, `over_batch` has the last word.
    """
    if rules is None or rules.aggregation != "normalise_then_sum":
        values = [math.nan if s.value is None else s.value for s in scores]
        return group_advantages(torch.tensor(values), kind).tolist()
    weights = [weighted.weight for weighted in rules.counted]
    rows = [rules.values(s) or [math.nan] * len(weights) for s in scores]
    return decoupled_advantages(torch.tensor(rows), torch.tensor(weights), epsilon=_EPSILON).tolist()


def is_scored(trajectory: Trajectory) -> bool:
    """Unscored trajectories are not trained on, and not counted in the step's mean."""
    return trajectory.score is not None and trajectory.score.is_scored


def is_thin(group: Group, rewards: RewardTable) -> bool:
    """True where fewer of its members have a score than their task wants."""
    wanted = rewards.rewards_for(group.example.task).min_scored
    return sum(is_scored(t) for t in group.trajectories) < wanted


def deviations(groups: Sequence[Group], rewards: RewardTable | None, *, world: int) -> Mapping[str, float]:
    """{entry of the table: deviation of its advantages over the groups of all ranks}, for tasks that divide by it.

    Every rank must call it, with whatever groups it has.
    """
    tasks = rewards.tasks if rewards is not None else {}
    sums = {entry: (0.0, 0) for entry, rules in tasks.items() if rules.aggregation == "normalise_then_sum"}
    if rewards is None or not sums:
        return {}
    for group in groups:
        entry = rewards.entry_of(group.example.task)
        if entry in sums:
            squares, count = sums[entry]
            scored = [t.advantage for t in group.trajectories if is_scored(t)]
            sums[entry] = squares + sum(a * a for a in scored), count + len(scored)
    parts: Sequence[Mapping[str, tuple[float, int]]] = gather_object([sums]) if world > 1 else [sums]
    return {
        entry: batch_deviation(sum(part[entry][0] for part in parts), sum(part[entry][1] for part in parts))
        for entry in sums
    }


def over_batch(group: Group, rewards: RewardTable, found: Mapping[str, float]) -> Group:
    """The group with its advantages divided by the deviation of its entry, if it has one: GDPO's last step.

    More rewards then do not mean larger advantages. The mean over the batch is 0 as it is.
    """
    entry = rewards.entry_of(group.example.task)
    if entry not in found:
        return group
    scale = 1 / (found[entry] + _EPSILON)
    return replace(group, trajectories=[replace(t, advantage=t.advantage * scale) for t in group.trajectories])


def judged_since(before: Mapping[str, float]) -> dict[str, Average]:
    """What this process has asked its judges since `before`, an earlier `judge_metrics()`; empty where nothing."""
    grown = {name: total - before.get(name, 0.0) for name, total in judge_metrics().items()}
    asked = grown.get("judge/asked", 0.0)
    if not asked:
        return {}
    counts = {name: Average(total=number, count=1.0) for name, number in grown.items()}
    return {**counts, "judge/failed_frac": Average(total=grown["judge/failed"], count=asked)}


def stop_if_all_failed(trajectories: Sequence[Trajectory]) -> None:
    """Raises DataError where no completion has a score, because rewards fail: such a run would train on nothing."""
    scores = [t.score for t in trajectories if t.score is not None]
    if scores and all(s.error and s.value is None for s in scores):
        raise DataError(
            f"none of the {len(scores)} answers of this step has a score, because a reward fails: {scores[0].reason}; "
            "put it right, or try it out with `posttrain rewards test`"
        )
