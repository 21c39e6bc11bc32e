"""The registry of environments: their names, their options, and a factory from what a recipe or a script gives."""

import inspect
import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from posttrain.environments.environment import Environment
from posttrain.environments.options import checked_options, imported, options_of, spec_parts
from posttrain.errors import ConfigError
from posttrain.rewards import Option
from posttrain.rewards.registry import nearest

EnvironmentFactory = Callable[[], Environment]
"""Makes the environment of one episode."""
EnvironmentSpec = str | Mapping[str, Any] | Callable[..., Any]
"""A registered name, "module:Class", `{"name": ..., **options}`, a class, or a factory."""
Maker = TypeVar("Maker", bound=Callable[..., Any])

_registered: dict[str, Callable[..., Any]] = {}


def register_environment(name: str) -> Callable[[Maker], Maker]:
    """Decorator: makes a class of environments, or a function that returns one, known under `name`.

    What it takes by name are its options. Raises ConfigError for a name that another one holds, and for a class
    without the methods of an `Environment`.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigError(f"an environment's name is lower-case words joined by underscores, got {name!r}")

    def add(maker: Maker) -> Maker:
        _check_maker(maker, f"environment {name!r}")
        held = _registered.get(name)
        if held is not None and (held.__module__, held.__qualname__) != (maker.__module__, maker.__qualname__):
            where = f"{held.__module__}.{held.__qualname__}"
            raise ConfigError(f"environment {name!r} is already {where}; choose another name")
        _registered[name] = maker
        return maker

    return add


def available_environments() -> dict[str, Callable[..., Any]]:
    """Registered names in alphabetical order, with their classes or functions."""
    return dict(sorted(_registered.items()))


def describe_environment(name: str) -> list[Option]:
    """The options of a registered environment. Raises ConfigError for an unknown name."""
    return options_of(_known(name))


def make_environment_factory(spec: EnvironmentSpec) -> EnvironmentFactory:
    """What makes a new environment for every episode, from a recipe's or a script's word for it.

    `"tools"`, `{"name": "tools", "tools": ["image_zoom_in_tool"]}`, `"my_module:MyEnvironment"`,
    `{"name": "my_module:MyEnvironment", **options}`, a class, or a function that returns an environment. One is made at
    once, and neither started nor closed, so that options that cannot be used are an error here and not in a rollout.
    Raises ConfigError for an unknown name, module, option, an option of the wrong type, and for what makes no
    environment.
    """
    if isinstance(spec, str):
        return _from_name(spec, {})
    if isinstance(spec, Mapping):
        return _from_name(*spec_parts(spec, "an environment", available_environments()))
    return _factory(spec, {}, f"environment {_name_of(spec)!r}")


def _from_name(name: str, options: dict[str, Any]) -> EnvironmentFactory:
    maker = imported(name, "environment") if ":" in name else _known(name)
    return _factory(maker, options, f"environment {name!r}")


def _factory(maker: Any, options: Mapping[str, Any], what: str) -> EnvironmentFactory:
    _check_maker(maker, what)
    factory = partial(maker, **checked_options(maker, options, what))
    made = factory()
    if not isinstance(made, Environment):
        wanted = "an object with validate, start, step and close"
        raise ConfigError(f"{what} must make {wanted}, got {made!r:.80}{_trl_hint(type(made))}")
    return factory


def _check_maker(maker: Any, what: str) -> None:
    if not callable(maker):
        raise ConfigError(f"{what}: {maker!r:.80} is a finished object; give its class, because it is made per episode")
    if isinstance(maker, type) and not issubclass(maker, Environment):
        lacking = [name for name in ("validate", "start", "step", "close") if name not in dir(maker)]
        raise ConfigError(f"{what}: the class {maker.__name__} lacks {', '.join(lacking)}{_trl_hint(maker)}")


def _trl_hint(maker: type) -> str:
    return "; if it was written for TRL, give {name: trl, environment: ...}" if "reset" in dir(maker) else ""


def _known(name: str) -> Callable[..., Any]:
    if name not in _registered:
        raise ConfigError(f"there is no environment {name!r}{nearest(name, available_environments())}")
    return _registered[name]


def _name_of(maker: Any) -> str:
    return maker.__qualname__ if inspect.isroutine(maker) or isinstance(maker, type) else type(maker).__name__
