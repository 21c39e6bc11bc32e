"""What a batch of rollouts is watched by: rewards by task and part, lengths, and how episodes use their tools."""

import json
import math
from collections import Counter, defaultdict
from collections.abc import Sequence

import numpy as np

from posttrain.algorithms import Average
from posttrain.records import Group, Limit, Status, Trajectory
from posttrain.rollout.scoring import is_scored

SPAM = 3
"""Times that an episode makes one and the same call before that counts as spam."""


def rollout_metrics(groups: Sequence[Group], *, scored: bool) -> dict[str, Average]:
    """Means over trajectories: rewards by task and part, lengths, and what was truncated or unscored."""
    values: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        rewards = [t.score.value for t in group.trajectories if t.score is not None and t.score.value is not None]
        if len(rewards) > 1:
            values["reward_std"].append(float(np.std(rewards, ddof=1)))
        for t in group.trajectories:
            values["length/mean"].append(float(t.mask.sum()))
            values["truncated_frac"].append(float(t.status is Status.TRUNCATED))
            if scored:
                values["unscored_frac"].append(float(not is_scored(t)))
                values["reward_error_frac"].append(float(t.score is not None and t.score.error))
            for name, value in _tool_facts(t).items():
                values[name].append(value)
            if t.score is None or t.score.value is None:
                continue
            values["reward"].append(t.score.value)
            values[f"reward/{t.example.task}"].append(t.score.value)
            for part, value in t.score.parts.items():
                if math.isfinite(value):
                    values[f"part/{part}"].append(value)
    return {name: Average(total=float(sum(v)), count=float(len(v))) for name, v in values.items()}


def _tool_facts(t: Trajectory) -> dict[str, float]:
    """Of an episode with an environment: how often it called tools, and the known ways in which that degenerates.

    A policy may learn to call exactly once always, or never, or the same over and over (Qwen3-VL report, section 4.5).
    """
    if not t.turns:
        return {}
    calls = [call for turn in t.turns for call in turn.calls]
    again = Counter((call.name, json.dumps(call.arguments, sort_keys=True, default=str)) for call in calls)
    most = max(again.values(), default=0)
    facts = {
        "turns/mean": float(len(t.turns)),
        "over_turn_frac": float(t.limit is Limit.TURNS),
        "over_images_frac": float(t.limit is Limit.IMAGES),
        "over_length_frac": float(t.limit is Limit.LENGTH),
        "environment_error_frac": float(t.status is Status.ERROR),
        "tools/calls_mean": float(len(calls)),
        "tools/no_call_frac": float(not calls),
        "tools/one_call_frac": float(len(calls) == 1),
        "tools/repeated_call_frac": float(most > 1),
        "tools/spam_frac": float(most >= SPAM),
    }
    if calls:
        facts["tools/error_frac"] = sum(bool(call.error) for call in calls) / len(calls)
    return facts
