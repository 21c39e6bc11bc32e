"""Arguments of a call: checked against a JSON schema, and made what the function's type hints say."""

import json
import types
from collections.abc import Mapping
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin

from jsonschema import Draft202012Validator, ValidationError

from posttrain.rewards.registry import nearest

_LEAVES = (int, float, str, bool, type(None), list, tuple, dict)
_UNIONS = (Union, types.UnionType)


def validator_of(parameters: Mapping[str, Any]) -> Draft202012Validator:
    """Of a call's arguments. Raises SchemaError, TypeError or ValueError where the schema is none."""
    return _validator(json.dumps({"type": "object", **_strict(parameters)}))


def argument_problem(
    tool: str, arguments: Mapping[str, Any], parameters: Mapping[str, Any], validator: Draft202012Validator
) -> str | None:
    """What is wrong with a call's arguments, in a sentence for the policy; None where they fit.

    An argument that the schema does not name is an error, unless it sets `additionalProperties`.
    """
    properties = parameters.get("properties", {})
    if parameters.get("additionalProperties") in (None, False):
        for name in arguments:
            if name not in properties:
                return f"{tool} takes no argument {shown(name)}{nearest(name[:80], properties)}"
    for name in parameters.get("required", ()):
        if name not in arguments:
            return f"{tool} lacks its argument {name!r}"
    # the deepest of several says most: that of an item rather than that of its list
    error = max(validator.iter_errors(dict(arguments)), key=lambda e: len(e.absolute_path), default=None)
    return None if error is None else f"{tool}: {_explained(error)}"


def fitted(value: Any, hint: Any) -> Any:
    """A value that fits the schema, as the hint has it: a list becomes a tuple, 1.0 becomes 1; else as it is."""
    options = get_args(hint) if get_origin(hint) in _UNIONS else (hint,)
    if isinstance(value, float):
        return int(value) if int in options and float not in options and value.is_integer() else value
    for option in options:
        kind, inner = get_origin(option) or option, get_args(option)
        if isinstance(value, list) and kind is tuple:
            hints = inner[:1] * len(value) if not inner or inner[-1] is Ellipsis else inner
            return tuple(fitted(item, own) for item, own in zip(value, hints or [Any] * len(value), strict=True))
        if isinstance(value, list) and kind is list:
            return [fitted(item, inner[0]) for item in value] if inner else value
        if isinstance(value, dict) and kind is dict:
            return {key: fitted(item, inner[1]) for key, item in value.items()} if inner else value
    return value


def hint_of(schema: Any) -> Any:
    """The hint of a schema that no function gave, as far as `fitted` reads it: whole numbers, and lists of them."""
    match schema:
        case {"type": "integer"}:
            return int
        case {"type": "array", "items": Mapping() as items}:
            return types.GenericAlias(list, (hint_of(items),))
    return Any


def hint_problem(hint: Any) -> str:
    """Why a policy cannot write such an argument; empty where it can.

    Other classes would be shown to it as objects, and arrive as dicts.
    """
    origin = get_origin(hint)
    if hint is Any or hint is Ellipsis or hint in _LEAVES or origin is Literal:
        return ""
    if origin in (list, tuple, dict, *_UNIONS):
        return next(filter(None, map(hint_problem, get_args(hint))), "")
    return f"has the type hint {hint}; wanted int, float, str, bool, list, dict, tuple or Literal"


def written_hint(hint: Any) -> Any:
    """The hint as `transformers.utils.get_json_schema` reads it, which does not know `tuple[float, ...]`."""
    origin, inner = get_origin(hint), get_args(hint)
    if not inner:
        return hint
    if origin is tuple and inner[-1:] == (Ellipsis,):
        return types.GenericAlias(list, (written_hint(inner[0]),))
    if origin in _UNIONS:
        return Union[tuple(map(written_hint, inner))]  # noqa: UP007  (of a tuple made here)
    if origin in (list, tuple, dict):
        return types.GenericAlias(origin, tuple(map(written_hint, inner)))
    return hint


def sized(schema: Any) -> Any:
    """The schema with the lengths of tuples: `prefixItems` alone lets a list be shorter or longer."""
    if isinstance(schema, list):
        return [sized(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    made = {key: sized(value) for key, value in schema.items()}
    items = made.get("prefixItems")
    return made | {"minItems": len(items), "maxItems": len(items)} if isinstance(items, list) else made


def shown(value: Any) -> str:
    """A value in a message to the policy; cut, because policies write long ones."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        text = "a very long number"
    return text if len(text) <= 80 else f"{text[:77]}..."


@lru_cache(maxsize=1024)
def _validator(schema: str) -> Draft202012Validator:
    """Kept, because to check a schema takes longer than to check a thousand calls, and every episode has its tools."""
    Draft202012Validator.check_schema(json.loads(schema))
    return Draft202012Validator(json.loads(schema))


def _strict(schema: Any) -> Any:
    """The schema as JSON Schema has it: transformers writes `X | None` as `nullable`, which validators do not know."""
    if isinstance(schema, list):
        return [_strict(item) for item in schema]
    if not isinstance(schema, Mapping):
        return schema
    made = {key: _strict(value) for key, value in schema.items() if key != "nullable"}
    return {"anyOf": [made, {"type": "null"}]} if schema.get("nullable") is True else made


def _explained(error: ValidationError) -> str:
    place = "".join(f"[{step}]" if isinstance(step, int) else f"{step}" for step in error.absolute_path)
    where, got = repr(place)[:80], shown(error.instance)
    wanted: Any = error.validator_value
    found: Any = error.instance
    match error.validator:
        case "type":
            kinds = [wanted] if isinstance(wanted, str) else list(wanted)
            return f"{where} must be {' or '.join(kinds)}, got {got}"
        case "anyOf":
            kinds = [str(option.get("type", "another")) for option in wanted]
            return f"{where} must be {' or '.join(kinds)}, got {got}"
        case "enum":
            return f"{where} must be one of {', '.join(map(repr, wanted))}, got {got}"
        case "minItems" | "maxItems":
            bound = "least" if error.validator == "minItems" else "most"
            return f"{where} must have at {bound} {wanted} items, got {len(found)}"
        case "minimum" | "maximum":
            return f"{where} must be at {'least' if error.validator == 'minimum' else 'most'} {wanted}, got {got}"
    return f"{where} does not fit: {error.message:.200}"
