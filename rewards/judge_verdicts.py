"""What a judge must say, and reading it strictly: one JSON object with the id that only this request named."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from .extraction import strip_thinking
from .json_text import JSONAnswerError, strict_json

_MOST_CHARS = 4000
"""A longer reply is prose."""


class NoVerdictError(ValueError):
    """A reply that is no verdict, with the reason."""


@dataclass(frozen=True, slots=True)
class Choice:
    """One of a few values."""

    values: tuple[str | bool, ...]

    @property
    def wording(self) -> str:
        return " or ".join(json.dumps(value) for value in self.values)

    @property
    def schema(self) -> dict[str, Any]:
        return {"enum": list(self.values)}

    def accepts(self, said: Any) -> bool:
        return any(type(said) is type(value) and said == value for value in self.values)


@dataclass(frozen=True, slots=True)
class Scale:
    """A number of a closed range."""

    low: float
    high: float

    @property
    def wording(self) -> str:
        return f"a number from {self.low:g} to {self.high:g}"

    @property
    def schema(self) -> dict[str, Any]:
        return {"type": "number", "minimum": self.low, "maximum": self.high}

    def accepts(self, said: Any) -> bool:
        return isinstance(said, int | float) and not isinstance(said, bool) and self.low <= said <= self.high


@dataclass(frozen=True, slots=True)
class VerdictFormat:
    """The fields of a verdict. A copy of anything that the judged text holds lacks the id, and is no verdict."""

    fields: Mapping[str, Choice | Scale]

    def request(self, verdict_id: str) -> str:
        """The sentence that asks for it."""
        shape = ", ".join(f'"{name}": <{field.wording}>' for name, field in self.fields.items())
        return (
            "Reply with one JSON object alone, without any other word, of this form:\n"
            f'{{"id": "{verdict_id}", {shape}}}'
        )

    def schema(self) -> dict[str, Any]:
        """For servers that can constrain a reply. The id is not given away: that the judge repeats it is the proof."""
        properties = {"id": {"type": "string"}} | {name: field.schema for name, field in self.fields.items()}
        return {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }

    def parse(self, reply: str, verdict_id: str) -> dict[str, Any]:
        """The fields. Raises `NoVerdictError` for everything but the one object, in a code fence or bare.

        Thoughts before it are dropped.
        """
        said = strip_thinking(reply)
        if said is None:
            raise NoVerdictError("it never stopped thinking")
        said = _unfenced(said.strip())
        if not said:
            raise NoVerdictError("it said nothing")
        if len(said) > _MOST_CHARS:
            raise NoVerdictError(f"it said {len(said):,} characters")
        try:
            found = strict_json(said)
        except JSONAnswerError as error:
            raise NoVerdictError(f"it did not say one JSON object alone: {said!r:.80} ({error})") from None
        if not isinstance(found, dict) or set(found) != {"id", *self.fields}:
            raise NoVerdictError(f"it did not say an object with id, {', '.join(self.fields)} alone: {said!r:.80}")
        if found.pop("id") != verdict_id:
            raise NoVerdictError(f"its verdict has another id: {said!r:.80}")
        for name, field in self.fields.items():
            if not field.accepts(found[name]):
                raise NoVerdictError(f"its {name} is {found[name]!r:.40}, not {field.wording}")
        return found

    def holds(self, verdict: Mapping[str, Any]) -> bool:
        """True for a verdict that could have been parsed: a cache may have been written by anyone."""
        return set(verdict) == set(self.fields) and all(f.accepts(verdict[name]) for name, f in self.fields.items())


def _unfenced(said: str) -> str:
    first, _, rest = said.partition("\n")
    if first.strip() in ("```", "```json") and rest.rstrip().endswith("```"):
        return rest.rstrip().removesuffix("```").strip()
    return said
