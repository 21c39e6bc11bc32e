"""Rewards as words for a manifest: equal words for equal rewards, in this process or another."""

import inspect
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from posttrain.rewards import RewardTable


def describe_rewards(table: RewardTable) -> dict[str, Any]:
    """Task -> its rewards: name, class, weight and options."""
    return {
        task: [
            {
                "name": weighted.name,
                "kind": _name_of(type(weighted.reward)),
                "weight": weighted.weight,
                "options": _options(weighted.reward),
            }
            for weighted in rewards.rewards
        ]
        for task, rewards in sorted(table.tasks.items())
    }


def _options(reward: Any) -> dict[str, Any]:
    if not is_dataclass(reward):
        return {}
    return {field.name: _plain(getattr(reward, field.name)) for field in fields(reward)}


def _plain(value: Any) -> Any:
    match value:
        case None | bool() | int() | float() | str():
            return value
        case list() | tuple():
            return [_plain(item) for item in value]
        case Mapping():
            return {str(key): _plain(item) for key, item in value.items()}
        case _:  # its repr would hold an address, which no other process repeats
            return _name_of(value if inspect.isroutine(value) or inspect.isclass(value) else type(value))


def _name_of(thing: Any) -> str:
    return f"{thing.__module__}.{thing.__qualname__}"
