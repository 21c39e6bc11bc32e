"""What a tool is: a name, a schema that the policy reads, and a function; plain Python functions become tools."""

import inspect
import json
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from jsonschema import Draft202012Validator, SchemaError, ValidationError
from PIL import Image
from transformers.utils.chat_template_utils import (
    DocstringParsingException,
    TypeHintParsingException,
    get_json_schema,
)

from posttrain.errors import ConfigError
from posttrain.records import Example
from posttrain.rewards.registry import nearest

_LEAVES = (int, float, str, bool, type(None), list, tuple, dict)


class ToolError(ValueError):
    """What a tool raises to tell the policy that a call cannot be done: the policy reads its text and nothing else."""


class ToolBroken(RuntimeError):
    """What a tool raises that cannot work whatever the policy says: it ends the episode, without a score."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContext:
    """The episode so far, for tools that take a parameter of this type; the policy does not see that parameter."""

    example: Example
    images: tuple[Image.Image, ...]
    """RGB, all that the policy was shown: the prompt's, full-size, then those that tools returned. Not to be drawn on:
    other episodes share them."""
    num_prompt_images: int

    def image(self, img_idx: Any) -> Image.Image:
        """The image that a call means. Raises ToolError where there is none."""
        if isinstance(img_idx, bool) or not isinstance(img_idx, int):
            raise ToolError(f"img_idx must be a whole number such as 0, got {shown(img_idx)}")
        if not self.images:
            raise ToolError(f"img_idx is {shown(img_idx)}, but the conversation has no images")
        if not 0 <= img_idx < len(self.images):
            wanted = f"from 0 to {len(self.images) - 1}" if len(self.images) > 1 else "0, the only image"
            raise ToolError(f"img_idx is {shown(img_idx)}, but must be {wanted}")
        return self.images[img_idx]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool of an environment; shared by episodes that run at once, so that `function` must not keep state of one.

    Raises ConfigError where the schema is none. `tool_from_function` makes one from a function.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON schema of the arguments: {"type": "object", "properties": {...}, "required": [...]}."""
    function: Callable[..., Any]
    """Called with the arguments by name. Returns text, a PIL image, a list of both, or JSON; may be a coroutine."""
    context_parameter: str = ""
    """The parameter that is given the `ToolContext`; empty where the function has none."""
    _validator: Draft202012Validator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable():
            raise ConfigError(f"a tool needs a name, got {self.name!r}")
        try:
            validator = _validator(json.dumps({"type": "object", **_strict(self.parameters)}))
        except (SchemaError, TypeError, ValueError) as error:
            raise ConfigError(f"tool {self.name!r}: its parameters are no JSON schema ({str(error)[:200]})") from None
        object.__setattr__(self, "_validator", validator)

    @property
    def schema(self) -> dict[str, Any]:
        """As chat templates take it."""
        inner = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": inner}

    def argument_problem(self, arguments: Mapping[str, Any]) -> str | None:
        """What is wrong with a call's arguments, in a sentence for the policy; None where they fit.

        An argument that the schema does not name is an error, unless it sets `additionalProperties`.
        """
        properties = self.parameters.get("properties", {})
        if self.parameters.get("additionalProperties") in (None, False):
            for name in arguments:
                if name not in properties:
                    return f"{self.name} takes no argument {shown(name)}{nearest(name[:80], properties)}"
        for name in self.parameters.get("required", ()):
            if name not in arguments:
                return f"{self.name} lacks its argument {name!r}"
        # the deepest of several says most: that of an item rather than that of its list
        error = max(self._validator.iter_errors(dict(arguments)), key=lambda e: len(e.absolute_path), default=None)
        return None if error is None else f"{self.name}: {_explained(error)}"

    def call(self, arguments: Mapping[str, Any], context: ToolContext) -> Any:
        """What the function returns, perhaps a coroutine."""
        own = {self.context_parameter: context} if self.context_parameter else {}
        return self.function(**arguments, **own)


def tool_from_function(function: Callable[..., Any]) -> Tool:
    """A tool from a function or a bound method with type hints and a docstring; its name is the tool's.

    The schema is the one that `transformers.utils.get_json_schema` makes, less its `return`, which Qwen's own schemas
    have not; so a function written for TRL's or transformers' tools is a tool here. The description is the docstring up
    to `Args:`, where every parameter has its line; hints are int, float, str, bool, list, dict, tuple, Literal, and
    unions of them; a parameter with a default need not be given. A parameter whose hint is `ToolContext` is not shown,
    and filled in by the environment. Raises ConfigError for a function that is not such.
    """
    name = function.__name__ if inspect.isroutine(function) else type(function).__name__
    if not inspect.isroutine(function):
        raise ConfigError(f"a tool is a function or a method, got an object of {name}; give it as Tool(...)")
    try:
        hints = get_type_hints(function)
    except NameError as error:
        raise ConfigError(f"tool {name!r}: a type hint cannot be resolved ({error})") from None
    visible, context = [], ""
    for parameter in inspect.signature(function).parameters.values():
        if hints.get(parameter.name) is ToolContext:
            context = parameter.name
        elif parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            _check_hint(hints.get(parameter.name, parameter.annotation), f"tool {name!r}: parameter {parameter.name!r}")
            visible.append(parameter)
        else:
            raise ConfigError(f"tool {name!r}: parameter {parameter} cannot be given by name; name each argument")

    def stand_in() -> None: ...  # has what get_json_schema looks at, without the context and the return type

    stand_in.__name__, stand_in.__doc__ = name, inspect.getdoc(function)
    stand_in.__annotations__ = {parameter.name: hints[parameter.name] for parameter in visible}
    stand_in.__signature__ = inspect.Signature(visible)  # pyright: ignore[reportFunctionMemberAccess]
    try:
        made = get_json_schema(stand_in)["function"]
    except (DocstringParsingException, TypeHintParsingException, json.JSONDecodeError) as error:
        raise ConfigError(f"tool {name!r}: {' '.join(str(part) for part in error.args)}") from None
    return Tool(
        name=name,
        description=made["description"],
        parameters=made["parameters"],
        function=function,
        context_parameter=context,
    )


def _check_hint(hint: Any, what: str) -> None:
    """Other classes would be shown to the policy as objects, and arrive as dicts."""
    origin = get_origin(hint)
    if hint is inspect.Parameter.empty:
        raise ConfigError(f"{what} has no type hint")
    if hint is Any or hint in _LEAVES or origin is Literal:
        return
    if origin in (list, tuple, dict, Union, types.UnionType):
        for inner in get_args(hint):
            _check_hint(inner, what)
        return
    if isinstance(hint, type) and issubclass(hint, Image.Image):
        raise ConfigError(f"{what} is an image, which no policy can write; take img_idx: int and a ToolContext")
    raise ConfigError(f"{what} has the type hint {hint}; wanted int, float, str, bool, list, dict, tuple or Literal")


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


def shown(value: Any) -> str:
    """A value in a message to the policy; cut, because policies write long ones."""
    try:
        text = repr(value)
    except ValueError:  # a whole number of thousands of digits
        text = "a very long number"
    return text if len(text) <= 80 else f"{text[:77]}..."
