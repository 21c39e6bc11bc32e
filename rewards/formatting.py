"""The `format` reward: is the response laid out as asked? Says nothing about whether it is right."""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from .batching import BatchReward
from .extraction import all_boxed, strip_thinking
from .registry import nearest, register
from .score import Completion, Score
from .workers import WorkerError, shared_pool


@register("format")
@dataclass(frozen=True, slots=True, kw_only=True)
class FormatReward(BatchReward):
    r"""1 where the whole response has the layout, else 0.

    Layouts by name: `think_answer` (`<think>...</think><answer>...</answer>` and nothing else, each tag once, neither
    empty; the first tag may be missing, since many chat templates open the thought in the prompt), `boxed` (one
    non-empty `\boxed{...}` after the thoughts), `json` (after the thoughts one JSON object or list, bare or in a
    ```json fence). Anything else is a regular expression that must match the whole response, with `.` matching
    newlines; it runs in a worker process under a deadline, since a careless one can backtrack for ever.
    """

    reads_whole_text: ClassVar[bool] = True
    pattern: str = "think_answer"
    """A layout's name, or a regular expression."""
    deadline_s: float = 2.0
    """Wall-clock seconds for one match of a regular expression."""

    def __post_init__(self) -> None:
        if not self.deadline_s > 0:
            raise ValueError(f"deadline_s must be above 0 seconds, got {self.deadline_s}")
        if self.pattern in _LAYOUTS:
            return
        if re.fullmatch(r"\w*", self.pattern):
            raise ValueError(f"there is no layout {self.pattern!r}{nearest(self.pattern, _LAYOUTS)}")
        try:
            re.compile(self.pattern)
        except re.error as error:
            raise ValueError(f"pattern {self.pattern!r:.80} is no layout and no regular expression: {error}") from None

    def score_batch(self, completions: Sequence[Completion], references: Sequence[Mapping[str, Any]]) -> list[Score]:
        layout = _LAYOUTS.get(self.pattern)
        if layout is not None:
            return [Score(value=float(layout(completion.response))) for completion in completions]
        jobs = [(self.pattern, completion.response) for completion in completions]
        outcomes = shared_pool().run_many(f"{__name__}:matches", jobs, deadline_s=self.deadline_s)
        return [
            Score.unscored(f"matching the pattern: {outcome}")
            if isinstance(outcome, WorkerError)
            else Score(value=float(outcome))
            for outcome in outcomes
        ]

    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        """None: a reference does not say how a response is laid out."""
        return None


def matches(pattern: str, text: str) -> bool:
    """Whether the regular expression matches the whole text; runs inside a worker process."""
    return re.fullmatch(pattern, text, re.DOTALL) is not None


def _is_think_answer(text: str) -> bool:
    text = text.strip().removeprefix("<think>")
    if "<think>" in text or any(text.count(tag) != 1 for tag in ("</think>", "<answer>", "</answer>")):
        return False
    thought, _, rest = text.partition("</think>")
    rest = rest.strip()
    if not (rest.startswith("<answer>") and rest.endswith("</answer>")):
        return False
    return bool(thought.strip() and rest[len("<answer>") : -len("</answer>")].strip())


def _is_boxed(text: str) -> bool:
    boxes = all_boxed(strip_thinking(text) or "")
    return len(boxes) == 1 and boxes[0].strip() != ""


def _is_json(text: str) -> bool:
    spoken = (strip_thinking(text) or "").strip()
    if spoken.startswith("```json") and spoken.endswith("```") and len(spoken) > len("```json```"):
        spoken = spoken[len("```json") : -len("```")].strip()
    if not spoken.startswith(("{", "[")):
        return False
    try:
        json.loads(spoken)
    except (ValueError, RecursionError):
        return False
    return True


_LAYOUTS: dict[str, Callable[[str], bool]] = {"think_answer": _is_think_answer, "boxed": _is_boxed, "json": _is_json}
