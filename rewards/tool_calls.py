"""Tool calls as Qwen writes them: `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`, found and judged."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .extraction import strip_thinking
from .json_text import JSONAnswerError, strict_json
from .references import reference_field
from .score import BadReferenceError

_MARK = re.compile(r"<(/?)(tool_call|think)>")
_JSON_TYPES: dict[str, tuple[type, ...]] = {
    "string": (str,),
    "integer": (int, float),
    "number": (int, float),
    "boolean": (bool,),
    "array": (list,),
    "object": (dict,),
    "null": (type(None),),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolSpec:
    """What a call of one tool must look like."""

    name: str
    required: tuple[str, ...] = ()
    """Arguments that must be there."""
    types: Mapping[str, tuple[str, ...]] | None = None
    """Argument -> JSON types it may have, () for any; None where the tool does not say which arguments it takes."""
    more_allowed: bool = False
    """Whether arguments beside `types` are taken. A schema must say so: an argument that was made up is an error."""


@dataclass(frozen=True, slots=True)
class CallText:
    """One call as it was written."""

    body: str
    """What stands between the tags."""
    closed: bool = True
    """False where a tag has no partner."""


def written_calls(text: str) -> list[CallText]:
    """Every call in the text, in order, the malformed ones too; those in thoughts are not calls.

    A thought is what stands in `<think>...</think>`, or between a `</think>` without partner and the end of the call
    before it: the chat template opened that thought. A trajectory of several turns may hold several such.
    """
    calls: list[CallText] = []
    opened: int | None = None
    since_turn = 0  # calls of the turn that may yet turn out to be thought
    thinking = False
    for match in _MARK.finditer(text):
        closing, tag = bool(match[1]), match[2]
        if tag == "think":
            if closing and not thinking:
                del calls[len(calls) - since_turn :]
                opened, since_turn = None, 0
            thinking = not closing
        elif thinking:
            continue
        elif not closing:
            if opened is not None:
                calls.append(CallText(text[opened : match.start()], closed=False))
                since_turn += 1
            opened = match.end()
        elif opened is None:
            calls.append(CallText("", closed=False))
            since_turn += 1
        else:
            calls.append(CallText(text[opened : match.start()]))
            opened, since_turn = None, 0
    if opened is not None:
        calls.append(CallText(text[opened:], closed=False))
    return calls


def without_calls(text: str) -> str:
    """What was said beside thoughts and tool calls; all of it where a thought was never closed."""
    spoken = strip_thinking(text)
    return text if spoken is None else re.sub(r"(?s)<tool_call>.*?(?:</tool_call>|\Z)", "", spoken)


def call_problem(call: CallText, tools: Mapping[str, ToolSpec] | None) -> str | None:
    """What is wrong with a call, in a sentence; None where it is well formed and fits `tools`, if they are given."""
    if not call.closed:
        return "a <tool_call> or </tool_call> has no partner"
    try:
        value = strict_json(call.body)
    except JSONAnswerError as error:
        return f"a call is not JSON: {error}"
    if not isinstance(value, dict) or set(value) != {"name", "arguments"}:
        return 'a call must hold "name" and "arguments" and nothing else'
    name, arguments = value["name"], value["arguments"]
    if not isinstance(name, str) or not name or not isinstance(arguments, dict):
        return '"name" must be text and "arguments" an object'
    if tools is None:
        return None
    if name not in tools:
        return f"there is no tool {name!r:.80}"
    return _argument_problem(tools[name], arguments)


def reference_tools(reference: Mapping[str, Any], key: str) -> dict[str, ToolSpec] | None:
    """The row's tools by name; None where it names none. Raises `BadReferenceError` for what is no list of tools.

    Each is a name, or a mapping as chat templates take it: `{"type": "function", "function": {"name": ...,
    "parameters": {"properties": {...}, "required": [...]}}}`, or the inner mapping alone.
    """
    if reference.get(key) is None:
        return None
    listed = reference_field(reference, key)
    if isinstance(listed, str):
        try:
            listed = strict_json(listed)
        except JSONAnswerError as error:
            raise BadReferenceError(f"{key!r} is not JSON: {error}") from None
    if not isinstance(listed, Sequence) or isinstance(listed, str):
        raise BadReferenceError(f"{key!r} must be a list of tools, got {listed!r:.80}")
    specs = [_spec(tool, key) for tool in listed]
    return {spec.name: spec for spec in specs}


def _argument_problem(tool: ToolSpec, arguments: Mapping[str, Any]) -> str | None:
    for name in tool.required:
        if name not in arguments:
            return f"{tool.name} lacks its argument {name!r}"
    for name, value in arguments.items():
        if tool.types is None:
            break
        if name not in tool.types:
            if tool.more_allowed:
                continue
            return f"{tool.name} takes no argument {name!r:.80}"
        wanted = tool.types[name]
        if wanted and not any(_has_type(value, kind) for kind in wanted):
            return f"{tool.name}: {name!r:.80} must be {' or '.join(wanted)}, got {value!r:.80}"
    return None


def _has_type(value: Any, kind: str) -> bool:
    if isinstance(value, bool):
        return kind == "boolean"
    if kind == "integer" and isinstance(value, float):
        return math.isfinite(value) and value.is_integer()
    return isinstance(value, _JSON_TYPES[kind])


def _spec(tool: Any, key: str) -> ToolSpec:
    if isinstance(tool, str) and tool:
        return ToolSpec(name=tool)
    function = tool.get("function", tool) if isinstance(tool, Mapping) else {}
    name = function.get("name") if isinstance(function, Mapping) else None
    parameters = (function.get("parameters") or {}) if name else None
    if not isinstance(name, str) or not isinstance(parameters, Mapping):
        raise BadReferenceError(f"each of {key!r} must be a tool's name or its schema with a 'name', got {tool!r:.80}")
    properties = parameters.get("properties")
    if properties is not None:  # data sets fill the fields that a row lacks with None
        properties = {argument: _types(schema) for argument, schema in properties.items() if schema is not None}
    return ToolSpec(
        name=name,
        required=tuple(parameters.get("required") or ()),
        types=properties,
        more_allowed=parameters.get("additionalProperties") not in (None, False),
    )


def _types(schema: Any) -> tuple[str, ...]:
    kinds = schema.get("type") if isinstance(schema, Mapping) else None
    kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds or ())
    return kinds if all(kind in _JSON_TYPES for kind in kinds) else ()
