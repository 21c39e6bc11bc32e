"""The `environment_score` reward: the verdict of an environment that judges its own episodes, as simulators do."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .registry import register
from .score import Completion, Score


@register("environment_score")
@dataclass(frozen=True, slots=True, kw_only=True)
class EnvironmentScore:
    """What the environment said of the episode; unscored where it said nothing or no finite number."""

    reads_whole_text: ClassVar[bool] = True

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        score = completion.environment_score
        if score is None:
            return Score.unscored("the environment gives no score")
        if not math.isfinite(score):
            return Score.unscored(f"the environment's score is {score}, which is no finite number")
        return Score(value=float(score))

    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        """None: only an episode earns it."""
        return None
