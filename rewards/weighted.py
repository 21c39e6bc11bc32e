"""One reward of a task: its weight, its name, what a perfect answer earns, and whether it is a gate."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .environment_score import EnvironmentScore
from .functions import FunctionReward
from .registry import make_reward, reward_name
from .score import Reward, StatesFullScore


@dataclass(frozen=True, slots=True)
class WeightedReward:
    """One reward of a task."""

    reward: Reward
    weight: float = 1.0
    """0 only logs it."""
    name: str = ""
    """Its name in metrics and the report; by default the registered name, the function's, or the class's."""
    full_score: float | None = None
    """What a perfect answer earns, before the weight; None takes what the reward says: 0 for a penalty, else 1."""
    gate: bool | float = False
    """Of gate_by_correctness: True opens the gate at the full score, a number from there on."""

    def __post_init__(self) -> None:
        if not (math.isfinite(self.weight) and self.weight >= 0):
            raise ValueError(
                f"a reward's weight must be 0 or more, got {self.weight}; write a penalty as a reward below 0"
            )
        if not self.name:
            object.__setattr__(self, "name", reward_name(self.reward))
        if self.is_bounded and not isinstance(self.gate, bool) and self.gate > self.full_marks:
            raise ValueError(
                f"{self.name!r} gives {self.full_marks:g} at best, so that a gate of {self.gate:g} never opens; set a "
                "lower number, or true for full marks"
            )

    @property
    def full_marks(self) -> float:
        """`full_score`, or what the reward says of itself."""
        if self.full_score is not None:
            return self.full_score
        return self.reward.full_score if isinstance(self.reward, StatesFullScore) else 1.0

    @property
    def is_bounded(self) -> bool:
        """False for a function and an environment, which may give anything: their full marks of 1 are a guess."""
        return not isinstance(self.reward, FunctionReward | EnvironmentScore)

    @property
    def opens_at(self) -> float | None:
        """The value from which it opens its gate; None where it is no gate."""
        if isinstance(self.gate, bool):
            return self.full_marks if self.gate else None
        return self.gate

    @property
    def is_needed(self) -> bool:
        """True where a completion has no score without its verdict."""
        return self.weight > 0 or self.opens_at is not None


def weighted_reward(spec: Any, *, deadline_s: float | None = None) -> WeightedReward:
    """What `make_reward` makes of the spec, with the `weight`, `label` and `gate` that a mapping may hold.

    Options stand beside the name, or as in a recipe under `options`.
    """
    if isinstance(spec, WeightedReward):
        return spec
    if not isinstance(spec, Mapping):
        return WeightedReward(make_reward(spec, deadline_s=deadline_s))
    options = dict(spec)
    weight, label, gate = options.pop("weight", 1.0), options.pop("label", ""), options.pop("gate", False)
    for key, number in (("weight", weight), ("gate", gate)):
        if not isinstance(number, int | float) or (key == "weight" and isinstance(number, bool)):
            raise ValueError(f"a reward's {key} must be a number, got {number!r:.80}")
    if isinstance(nested := options.get("options"), Mapping):
        del options["options"]
        if twice := sorted(options.keys() & nested.keys()):
            raise ValueError(f"{twice[0]!r} stands both beside a reward's options and among them; give it once")
        options |= nested
    return WeightedReward(make_reward(options, deadline_s=deadline_s), float(weight), str(label), gate=gate)
