"""The `tool_call_format` reward: is every tool call one that could be run?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from .registry import register
from .score import Completion, Score
from .tool_calls import call_problem, reference_tools, written_calls


@register("tool_call_format")
@dataclass(frozen=True, slots=True, kw_only=True)
class ToolCallFormat:
    """1 where every `<tool_call>` is well formed, else 0; 1 also where there is none, so that calling earns nothing.

    A call is one JSON object with a `name` and an object of `arguments` between the two tags. Where the reference holds
    `tools`, the name must be one of theirs, required arguments must be there, others unknown to the schema must not,
    and JSON types must fit. Calls in thoughts are none. Says nothing about whether the environment ran the calls.
    """

    reads_whole_text: ClassVar[bool] = True
    tools_key: str = "tools"
    """The reference field with the tools' schemas, as the chat template takes them, or names; need not be there."""
    required: bool = False
    """Gives 0 where there is no call."""

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        tools = reference_tools(reference, self.tools_key)
        calls = written_calls(completion.text)
        problems = [problem for call in calls if (problem := call_problem(call, tools))]
        parts = {"num_calls": float(len(calls)), "num_malformed": float(len(problems))}
        if problems:
            return Score(value=0.0, parts=parts, reason=problems[0])
        if not calls and self.required:
            return Score(value=0.0, parts=parts, reason="no tool call")
        return Score(value=1.0, parts=parts)

    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        """None: a reference does not say which call to make. Raises `BadReferenceError` where `tools` are none."""
        reference_tools(reference, self.tools_key)
        return None
