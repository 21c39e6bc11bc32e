"""What a judge must say, and reading it strictly: a reply ends with one object that holds the id of this request."""

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
        """The fields. Raises `NoVerdictError` unless the reply is one object, bare or in a code fence.

        Thoughts are dropped. Prose may stand before the object, as long as it holds no bracket of another one and does
        not name the id; nothing may stand after it. Fields beside those that were asked for are ignored.
        """
        said = strip_thinking(reply)
        if said is None:
            raise NoVerdictError("it never stopped thinking")
        said = said.strip()
        if not said:
            raise NoVerdictError("it said nothing")
        if len(said) > _MOST_CHARS:
            raise NoVerdictError(f"it said {len(said):,} characters")
        prose, verdict = _parted(said)
        if verdict_id in prose or any(bracket in prose for bracket in "{}[]"):
            raise NoVerdictError(f"it did not say one JSON object alone: {said!r:.80}")
        try:
            found = strict_json(verdict)
        except JSONAnswerError as error:
            raise NoVerdictError(f"it did not say one JSON object alone: {said!r:.80} ({error})") from None
        if not isinstance(found, dict) or not {"id", *self.fields} <= set(found):
            raise NoVerdictError(f"it did not say an object with id, {', '.join(self.fields)}: {said!r:.80}")
        if found["id"] != verdict_id:
            raise NoVerdictError(f"its verdict has another id: {said!r:.80}")
        for name, field in self.fields.items():
            if not field.accepts(found[name]):
                raise NoVerdictError(f"its {name} is {found[name]!r:.40}, not {field.wording}")
        return {name: found[name] for name in self.fields}

    def holds(self, verdict: Mapping[str, Any]) -> bool:
        """True for a verdict that could have been parsed: a cache may have been written by anyone."""
        return set(verdict) == set(self.fields) and all(f.accepts(verdict[name]) for name, f in self.fields.items())


def _parted(said: str) -> tuple[str, str]:
    """What stands before the object, and the object; a code fence around it is dropped."""
    start = min((place for bracket in "{[" if (place := said.find(bracket)) >= 0), default=len(said))
    prose, verdict = said[:start].rstrip(), said[start:]
    for opening in ("```json", "```"):
        if prose.endswith(opening) and verdict.endswith("```"):
            return prose.removesuffix(opening), verdict.removesuffix("```").rstrip()
    return prose, verdict
