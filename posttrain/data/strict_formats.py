"""Prompts that demand a form: a few of IFEval's instructions that do not contradict each other, or JSON by a schema."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Demands = Mapping[str, Mapping[str, Any]]
"""Id of an IFEval instruction -> its arguments."""
Demanded = tuple[str, Mapping[str, Any]]
"""A prompt, and the reference fields that rewards read."""

_TOPICS = (
    "how tides work",
    "a visit to a market",
    "the history of the bicycle",
    "why bread rises",
    "keeping a vegetable garden",
    "how to prepare for an interview",
    "the first railway in a valley",
    "what a lighthouse is for",
    "choosing a second-hand camera",
    "how bees find their way",
    "moving to a new town",
    "learning to swim as an adult",
)
_TEXTS = ("a short article about {}", "a letter to a friend about {}", "a speech about {}", "notes for a talk about {}")
_WORDS = ("water", "morning", "careful", "distance", "neighbour", "simple", "winter", "enough", "window", "paper")
_RARE = ("very", "really", "always", "never", "important", "nice")
_ENDINGS = ("That is all for now.", "Is there anything else?", "See you tomorrow.")


def with_demands(prompt: str, demands: Demands) -> Demanded:
    """The prompt with the reference fields of the `instructions` reward, in IFEval's layout."""
    return prompt, {"instruction_id_list": list(demands), "kwargs": [dict(given) for given in demands.values()]}


def format_prompt(draw: random.Random) -> Demanded:
    """A text to write, with one to four instructions from different groups, so that they can all be followed."""
    groups: list[Callable[[random.Random], tuple[str, str, Mapping[str, Any]]]] = [
        _layout, _wording, _extra, _ending,
    ]  # fmt: skip
    chosen = draw.sample(groups, draw.randint(1, len(groups)))
    drawn = [group(draw) for group in groups if group in chosen]
    asked = f"Write {draw.choice(_TEXTS).format(draw.choice(_TOPICS))}."
    return with_demands(" ".join([asked, *(said for said, _, _ in drawn)]), {kind: given for _, kind, given in drawn})


def _layout(draw: random.Random) -> tuple[str, str, Mapping[str, Any]]:
    n = draw.randint(3, 9)
    return draw.choice(
        [
            (
                f"Use exactly {n} bullet points, each on a line that begins with '* '.",
                "detectable_format:number_bullet_lists",
                {"num_bullets": n},
            ),
            (
                f"Divide it into {n} sections, each of which begins with a line such as 'Section 1'.",
                "detectable_format:multiple_sections",
                {"section_spliter": "Section", "num_sections": n},
            ),
            (
                f"Write exactly {n} paragraphs, divided by a line with '***'.",
                "length_constraints:number_paragraphs",
                {"num_paragraphs": n},
            ),
        ]
    )


def _wording(draw: random.Random) -> tuple[str, str, Mapping[str, Any]]:
    n = draw.randrange(60, 241, 20)
    used, avoided = draw.sample(_WORDS, 3), draw.sample(_RARE, 3)
    return draw.choice(
        [
            (
                f"It must have at least {n} words.",
                "length_constraints:number_words",
                {"num_words": n, "relation": "at least"},
            ),
            (
                f"It must have fewer than {n} words.",
                "length_constraints:number_words",
                {"num_words": n, "relation": "less than"},
            ),
            (f"Use the words {', '.join(used)}.", "keywords:existence", {"keywords": used}),
            (f"Do not use the words {', '.join(avoided)}.", "keywords:forbidden_words", {"forbidden_words": avoided}),
            ("Use no commas at all.", "punctuation:no_comma", {}),
        ]
    )


def _extra(draw: random.Random) -> tuple[str, str, Mapping[str, Any]]:
    n = draw.randint(2, 4)
    return draw.choice(
        [
            ("Give it a title in double angular brackets, such as <<title>>.", "detectable_format:title", {}),
            (
                f"Highlight at least {n} passages in it with asterisks, such as *passage*.",
                "detectable_format:number_highlighted_sections",
                {"num_highlights": n},
            ),
            (
                f"Leave at least {n} placeholders in square brackets in it, such as [name].",
                "detectable_content:number_placeholders",
                {"num_placeholders": n},
            ),
        ]
    )


def _ending(draw: random.Random) -> tuple[str, str, Mapping[str, Any]]:
    phrase = draw.choice(_ENDINGS)
    return draw.choice(
        [
            (
                f"End with exactly this sentence, and nothing after it: {phrase}",
                "startend:end_checker",
                {"end_phrase": phrase},
            ),
            ("Put the whole response in double quotation marks.", "startend:quotation", {}),
        ]
    )


_RECORDS: Mapping[str, Mapping[str, Sequence[Any]]] = {
    "books in a library": {
        "title": ("The Long Shore", "Salt", "Nine Bridges"),
        "year": (1931, 1987, 2014),
        "lent": (True, False),
        "genre": ("novel", "poetry", "history"),
    },
    "trains of one morning": {
        "destination": ("Lyon", "Graz", "Porto"),
        "platform": (1, 4, 12),
        "delayed": (True, False),
        "class": ("express", "regional", "night"),
    },
    "plants of a garden": {
        "name": ("sage", "rose", "fern"),
        "height_cm": (20, 75, 140),
        "evergreen": (True, False),
        "light": ("sun", "shade", "either"),
    },
}
"""What -> its fields with values; the last field's are all that it may hold."""


def json_prompt(draw: random.Random) -> Demanded:
    """An object with a list of exactly so many invented records, with the schema, and one `answer` that follows it."""
    what = draw.choice(list(_RECORDS))
    values = _RECORDS[what]
    n, key = draw.randint(2, 8), what.split()[0]
    *free, limited = values
    fields = [*draw.sample(free, draw.randint(1, len(free))), limited]
    kinds = {name: {str: "string", int: "integer", bool: "boolean"}[type(values[name][0])] for name in fields}
    schemas: dict[str, dict[str, Any]] = {name: {"type": kind} for name, kind in kinds.items()}
    schemas[limited]["enum"] = list(values[limited])
    record = {"type": "object", "properties": schemas, "required": fields, "additionalProperties": False}
    records = {"type": "array", "items": record, "minItems": n, "maxItems": n}
    whole = {"type": "object", "properties": {key: records}, "required": [key], "additionalProperties": False}
    answer = {key: [{name: draw.choice(values[name]) for name in fields} for _ in range(n)]}
    told = ", ".join(f'"{name}" ({kind})' for name, kind in kinds.items())
    prompt = (
        f'Invent {n} {what}. Answer with one JSON object alone: its only key "{key}" holds a list of exactly {n} '
        f'objects with the keys {told}, and no others. "{limited}" is one of {", ".join(values[limited])}.'
    )
    return prompt, {"schema": whole, "answer": answer}
