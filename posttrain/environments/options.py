"""Options of tools and environments: what a class or a function takes by name, checked against its annotations."""

import importlib
import inspect
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from functools import lru_cache, partial
from typing import Any, get_type_hints

from posttrain.errors import ConfigError
from posttrain.rewards import Option
from posttrain.rewards.options import checked_value, field_docs
from posttrain.rewards.registry import nearest


def options_of(maker: Any) -> list[Option]:
    """What can be given to a class or a function by name; `doc` is the line under a dataclass's field."""
    docs = field_docs(maker) if inspect.isclass(maker) else {}
    return [replace(option, doc=docs.get(option.name, "")) for option in _parameters(maker)]


def checked_options(maker: Callable[..., Any], options: Mapping[str, Any], what: str) -> dict[str, Any]:
    """The options, where the maker takes them and they have the annotated types; raises ConfigError otherwise.

    "5" is no number, 1 is no bool, 5 is a float; a list may stand for a tuple.
    """
    known = {option.name: option for option in _parameters(maker)}
    for name in options:
        if name not in known:
            raise ConfigError(f"{what} has no option {name!r}{nearest(str(name), known)}")
    missing = [name for name, option in known.items() if option.required and name not in options]
    if missing:
        raise ConfigError(f"{what} needs the option {', '.join(missing)}")
    return {name: _checked(value, known[name].type, f"{what}: option {name!r}") for name, value in options.items()}


def spec_parts(spec: Mapping[str, Any], what: str, known: Iterable[str]) -> tuple[str, dict[str, Any]]:
    """Name and options of `{"name": ..., **options}`; raises ConfigError where there is no name."""
    options = dict(spec)
    name = options.pop("name", None)
    if not isinstance(name, str):
        raise ConfigError(f"{what}'s mapping needs a 'name' (one of {', '.join(known)}), got {dict(spec)!r:.200}")
    return name, options


def imported(path: str, what: str) -> Any:
    """The object that "module:name" means; raises ConfigError where there is none."""
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and misses something of its own
        raise ConfigError(f"{what} {path!r}: there is no module {error.name!r} on the import path") from None
    except ValueError:  # an empty name
        raise ConfigError(f"{what} {path!r} is no 'module:name'") from None
    if attribute not in vars(module):
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise ConfigError(f"{what} {path!r}: module {module_name!r} has no {attribute!r}{nearest(attribute, public)}")
    return vars(module)[attribute]


def _parameters(maker: Any) -> list[Option]:
    called = maker.func if isinstance(maker, partial) else maker
    if inspect.isclass(called):
        called = called.__init__
    hints = _hints(called if inspect.isroutine(called) else type(called).__call__)
    return [
        Option(
            name=name,
            type=hints.get(name, Any),
            default=None if parameter.default is parameter.empty else parameter.default,
            doc="",
            required=parameter.default is parameter.empty,
        )
        for name, parameter in inspect.signature(maker).parameters.items()
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
    ]


@lru_cache(maxsize=512)  # for a class with string annotations a millisecond, and every episode makes its tools
def _hints(routine: Any) -> dict[str, Any]:
    return get_type_hints(routine)


def _checked(value: Any, hint: Any, what: str) -> Any:
    try:
        return checked_value(value, hint, what)
    except ValueError as error:
        raise ConfigError(str(error)) from None
