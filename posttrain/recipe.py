"""Reads a recipe: safe YAML, dotted overrides, and errors that name the path and the nearest valid key."""

import difflib
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin

import yaml
from pydantic import BaseModel, ValidationError

from posttrain.config import Recipe
from posttrain.errors import ConfigError

_BOOL = "tag:yaml.org,2002:bool"


class _RecipeLoader(yaml.SafeLoader):
    """Safe YAML in which only true and false are truth values, as in YAML 1.2: on, off, yes and no are words. A key
    that stands twice is an error instead of a silent winner."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (list, dict)):
                raise ConfigError(
                    f"a key in {node.start_mark.name}, line {key_node.start_mark.line + 1}, is no plain word: {key!r}"
                )
            if key in seen:
                raise ConfigError(
                    f"key '{key}' stands twice in {node.start_mark.name}, line {key_node.start_mark.line + 1}"
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


_RecipeLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _BOOL]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_RecipeLoader.add_implicit_resolver(_BOOL, re.compile("^(?:true|True|TRUE|false|False|FALSE)$"), list("tTfF"))


def recipe_folder() -> Path:
    """Where the shipped recipes lie."""
    import posttrain.recipes

    return Path(next(iter(posttrain.recipes.__path__)))


def shipped_recipes() -> dict[str, Path]:
    return {path.stem: path for path in sorted(recipe_folder().glob("*.yaml"))}


def find_recipe(name: str) -> Path:
    """A recipe's file: a path, or the name of a shipped one with or without `.yaml`."""
    path = Path(name)
    if path.is_file():
        return path
    shipped = shipped_recipes()
    if path.stem in shipped and path.name in (path.stem, f"{path.stem}.yaml"):
        return shipped[path.stem]
    if str(path.parent) in ("recipes", "./recipes") and path.stem in shipped:
        return shipped[path.stem]
    near = difflib.get_close_matches(path.stem, shipped, n=1)
    hint = f"; did you mean '{near[0]}'?" if near else "."
    raise ConfigError(f"no recipe file '{name}'{hint} Shipped recipes: {', '.join(shipped)} (`posttrain list`).")


def load_recipe(path: Path, overrides: Sequence[str] = ()) -> Recipe:
    """The recipe in a file with dotted overrides applied. Raises ConfigError, one line a problem."""
    try:
        with path.open(encoding="utf-8") as file:
            content = yaml.load(file, _RecipeLoader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {' '.join(str(error).split())}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path} holds {type(content).__name__}, a recipe is a mapping with name, model and stages")
    for override in overrides:
        _override(content, override)
    return parse_recipe(content, source=str(path))


def parse_recipe(content: Mapping[str, Any], *, source: str = "recipe") -> Recipe:
    try:
        return Recipe.model_validate(content)
    except ValidationError as error:
        raise ConfigError("\n".join(f"{source}: {line}" for line in explain(error, Recipe))) from None


def explain(error: ValidationError, model: type[BaseModel]) -> list[str]:
    """One sentence for each problem that pydantic found, with the dotted path and, for a wrong key, the nearest one."""
    lines = []
    for problem in error.errors():
        path, keys = _follow(problem["loc"], model)
        match problem["type"]:
            case "extra_forbidden":
                near = difflib.get_close_matches(str(problem["loc"][-1]), keys, n=1, cutoff=0.5)
                hint = f"did you mean '{near[0]}'?" if near else f"keys here are: {', '.join(keys)}"
                lines.append(f"'{path}' is not a key; {hint}")
            case "missing":
                lines.append(f"'{path}' is missing")
            case "union_tag_not_found":
                lines.append(f"'{path}.algorithm' is missing: name what this stage runs")
            case "union_tag_invalid":
                ctx = problem.get("ctx", {})
                lines.append(f"'{path}.algorithm' is '{ctx.get('tag')}'; algorithms are: {ctx.get('expected_tags')}")
            case "string_type" if problem["loc"][-1:] == ("[key]",):
                mapping, _ = _follow(problem["loc"][:-2], model)
                lines.append(f"'{mapping}' has the key {problem['input']!r}, which is no text: write it in quotes")
            case "bool_type":
                lines.append(f"'{path}' is {problem['input']!r}: write true or false")
            case "value_error":
                message = problem["msg"].removeprefix("Value error, ")
                lines.append(f"'{path}': {message}" if path else message)
            case _:
                lines.append(f"'{path}' is {problem['input']!r}: {problem['msg'][0].lower()}{problem['msg'][1:]}")
    return lines


def _follow(loc: tuple[int | str, ...], model: type[BaseModel]) -> tuple[str, list[str]]:
    """The dotted path of a location without union tags, and the keys that are valid beside its last step."""
    path: list[str] = []
    here: Any = model
    keys: list[str] = []
    for step in loc:
        options = _models_in(here)
        tagged = next((m for m in options if str(step) == _tag_of(m)), None)
        if tagged is not None and len(options) > 1:
            here = tagged
            continue
        path.append(str(step))
        keys = sorted({name for m in options for name in m.model_fields})
        annotations = [m.model_fields[str(step)].annotation for m in options if str(step) in m.model_fields]
        here = annotations[0] if annotations else _element_of(here)
    return ".".join(path), keys


def _models_in(annotation: Any) -> list[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    if get_origin(annotation) in (Union, UnionType):
        return [m for arg in get_args(annotation) for m in _models_in(arg)]
    return [m for arg in get_args(annotation)[:1] for m in _models_in(arg)] if _is_annotated(annotation) else []


def _is_annotated(annotation: Any) -> bool:
    return bool(getattr(annotation, "__metadata__", ()))


def _tag_of(model: type[BaseModel]) -> str | None:
    field = model.model_fields.get("algorithm")
    return field.default if field is not None else None


def _element_of(annotation: Any) -> Any:
    """What a list or dict holds, through `X | None`."""
    arguments = get_args(annotation)
    if get_origin(annotation) in (Union, UnionType):
        return next((_element_of(arg) for arg in arguments if get_origin(arg) in (list, dict, tuple)), None)
    return arguments[-1] if arguments else None


def _override(content: dict[str, Any], override: str) -> None:
    path, separator, text = override.partition("=")
    if not separator or not path:
        raise ConfigError(f"override '{override}' is not of the form path.to.key=value")
    try:
        value = yaml.load(text, _RecipeLoader)
    except yaml.YAMLError:
        value = text
    here: Any = content
    *parents, last = path.split(".")
    for depth, key in enumerate(parents):
        where = ".".join(parents[: depth + 1])
        if isinstance(here, list):
            here = here[_place(here, key, where)]
        else:
            here = here.setdefault(key, {})
        if here is None or not isinstance(here, (dict, list)):
            raise ConfigError(f"override '{override}': '{where}' is {here!r} and has no keys")
    if isinstance(here, list):
        here[_place(here, last, path)] = value
    else:
        here[last] = value


def _place(items: list[Any], key: str, where: str) -> int:
    if not key.isdigit() or int(key) >= len(items):
        raise ConfigError(f"override '{where}': the list has {len(items)} entries, counted from 0")
    return int(key)
