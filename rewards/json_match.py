"""The `json_match` reward: how many fields of the reference's JSON does the answer have right?"""

import json
from collections import Counter
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from .json_text import JSONAnswerError, answer_json, reference_json, strict_json
from .registry import register
from .score import Completion, Score
from .words import squeezed


@register("json_match")
@dataclass(frozen=True, slots=True, kw_only=True)
class JSONMatch:
    """F1 of the answer's fields: a field is right where the reference has the same value at the same place.

    A field is a value that is no object or list with its path (`items[0].price`); an empty object or list is one too.
    Texts are compared after NFKC with whitespace squeezed, `1` equals `1.0`, but neither `"1"` nor `true`. Fields that
    the reference lacks count against the answer, so listing everything does not pay. JSON is found and parsed as by
    `json_valid`; an answer without any earns 0.
    """

    answer_key: str = "answer"
    """The reference field: an object or a list, or its JSON text."""
    ignore_case: bool = False
    """Compares texts case-folded; keys never."""
    ordered_lists: bool = True
    """False lets a list's items stand in any order; which item a field belongs to then no longer counts."""

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        gold = self._fields(reference_json(reference, self.answer_key))
        try:
            said = self._fields(strict_json(answer_json(completion.text)))
        except JSONAnswerError as error:
            return Score(value=0.0, parts={"exact": 0.0}, reason=str(error))
        right = (gold & said).total()
        parts = {
            "precision": right / said.total(),
            "recall": right / gold.total(),
            "exact": float(gold == said),
        }
        return Score(value=2 * right / (gold.total() + said.total()), parts=parts)

    def perfect_answer(self, reference: Mapping[str, Any]) -> str:
        """The reference in a ```json fence. Raises `BadReferenceError` where it is no JSON."""
        return f"```json\n{json.dumps(reference_json(reference, self.answer_key), ensure_ascii=False)}\n```"

    def _fields(self, value: Any) -> Counter[Hashable]:
        return Counter(self._walk(value, ()))

    def _walk(self, value: Any, path: tuple[str | int, ...]) -> Iterator[Hashable]:
        """Each field with its path; recursion is as deep as the JSON, which the parser bounds."""
        if isinstance(value, dict) and value:
            for key, item in value.items():
                yield from self._walk(item, (*path, key))
        elif isinstance(value, list) and value:
            for index, item in enumerate(value):
                yield from self._walk(item, (*path, index if self.ordered_lists else -1))
        else:
            yield path, *self._comparable(value)

    def _comparable(self, value: Any) -> tuple[str, Hashable]:
        """The value with its kind, without which 1 would equal true."""
        if isinstance(value, str):
            text = squeezed(value)
            return "text", text.casefold() if self.ignore_case else text
        if isinstance(value, dict | list):
            return type(value).__name__, None  # empty
        return ("truth", value) if isinstance(value, bool) else ("number or null", value)
