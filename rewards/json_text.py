"""JSON in answers: found in a code fence, a tag or prose, and parsed strictly, in time linear in the text.

Strictly, because what a policy gets away with it will write: NaN and Infinity are no JSON, 1e999 is no number, a key
that occurs twice leaves the choice to the reader, and nesting without end exhausts the stack.
"""

import json
import math
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from .extraction import last_tagged, strip_thinking
from .references import reference_field
from .score import BadReferenceError

MAX_CHARS = 262_144
"""A longer text is not parsed."""
MAX_DEPTH = 64
"""Deeper nesting is refused before the parser, which would recurse into it."""

_OPENING = re.compile(r"```(\w*)")
_CLOSING = re.compile(r"^[ \t]*```|```(?=[ \t]*(?:\n|\Z))", re.MULTILINE)  # neither can stand in a JSON string
_BRACKET = re.compile(r"""[\[\]{}"]|\\.""")
_PAIRS = {"]": "[", "}": "{"}


class JSONAnswerError(ValueError):
    """An answer without JSON that can be accepted; says why."""


def answer_json(text: str, *, alone: bool = False, several: bool = True) -> str:
    """The text of the answer's JSON object or list, not yet parsed. Raises `JSONAnswerError` where there is none.

    After the thoughts, in the last `<answer>` if there is one: the last fence marked `json` or not marked at all, else
    the last balanced `{...}` or `[...]`. With `alone`, nothing else may be said, but for the fence; without `several`,
    no other JSON object or list may stand before the last one, nor in its fence.
    """
    spoken = strip_thinking(text)
    if spoken is None:
        raise JSONAnswerError("the thought was never closed")
    tagged = last_tagged(spoken)
    spoken = (spoken if tagged is None else tagged).strip()
    fences = [] if spoken.startswith(("{", "[")) else _fences(spoken)
    blocks = [(start, end) for language, start, end in fences if language in ("", "json")]
    start, end = blocks[-1] if blocks else (0, len(spoken))
    if alone:
        if blocks and (spoken[:start].strip() not in ("```", "```json") or spoken[end:].strip() != "```"):
            raise JSONAnswerError("more is said than the JSON")
        found = spoken[start:end].strip()
        if not found.startswith(("{", "[")):
            raise JSONAnswerError("the answer is not one JSON object or list")
        return found
    found = _brackets(spoken[start:end])
    if not found:
        raise JSONAnswerError("the answer holds no balanced {...} or [...]")
    if not several and any(map(_is_json, found[:-1])):
        raise JSONAnswerError("the answer holds several JSON objects or lists")
    return found[-1]


def strict_json(text: str) -> Any:
    """The value of a JSON text. Raises `JSONAnswerError` for anything else, and for what the module's head names."""
    if len(text) > MAX_CHARS:
        raise JSONAnswerError(f"{len(text):,} characters of JSON are not read; at most {MAX_CHARS:,} are")
    if _depth(text) > MAX_DEPTH:
        raise JSONAnswerError(f"nested more than {MAX_DEPTH} deep")
    try:
        return json.loads(text, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_finite)
    except ValueError as error:  # JSONDecodeError, JSONAnswerError, or a whole number of thousands of digits
        raise JSONAnswerError(str(error)) from None


def reference_json(reference: Mapping[str, Any], key: str) -> dict[str, Any] | list[Any]:
    """`reference[key]` as an object or a list: as it stands, or from its JSON text.

    Raises `BadReferenceError` for anything else. Data sets whose rows differ in shape hold JSON as text.
    """
    value = reference_field(reference, key)
    try:
        # what a recipe holds may be no JSON at all: a date, a key that is a number
        value = strict_json(value if isinstance(value, str) else json.dumps(value, allow_nan=False))
    except (TypeError, ValueError, RecursionError) as error:
        raise BadReferenceError(f"{key!r} is not JSON: {error}") from None
    if not isinstance(value, dict | list):
        raise BadReferenceError(f"{key!r} must be a JSON object or list, got {value!r:.80}")
    return value


def _fences(text: str) -> list[tuple[str, int, int]]:
    """Language, start and end of what stands in each code fence; one that was never closed ends with the text."""
    found = []
    position = 0
    while opening := _OPENING.search(text, position):
        closing = _CLOSING.search(text, opening.end())
        end, position = (closing.start(), closing.end()) if closing else (len(text), len(text))
        found.append((opening[1].lower(), opening.end(), end))
    return found


def _is_json(text: str) -> bool:
    try:
        strict_json(text)
    except JSONAnswerError:
        return False
    return True


def _brackets(text: str) -> list[str]:
    """Every outermost balanced `{...}` and `[...]`, in order."""
    found: list[str] = []
    start, in_string = 0, False
    stack: list[str] = []
    for match in _BRACKET.finditer(text):
        mark = match[0]
        if mark == '"':
            in_string = bool(stack) and not in_string
        elif in_string or len(mark) > 1:
            continue
        elif mark in "[{":
            start = start if stack else match.start()
            stack.append(mark)
        elif stack:
            if stack.pop() != _PAIRS[mark]:
                stack.clear()
            elif not stack:
                found.append(text[start : match.end()])
    return found


def _depth(text: str) -> int:
    deepest, depth, in_string = 0, 0, False
    for match in _BRACKET.finditer(text):
        mark = match[0]
        if mark == '"':
            in_string = not in_string
        elif not in_string and len(mark) == 1:
            depth += 1 if mark in "[{" else -1
            deepest = max(deepest, depth)
    return deepest


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))
        raise JSONAnswerError(f"the key {twice!r:.80} occurs twice in one object")
    return made


def _refuse(constant: str) -> NoReturn:
    raise JSONAnswerError(f"{constant} is not JSON")


def _finite(number: str) -> float:
    value = float(number)
    if math.isinf(value):
        raise JSONAnswerError(f"{number:.40} is beyond every float")
    return value
