"""Rewards as words for a manifest: equal words for equal rewards, in this process or another."""

import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from posttrain.rewards import RewardTable, TaskRewards

HOW_A_JUDGE_IS_ASKED = frozenset(
    {
        "url",
        "api_key_env",
        "timeout_s",
        "retries",
        "backoff_s",
        "outage_s",
        "concurrency",
        "max_requests",
        "max_tokens",
        "cache",
    }
)
"""Settings of a judge's server that say where and how long, not what it says: a run that stopped because a judge was
away goes on with it at another address."""


def describe_rewards(table: RewardTable) -> dict[str, Any]:
    """Task -> how its rewards become a score, and each with its name, class, weight and options."""
    return {task: _described(rewards) for task, rewards in sorted(table.tasks.items())}


def _described(task: TaskRewards) -> dict[str, Any]:
    rewards = [
        {
            "name": weighted.name,
            "kind": _name_of(type(weighted.reward)),
            "weight": weighted.weight,
            "gate": weighted.opens_at,
            "options": _options(weighted.reward),
        }
        for weighted in task.rewards
    ]
    settings = {"aggregation": task.aggregation, "answer": task.answer, "clip": task.clip, "error": task.error}
    return {"rewards": rewards, **settings}


def _options(reward: Any) -> dict[str, Any]:
    if not is_dataclass(reward):
        return {}
    return _plain({field.name: getattr(reward, field.name) for field in fields(reward)})


def _option(key: Any, value: Any) -> Any:
    if key == "server" and isinstance(value, Mapping):
        value = {name: setting for name, setting in value.items() if name not in HOW_A_JUDGE_IS_ASKED}
    return _plain(value)


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_plain(item) for item in value]
        case Mapping():
            return {str(key): _option(key, item) for key, item in value.items() if key != "deadline_s"}
        case _:  # its repr would hold an address, which no other process repeats
            return _name_of(value if inspect.isroutine(value) or inspect.isclass(value) else type(value))


def _name_of(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
