"""One number from the values of several rewards: the weighted sum, and the sum whose bonuses stand behind a gate."""

from collections.abc import Sequence
from typing import Literal

Aggregation = Literal["weighted_sum", "gate_by_correctness", "normalise_then_sum"]
"""How the rewards of a task become one.

- `weighted_sum`: sum of weight times value.
- `gate_by_correctness`: the same, but what is no gate pays only where every gate is passed; penalties always count.
- `normalise_then_sum`: GDPO (2601.05242): each reward is normalised within the group, then weighted and summed. That
  needs a group: a single completion's score is its weighted sum, and the advantages are made from the values
  (`posttrain.algorithms.decoupled_advantages`).
"""


def weighted_sum(values: Sequence[float], weights: Sequence[float]) -> float:
    """Sum of weight times value."""
    return sum(weight * value for weight, value in zip(weights, values, strict=True))


def gated_sum(values: Sequence[float], weights: Sequence[float], gates: Sequence[float | None]) -> float:
    """The weighted sum, without the bonuses where a gate is closed.

    gates: the value from which each reward opens its gate, None for one that is no gate. Where any gate is closed, the
    others pay nothing above 0; below 0 they count all the same, so that a wrong answer is not free to repeat itself.
    """
    slack = 1e-9  # 0.1 + 0.2 opens a gate of 0.3
    is_open = all(value >= gate - slack for value, gate in zip(values, gates, strict=True) if gate is not None)
    paid = [
        value if is_open or gate is not None else min(value, 0.0) for value, gate in zip(values, gates, strict=True)
    ]
    return weighted_sum(paid, weights)


def clipped(total: float, clip: tuple[float, float] | None) -> float:
    """The total, kept between the two bounds."""
    return total if clip is None else min(max(total, clip[0]), clip[1])
