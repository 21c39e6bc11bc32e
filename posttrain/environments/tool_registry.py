"""The registry of tools: their names, their options, and making one from what a recipe or a script gives."""

import inspect
import re
from collections.abc import Callable, Mapping
from typing import Any, Protocol, TypeVar, runtime_checkable

from posttrain.environments.options import checked_options, imported, options_of, spec_parts
from posttrain.environments.tools import Tool, tool_from_function
from posttrain.errors import ConfigError
from posttrain.rewards import Option
from posttrain.rewards.registry import nearest


@runtime_checkable
class MakesTool(Protocol):
    """A tool with options: a dataclass whose fields are the options, and which makes the tool."""

    def as_tool(self) -> Tool: ...


ToolSpec = str | Mapping[str, Any] | Tool | MakesTool | Callable[..., Any]
"""A registered name, "module:function", `{"name": ..., **options}`, a `Tool`, what makes one, or a plain function."""
Registered = TypeVar("Registered", bound=Callable[..., Any])

_registered: dict[str, Callable[..., Any]] = {}


def register_tool(name: str) -> Callable[[Registered], Registered]:
    """Decorator: makes a function, or a dataclass with `as_tool`, known under `name`.

    Raises ConfigError for a name that another one holds, and for what is neither.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"a tool is registered under lower-case words joined by underscores, got {name!r}")

    def add(made: Any) -> Any:
        if inspect.isclass(made) and not issubclass(made, MakesTool):
            raise ConfigError(f"{_path(made)} lacks as_tool: it makes no tool")
        held = _registered.get(name)
        if held is not None and _path(held) != _path(made):
            raise ConfigError(f"tool {name!r} is already {_path(held)}; choose another name")
        _registered[name] = made
        return made

    return add


def available_tools() -> dict[str, Callable[..., Any]]:
    """Registered names in alphabetical order, with what was registered."""
    return dict(sorted(_registered.items()))


def describe_tool(name: str) -> list[Option]:
    """The options of a registered tool. Raises ConfigError for an unknown name."""
    made = _known(name)
    return options_of(made) if isinstance(made, type) else []


def make_tool(spec: ToolSpec) -> Tool:
    """A tool from a recipe's or a script's word for it.

    `"image_zoom_in_tool"`, `{"name": "image_zoom_in_tool", "min_pixels": 4096}`, `"my_module:my_function"`, a function
    with type hints and a docstring, a `Tool`. Raises ConfigError for an unknown name, module or option, and for a
    function from which no schema can be made.
    """
    if isinstance(spec, str):
        return _from_name(spec, {})
    if isinstance(spec, Mapping):
        return _from_name(*spec_parts(spec, "a tool", available_tools()))
    return _from_object(spec, {}, "a tool")


def _from_name(name: str, options: dict[str, Any]) -> Tool:
    return _from_object(imported(name, "tool") if ":" in name else _known(name), options, f"tool {name!r}")


def _from_object(made: Any, options: dict[str, Any], what: str) -> Tool:
    if isinstance(made, type) and issubclass(made, MakesTool):
        return made(**checked_options(made, options, what)).as_tool()
    if options:
        raise ConfigError(f"{what} takes no options, got {', '.join(options)}")
    if isinstance(made, Tool):
        return made
    if isinstance(made, MakesTool):
        return made.as_tool()
    if inspect.isroutine(made):
        return tool_from_function(made)
    raise ConfigError(f"{made!r:.80} is no tool: give a name, a mapping, 'module:function', a Tool or a function")


def _path(made: Callable[..., Any]) -> str:
    return f"{made.__module__}.{made.__qualname__}"


def _known(name: str) -> Callable[..., Any]:
    if name not in _registered:
        raise ConfigError(f"there is no tool {name!r}{nearest(name, available_tools())}")
    return _registered[name]
