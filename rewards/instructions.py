"""The `instructions` reward: which of the instructions in the prompt did the response follow?"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from .extraction import strip_thinking
from .instruction_kinds import Instruction, parse_instructions
from .references import reference_field
from .registry import register
from .score import Completion, Score

MAX_RESPONSE_CHARS = 200_000
"""A longer response follows nothing."""


@register("instructions")
@dataclass(frozen=True, slots=True, kw_only=True)
class InstructionReward:
    """How far the response, thoughts stripped, follows the row's instructions, in [0, 1]; each is a part of its own.

    The 25 kinds of IFEval (arXiv 2311.07911), with its fields: `instruction_id_list` and `kwargs`. A response without
    words follows nothing.
    """

    reads_whole_text: ClassVar[bool] = True
    credit: Literal["fraction", "all"] = "fraction"
    """fraction gives the share of the instructions that are followed, all gives 1 only where every one is."""
    mode: Literal["strict", "loose"] = "strict"
    """loose also accepts the response without its first line, its last line, both, or its asterisks, as IFEval does
    for openings such as "Sure, here it is:"; train on strict."""
    kinds_key: str = "instruction_id_list"
    """The reference field with the instructions' ids."""
    demands_key: str = "kwargs"
    """The reference field with the arguments of each."""

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        instructions = self._instructions(reference)
        spoken = strip_thinking(completion.response) or ""
        if len(spoken) > MAX_RESPONSE_CHARS:
            spoken = ""
        versions = loose_versions(spoken) if self.mode == "loose" else [spoken]
        followed = [any(instruction.is_followed(text) for text in versions) for instruction in instructions]
        parts: dict[str, float] = {}
        for instruction, done in zip(instructions, followed, strict=True):  # of two of one kind, the worse
            parts[instruction.name] = min(parts.get(instruction.name, 1.0), float(done))
        missed = [instruction.name for instruction, done in zip(instructions, followed, strict=True) if not done]
        value = float(not missed) if self.credit == "all" else 1 - len(missed) / len(instructions)
        return Score(value=value, parts=parts, reason=f"not followed: {', '.join(missed)}" if missed else "")

    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        """None: many responses do as they are told. Raises `BadReferenceError` for instructions that cannot be read."""
        self._instructions(reference)
        return None

    def _instructions(self, reference: Mapping[str, Any]) -> list[Instruction]:
        kinds = reference_field(reference, self.kinds_key)
        return parse_instructions(kinds, reference_field(reference, self.demands_key))


def loose_versions(response: str) -> list[str]:
    """The response, without its first line, without its last, without both; and each of these without asterisks."""
    lines = response.split("\n")
    versions = ["\n".join(part) for part in (lines, lines[1:], lines[:-1], lines[1:-1])]
    return [*versions, *(version.replace("*", "") for version in versions)]
