"""The 25 kinds of instruction of IFEval by their ids, and reading a row's instructions (arXiv 2311.07911).

A row holds `instruction_id_list`, and in `kwargs` as many mappings. Arguments that are None are left out: in a table
with one column for every argument, those of other kinds are None.
"""

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, get_args

from . import instruction_layout as layout
from . import instruction_wording as wording
from .registry import nearest
from .score import BadReferenceError

Check = Callable[..., bool]

KINDS: Mapping[str, Check] = MappingProxyType(
    {
        "change_case:capital_word_frequency": wording.has_capital_words,
        "change_case:english_capital": wording.is_capital_english,
        "change_case:english_lowercase": wording.is_lower_english,
        "combination:repeat_prompt": layout.repeats_prompt,
        "combination:two_responses": layout.has_two_responses,
        "detectable_content:number_placeholders": layout.has_placeholders,
        "detectable_content:postscript": layout.has_postscript,
        "detectable_format:constrained_response": layout.is_constrained,
        "detectable_format:json_format": layout.is_json,
        "detectable_format:multiple_sections": layout.has_sections,
        "detectable_format:number_bullet_lists": layout.has_bullets,
        "detectable_format:number_highlighted_sections": layout.has_highlights,
        "detectable_format:title": layout.has_title,
        "keywords:existence": wording.has_keywords,
        "keywords:forbidden_words": wording.avoids_words,
        "keywords:frequency": wording.has_keyword_often,
        "keywords:letter_frequency": wording.has_letter_often,
        "language:response_language": wording.is_in_language,
        "length_constraints:nth_paragraph_first_word": wording.has_first_word,
        "length_constraints:number_paragraphs": layout.has_divided_paragraphs,
        "length_constraints:number_sentences": wording.has_sentences,
        "length_constraints:number_words": wording.has_words,
        "punctuation:no_comma": wording.has_no_comma,
        "startend:end_checker": layout.ends_with,
        "startend:quotation": layout.is_quoted,
    }
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Instruction:
    """One instruction, with what it demands."""

    kind: str
    """An id of `KINDS`."""
    demands: Mapping[str, Any]
    """The arguments of its check."""

    @property
    def name(self) -> str:
        """The id without its group: `no_comma`. No two kinds share it."""
        return self.kind.partition(":")[2]

    def is_followed(self, response: str) -> bool:
        """Whether a response, thoughts stripped, does as it was told; an empty one never does."""
        return bool(response.strip()) and KINDS[self.kind](response, **self.demands)


def parse_instructions(kinds: Any, demands: Any) -> list[Instruction]:
    """The instructions of a row. Raises `BadReferenceError` for an unknown kind, and for missing or wrong arguments."""
    if not isinstance(kinds, list | tuple) or not isinstance(demands, list | tuple) or len(kinds) != len(demands):
        raise BadReferenceError(f"wanted two lists of one length, kinds and their arguments, got {kinds!r:.80}")
    if not kinds:
        raise BadReferenceError("the list of instructions is empty")
    return [_instruction(kind, given) for kind, given in zip(kinds, demands, strict=True)]


def _instruction(kind: Any, given: Any) -> Instruction:
    if not isinstance(kind, str) or kind not in KINDS:
        raise BadReferenceError(f"there is no instruction {kind!r:.80}{nearest(str(kind), KINDS)}")
    if given is not None and not isinstance(given, Mapping):
        raise BadReferenceError(f"{kind}: its arguments must be a mapping, got {given!r:.80}")
    demands = {name: value for name, value in (given or {}).items() if value is not None}
    wanted = {
        parameter.name: parameter.annotation
        for parameter in inspect.signature(KINDS[kind]).parameters.values()
        if parameter.kind is parameter.KEYWORD_ONLY
    }
    if demands.keys() != wanted.keys():
        takes, got = (", ".join(names) or "no arguments" for names in (wanted, demands))
        raise BadReferenceError(f"{kind} takes {takes}; got {got}")
    return Instruction(
        kind=kind, demands={name: _checked(kind, name, value, wanted[name]) for name, value in demands.items()}
    )


def _checked(kind: str, name: str, value: Any, annotation: Any) -> Any:
    """The argument, where it is what the check's annotation says; 3.0 is a count, True is none."""
    if annotation is int:
        wanted = "a count"
        if isinstance(value, int | float) and not isinstance(value, bool) and value in range(1_000_000):
            return int(value)
    elif annotation is str:
        wanted = "a text"
        if isinstance(value, str) and value.strip():
            return value
    elif annotation == list[str]:
        wanted = "a list of texts"
        if isinstance(value, list | tuple) and value and all(isinstance(item, str) and item.strip() for item in value):
            return list(value)
    else:
        wanted = " or ".join(repr(choice) for choice in get_args(annotation))
        if value in get_args(annotation):
            return value
    raise BadReferenceError(f"{kind}: {name!r} must be {wanted}, got {value!r:.80}")
