"""What a tool is: a name, a schema that the policy reads, and a function; plain Python functions become tools."""

import inspect
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, get_type_hints

from jsonschema import Draft202012Validator, SchemaError
from PIL import Image
from transformers.utils.chat_template_utils import (
    DocstringParsingException,
    TypeHintParsingException,
    get_json_schema,
)

from posttrain.environments.arguments import (
    argument_problem,
    fitted,
    hint_of,
    hint_problem,
    shown,
    sized,
    validator_of,
    written_hint,
)
from posttrain.environments.own_thread import OwnThread
from posttrain.environments.tool_errors import ToolBroken, ToolError
from posttrain.errors import ConfigError
from posttrain.records import Example


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolContext:
    """The episode so far, for tools that take a parameter of this type; the policy does not see that parameter."""

    example: Example
    images: tuple[Image.Image, ...]
    """RGB, all that the policy was shown: the prompt's, full-size, then those that tools returned. Not to be drawn on:
    other episodes share them."""
    num_prompt_images: int

    def image(self, img_idx: Any) -> Image.Image:
        """The image that a call means; 1.0 is 1. Raises ToolError where there is none."""
        number = fitted(img_idx, int)
        if isinstance(number, bool) or not isinstance(number, int):
            raise ToolError(f"img_idx must be a whole number such as 0, got {shown(img_idx)}")
        if not self.images:
            raise ToolError(f"img_idx is {shown(img_idx)}, but the conversation has no images")
        if not 0 <= number < len(self.images):
            wanted = f"from 0 to {len(self.images) - 1}" if len(self.images) > 1 else "0, the only image"
            raise ToolError(f"img_idx is {shown(img_idx)}, but must be {wanted}")
        return self.images[number]


@dataclass(frozen=True, slots=True, kw_only=True)
class Tool:
    """A tool of an environment; shared by episodes that run at once, so that `function` must not keep state of one.

    Raises ConfigError where the schema is none, and for a generator. `tool_from_function` makes one from a function.
    """

    name: str
    description: str
    parameters: Mapping[str, Any]
    """JSON schema of the arguments: {"type": "object", "properties": {...}, "required": [...]}."""
    function: Callable[..., Any]
    """Called with the arguments by name. Returns text, a PIL image, a list of both, or JSON; may be a coroutine."""
    context_parameter: str = ""
    """The parameter that is given the `ToolContext`; empty where the function has none."""
    hints: Mapping[str, Any] = field(default_factory=dict, repr=False, compare=False)
    """Type hints of parameters: a list becomes a tuple for one, 1.0 becomes 1. Without one, the schema's say which
    numbers are whole."""
    thread: OwnThread | None = field(default=None, repr=False, compare=False)
    """Of the object whose method it is, if that is one episode's: it may keep state, and a call that does not answer in
    time ends the episode, because it may still be changing the object."""
    written: Callable[[Any], str] | None = field(default=None, repr=False, compare=False)
    """Writes a result that is no text, image or JSON; without it, such a result ends the episode."""
    _validator: Draft202012Validator = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        if not self.name or not self.name.isprintable():
            raise ConfigError(f"a tool needs a name, got {self.name!r}")
        if inspect.isgeneratorfunction(self.function) or inspect.isasyncgenfunction(self.function):
            raise ConfigError(f"tool {self.name!r} is a generator, whose items nobody reads; let it return a list")
        try:
            validator = validator_of(self.parameters)
        except (SchemaError, TypeError, ValueError) as error:
            raise ConfigError(f"tool {self.name!r}: its parameters are no JSON schema ({str(error)[:200]})") from None
        object.__setattr__(self, "_validator", validator)

    @property
    def schema(self) -> dict[str, Any]:
        """As chat templates take it."""
        inner = {"name": self.name, "description": self.description, "parameters": dict(self.parameters)}
        return {"type": "function", "function": inner}

    def argument_problem(self, arguments: Mapping[str, Any]) -> str | None:
        """What is wrong with a call's arguments, in a sentence for the policy; None where they fit."""
        return argument_problem(self.name, arguments, self.parameters, self._validator)

    def call(self, arguments: Mapping[str, Any], context: ToolContext) -> Any:
        """What the function returns, perhaps a coroutine. arguments: without a problem."""
        properties = self.parameters.get("properties", {})
        given = {
            name: fitted(value, self.hints[name] if name in self.hints else hint_of(properties.get(name)))
            for name, value in arguments.items()
        }
        own = {self.context_parameter: context} if self.context_parameter else {}
        return self.function(**given, **own)


def tool_from_function(function: Callable[..., Any]) -> Tool:
    """A tool from a function or a bound method with type hints and a docstring; its name is the tool's.

    The schema is the one that `transformers.utils.get_json_schema` makes, less its `return`, which Qwen's own schemas
    have not, and with the lengths of tuples; so a function written for TRL's or transformers' tools is a tool here. The
    description is the docstring up to `Args:`, where every parameter has its line; hints are int, float, str, bool,
    list, dict, tuple, Literal, and unions of them; a parameter with a default need not be given. A parameter whose hint
    is `ToolContext` is not shown, and filled in by the environment. Raises ConfigError for a function that is not such.
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
    stand_in.__annotations__ = {parameter.name: written_hint(hints[parameter.name]) for parameter in visible}
    stand_in.__signature__ = inspect.Signature(visible)  # pyright: ignore[reportFunctionMemberAccess]
    try:
        made = get_json_schema(stand_in)["function"]
    except (DocstringParsingException, TypeHintParsingException, json.JSONDecodeError) as error:
        raise ConfigError(f"tool {name!r}: {' '.join(str(part) for part in error.args)}") from None
    return Tool(
        name=name,
        description=made["description"],
        parameters=sized(made["parameters"]),
        function=function,
        context_parameter=context,
        hints={parameter.name: hints[parameter.name] for parameter in visible},
    )


def _check_hint(hint: Any, what: str) -> None:
    if hint is inspect.Parameter.empty:
        raise ConfigError(f"{what} has no type hint")
    if isinstance(hint, type) and issubclass(hint, Image.Image):
        raise ConfigError(f"{what} is an image, which no policy can write; take img_idx: int and a ToolContext")
    if problem := hint_problem(hint):
        raise ConfigError(f"{what} {problem}")


__all__ = ["Tool", "ToolBroken", "ToolContext", "ToolError", "tool_from_function"]
