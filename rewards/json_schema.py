"""The `json_schema` reward: does the answer's JSON follow the row's schema?"""

import functools
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import TYPE_CHECKING, Any

from .batching import BatchReward
from .json_text import JSONAnswerError, answer_json, reference_json, strict_json
from .registry import register
from .score import BadReferenceError, Completion, Score
from .workers import WorkerError, shared_pool

if TYPE_CHECKING:
    from jsonschema.protocols import Validator

MAX_VIOLATIONS = 20
"""More are not counted."""


@register("json_schema")
@dataclass(frozen=True, slots=True, kw_only=True)
class JSONSchemaReward(BatchReward):
    """1 where the answer's JSON follows the schema, by the jsonschema library, else 0.

    The JSON is found and parsed as by `json_valid`. It is compared in a worker process with a deadline: a schema's
    `pattern` can backtrack for ever on a text that a policy chose. The schema's `$schema` says which draft it is, by
    default 2020-12. Nothing is fetched: a `$ref` must lead into the schema itself. `format` is not checked.
    """

    schema_key: str = "schema"
    """The reference field: a schema, or its JSON text."""
    schema: dict[str, Any] | None = None
    """One schema for all rows, in the place of the reference's."""
    answer_key: str = "answer"
    """A reference field that may hold an answer which follows the schema; `posttrain check` tries it."""
    deadline_s: float = 5.0
    """Wall-clock seconds for one answer."""

    def __post_init__(self) -> None:
        if not self.deadline_s > 0:
            raise ValueError(f"deadline_s must be above 0 seconds, got {self.deadline_s}")
        if self.schema is not None:
            try:
                self._schema_text({})
            except BadReferenceError as error:
                raise ValueError(str(error)) from None

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        """The score. Raises `BadReferenceError` where the schema is none."""
        self._schema_text(reference)
        return self.score_batch([completion], [reference])[0]

    def score_batch(self, completions: Sequence[Completion], references: Sequence[Mapping[str, Any]]) -> list[Score]:
        scores: dict[int, Score] = {}
        jobs: dict[int, tuple[str, str]] = {}
        for index, (completion, reference) in enumerate(zip(completions, references, strict=True)):
            try:
                schema = self._schema_text(reference)
                said = answer_json(completion.text)
                strict_json(said)
                jobs[index] = (schema, said)
            except BadReferenceError as error:
                scores[index] = Score.unscored(f"bad reference: {error}")
            except JSONAnswerError as error:
                scores[index] = Score(value=0.0, reason=str(error))
        outcomes = shared_pool().run_many(f"{__name__}:violations", list(jobs.values()), deadline_s=self.deadline_s)
        for index, outcome in zip(jobs, outcomes, strict=True):
            scores[index] = _score(outcome)
        return [scores[index] for index in range(len(completions))]

    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        """The reference's own answer, if it has one. Raises `BadReferenceError` where the schema is none."""
        self._schema_text(reference)
        if reference.get(self.answer_key) is None:
            return None
        return json.dumps(reference_json(reference, self.answer_key), ensure_ascii=False)

    def wrong_answers(self, reference: Mapping[str, Any]) -> Iterable[str]:
        """What is no JSON: other values than the reference's answer may follow the schema as well."""
        return ["{", "no JSON"]

    def _schema_text(self, reference: Mapping[str, Any]) -> str:
        source = reference if self.schema is None else {self.schema_key: self.schema}
        schema = reference_json(source, self.schema_key)
        if not isinstance(schema, dict) or not isinstance(schema.get("$schema", ""), str):
            raise BadReferenceError(f"{self.schema_key!r} must be a JSON schema, got {schema!r:.80}")
        text = json.dumps(schema)
        if problem := _schema_problem(text):
            raise BadReferenceError(f"{self.schema_key!r} is no JSON schema: {problem}")
        return text


def violations(schema: str, answer: str) -> list[str]:
    """What is wrong with the answer, in up to `MAX_VIOLATIONS` sentences; runs inside a worker process."""
    errors = _validator(schema).iter_errors(strict_json(answer))
    return [f"{error.json_path}: {error.message:.200}" for error in islice(errors, MAX_VIOLATIONS)]


def _score(outcome: Any) -> Score:
    if isinstance(outcome, WorkerError):
        return Score.unscored(f"comparing with the schema: {outcome}")
    return Score(value=float(not outcome), parts={"violations": float(len(outcome))}, reason="; ".join(outcome[:3]))


@functools.lru_cache(maxsize=256)
def _schema_problem(schema: str) -> str:
    from jsonschema import SchemaError

    parsed = json.loads(schema)
    try:
        _draft(parsed).check_schema(parsed)
    except SchemaError as error:
        return f"{error.json_path}: {error.message:.200}"
    return ""


@functools.lru_cache(maxsize=256)
def _validator(schema: str) -> "Validator":
    from referencing import Registry

    parsed = json.loads(schema)
    # the default registry would fetch a $ref from wherever it leads; an empty one finds nothing outside the schema
    return _draft(parsed)(parsed, registry=Registry())


def _draft(schema: dict[str, Any]) -> "type[Validator]":
    from jsonschema import Draft202012Validator
    from jsonschema.validators import validator_for

    return validator_for(schema, default=Draft202012Validator)
