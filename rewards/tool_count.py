"""The `tool_count` reward: how near is the number of tool calls to the number that the task needs?"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .references import reference_field
from .registry import register
from .score import BadReferenceError, Completion, Score, ToolCall


@register("tool_count")
@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCount:
    """`max(0, 1 - max(target - useful, tried - target) / max(target, 1))`, of calls that the environment counted.

    Useful is a call that ran and repeats no earlier one, name and arguments alike; tried are all, so that neither
    calls that fail nor repetitions bring anyone nearer to the target, and both cost beyond it. Where every call is
    useful this is `max(0, 1 - |calls - target| / max(target, 1))`. Qwen3-VL (arXiv 2511.21631, section 4.5) compares
    the number of calls with a target that a judge estimated beforehand, to stop the policy from collapsing to one call
    whatever the task; the report gives no formula, this one is ours. Calls are never counted from the text. Pay it on
    right answers only (a gate of the table): by itself it pays for calls that help nothing.
    """

    target_key: str = "num_tool_calls"
    """The reference field: a whole number of at least 0."""
    max_calls: int = 0
    """Calls that the environment allows: a larger target is cut to it; 0 cuts none."""
    repeats: bool = False
    """Whether a call that repeats an earlier one is useful too, as it may be for tools whose answers change."""

    def __post_init__(self) -> None:
        if self.max_calls < 0:
            raise ValueError(f"max_calls must be at least 0, got {self.max_calls}")

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        target, useful, tried = self._target(reference), self._num_useful(completion), completion.num_tool_calls
        tried = max(tried, len(completion.tool_calls))
        near = max(0.0, 1 - max(target - useful, tried - target) / max(target, 1))
        parts = {"num_calls": float(tried), "num_useful": float(useful), "target": float(target)}
        return Score(value=near, parts=parts)

    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        """None: a text holds no calls that were run. Raises `BadReferenceError` where there is no target."""
        self._target(reference)
        return None

    def _num_useful(self, completion: Completion) -> int:
        if not completion.tool_calls:
            return completion.num_tool_calls
        ran = [_what(call) for call in completion.tool_calls if not call.error]
        return len(ran) if self.repeats else len(set(ran))

    def _target(self, reference: Mapping[str, Any]) -> int:
        target = reference_field(reference, self.target_key)
        if isinstance(target, float) and target.is_integer():
            target = int(target)  # a column with gaps becomes one of floats
        if isinstance(target, bool) or not isinstance(target, int) or target < 0:
            raise BadReferenceError(f"{self.target_key!r} must be a whole number of at least 0, got {target!r:.80}")
        return min(target, self.max_calls) if self.max_calls else target


def _what(call: ToolCall) -> str:
    """Equal for calls of one tool with equal arguments, in whatever order."""
    return json.dumps([call.name, dict(call.arguments)], sort_keys=True, default=str)
