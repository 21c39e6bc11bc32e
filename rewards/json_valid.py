"""The `json_valid` reward: does the answer hold JSON that any parser reads the same way?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .json_text import JSONAnswerError, answer_json, strict_json
from .registry import register
from .score import Completion, Score


@register("json_valid")
@dataclass(frozen=True, slots=True, kw_only=True)
class JSONValid:
    """1 where the answer is one JSON object or list, else 0. Says nothing about what it holds: `{}` passes.

    Read is the last fence marked `json` or not marked, else all that is said, of the last `<answer>` or of what follows
    the thoughts; it holds one balanced `{...}` or `[...]` that is JSON, not several. Refused are NaN and Infinity,
    numbers beyond a float, a key that occurs twice in one object, nesting more than 64 deep, and more than 262,144
    characters.
    """

    reads_whole_text: ClassVar[bool] = True
    kind: Literal["any", "object", "list"] = "any"
    """What it must be at the top."""
    alone: bool = False
    """Nothing else may be said after the thoughts, but for a fence around the JSON."""

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        try:
            value = strict_json(answer_json(completion.response, alone=self.alone, several=False))
        except JSONAnswerError as error:
            return Score(value=0.0, reason=str(error))
        kind = "object" if isinstance(value, dict) else "list"
        if self.kind not in ("any", kind):
            return Score(value=0.0, reason=f"the answer is a JSON {kind}, not one {self.kind}")
        return Score(value=1.0)

    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        """None: any JSON will do."""
        return None
