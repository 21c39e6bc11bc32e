"""Environments as Python callers give them: one for all tasks or one each; a class, a function, or a recipe's keys."""

from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from posttrain.build import make_environments, played_in
from posttrain.config import EnvironmentSection
from posttrain.environments import EnvironmentSpec, make_environment_factory
from posttrain.errors import ConfigError
from posttrain.recipe import explain
from posttrain.rollout.rolling_batch import TaskEnvironment

GivenEnvironment = EnvironmentSection | TaskEnvironment | EnvironmentSpec
"""A registered name, "module:Class", a class, a function that makes an environment, `{"name": ..., **options}`, or with
limits `{"name": ..., "options": {...}, "max_turns": ...}`, as a recipe writes it, which is an `EnvironmentSection`."""
GivenEnvironments = GivenEnvironment | Mapping[str, GivenEnvironment]
"""One for every task, or {task: its own}; "default" is for every other task."""

_KEYS = frozenset(EnvironmentSection.model_fields)
_LIMITS = _KEYS - {"name", "options"}


def given_environments(environments: GivenEnvironments | None) -> dict[str, GivenEnvironment]:
    """{task: environment}; keys of a recipe become its section. Raises ConfigError for keys that are not right.

    A mapping with a "name" that is a text is one environment. It is read as a recipe's where it holds "options", or
    nothing but keys of recipes; any other holds the environment's options beside its name.
    """
    if environments is None:
        return {}
    if not isinstance(environments, Mapping) or isinstance(environments.get("name"), str):
        return {"default": _section(environments, "environments")}
    return {task: _section(given, f"environments.{task}") for task, given in environments.items()}


def task_environments(given: Mapping[str, GivenEnvironment]) -> dict[str, TaskEnvironment]:
    """Task -> what it is played in. Raises ConfigError for what makes no environment."""
    table: dict[str, TaskEnvironment] = {}
    for task, environment in given.items():
        if isinstance(environment, EnvironmentSection):
            table |= make_environments({task: environment})
        elif isinstance(environment, TaskEnvironment):
            table[task] = environment
        else:
            table[task] = _played(task, environment)
    return table


def described_environment(given: Any) -> Any:
    """Equal for equal settings, as far as they can be seen: of a class or a function its name."""
    if isinstance(given, EnvironmentSection):
        return described_environment(given.model_dump())
    if isinstance(given, TaskEnvironment):
        return {"make": described_environment(given.make), "limits": asdict(given.limits)}
    if isinstance(given, Mapping):
        return {key: described_environment(value) for key, value in given.items()}
    if isinstance(given, list | tuple):
        return [described_environment(item) for item in given]
    if given is None or isinstance(given, str | int | float):
        return given
    if isinstance(given, Path):
        return str(given)
    if isinstance(given, partial):
        return [described_environment(given.func), repr(given.args), described_environment(given.keywords)]
    return getattr(given, "__qualname__", type(given).__name__)


def _section(given: GivenEnvironment, where: str) -> GivenEnvironment:
    if not isinstance(given, Mapping) or not ("options" in given or _KEYS.issuperset(given)):
        return given
    try:
        return EnvironmentSection(**given)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{where}: {line}" for line in explain(error, EnvironmentSection))) from None


def _played(task: str, spec: EnvironmentSpec) -> TaskEnvironment:
    try:
        return played_in(task, make_environment_factory(spec))
    except ConfigError as error:
        limits = _LIMITS.intersection(spec) if isinstance(spec, Mapping) else ()
        named = [limit for limit in limits if f"no option {limit!r}" in str(error)]
        hint = f"; {named[0]} stands beside 'options': {{'name': ..., 'options': {{...}}}}" if named else ""
        raise ConfigError(f"environments.{task}: {error}{hint}") from error
