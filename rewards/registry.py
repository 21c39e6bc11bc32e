"""The registry of rewards: their names, their options, and making one from what a recipe or a script gives."""

import difflib
import importlib
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import MISSING, Field, dataclass, fields, is_dataclass
from typing import Any, TypeVar, get_type_hints

from .functions import FunctionReward
from .options import checked_value, field_docs
from .score import Reward

RewardClass = TypeVar("RewardClass", bound=type)
RewardSpec = str | Mapping[str, Any] | Reward | Callable[..., Any]
"""A registered name, "module:function", `{"name": ..., **options}`, a reward, or a function in TRL's style."""

_registered: dict[str, type] = {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Option:
    """One option of a registered reward."""

    name: str
    type: Any
    """Its annotation."""
    default: Any
    """None also where it is required."""
    doc: str
    required: bool = False


def register(name: str) -> Callable[[RewardClass], RewardClass]:
    """Class decorator: makes a frozen dataclass known under `name`; its fields are its options.

    Raises ValueError for a name that another class holds, and TypeError for a class that is not such a dataclass.
    """
    if not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ValueError(f"a reward's name is lower-case words joined by underscores, got {name!r}")

    def add(cls: RewardClass) -> RewardClass:
        if not _is_frozen_dataclass(cls):
            raise TypeError(f"{cls.__name__} must be a frozen dataclass to be registered as reward {name!r}")
        if not _follows_protocol(cls):
            raise TypeError(f"{cls.__name__} lacks __call__ or perfect_answer: it is no Reward")
        held = _registered.get(name)
        if held is not None and (held.__module__, held.__qualname__) != (cls.__module__, cls.__qualname__):
            raise ValueError(f"reward {name!r} is already {held.__module__}.{held.__qualname__}; choose another name")
        _registered[name] = cls
        return cls

    return add


def available() -> dict[str, type]:
    """Registered names in alphabetical order, with their classes."""
    return dict(sorted(_registered.items()))


def describe(name: str) -> list[Option]:
    """The options of a registered reward. Raises ValueError for an unknown name."""
    cls = _registered_class(name)
    hints, docs = get_type_hints(cls), field_docs(cls)
    return [_option(field, hints[field.name], docs.get(field.name, "")) for field in fields(cls)]


def make_reward(spec: RewardSpec, *, deadline_s: float | None = None) -> Reward:
    """A reward from a recipe's or a script's word for it.

    `"math"`, `{"name": "math", "deadline_s": 2}`, `"my_module:function"`, `{"name": "my_module:MyReward", **options}`,
    a reward object, or a function `f(prompts=..., completions=..., **columns) -> list[float | None]` as TRL takes.
    `deadline_s` is the value of an option of that name which the spec does not give; a finished object keeps its own.
    Raises ValueError for an unknown name, module, option, or an option of the wrong type, naming the nearest valid one.
    """
    if isinstance(spec, str):
        return _from_name(spec, {}, deadline_s)
    if isinstance(spec, Mapping):
        options = dict(spec)
        name = options.pop("name", None)
        if not isinstance(name, str):
            raise ValueError(f"a reward's mapping needs a 'name' (one of {', '.join(available())}), got {dict(spec)}")
        return _from_name(name, options, deadline_s)
    return _from_object(spec, {}, deadline_s)


def reward_name(reward: Reward) -> str:
    """What a reward is called in metrics: its registered name, its function's name, or its class's."""
    if isinstance(reward, FunctionReward):
        return reward.name
    return next((name for name, cls in _registered.items() if cls is type(reward)), type(reward).__name__)


def nearest(word: str, known: Iterable[str]) -> str:
    """`; did you mean 'x'?`, or the list of what is known where nothing is near."""
    known = list(known)
    near = difflib.get_close_matches(word, known, n=1, cutoff=0.5)
    if near:
        return f"; did you mean {near[0]!r}?"
    return f"; known are: {', '.join(known)}" if known else "; there are none"


def _from_name(name: str, options: dict[str, Any], deadline_s: float | None) -> Reward:
    if ":" in name:
        return _from_object(_import(name), options, deadline_s)
    return _construct(_registered_class(name), name, options, deadline_s)


def _from_object(made: Any, options: dict[str, Any], deadline_s: float | None) -> Reward:
    if isinstance(made, type):
        if not (is_dataclass(made) and _follows_protocol(made)):
            raise ValueError(f"{made.__name__} is a class but no dataclass with the Reward protocol; pass an instance")
        return _construct(made, made.__name__, options, deadline_s)
    if isinstance(made, Reward):
        if options:
            raise ValueError(f"{made!r:.80} is a finished reward and takes no options, got {', '.join(options)}")
        return made
    if callable(made):
        return _construct(FunctionReward, FunctionReward(function=made).name, options, None, function=made)
    raise ValueError(f"{made!r:.80} is no reward: give a name, a mapping, 'module:function', a Reward or a function")


def _import(path: str) -> Any:
    module_name, _, attribute = path.partition(":")
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module_name}.".startswith(f"{error.name}."):
            raise  # the module is there, and misses something of its own
        raise ValueError(f"reward {path!r}: there is no module {error.name!r} on the import path") from None
    if attribute not in vars(module):
        public = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise ValueError(f"reward {path!r}: module {module_name!r} has no {attribute!r}{nearest(attribute, public)}")
    return vars(module)[attribute]


def _registered_class(name: str) -> type:
    if name not in _registered:
        raise ValueError(f"there is no reward {name!r}{nearest(name, available())}")
    return _registered[name]


def _construct(cls: type, name: str, options: dict[str, Any], deadline_s: float | None = None, **fixed: Any) -> Reward:
    hints = {key: hint for key, hint in get_type_hints(cls).items() if key in {field.name for field in fields(cls)}}
    if deadline_s is not None and "deadline_s" in hints:
        options = {"deadline_s": deadline_s, **options}
    for key in options:
        if key not in hints or key in fixed:
            raise ValueError(f"reward {name!r} has no option {key!r}{nearest(key, set(hints) - set(fixed))}")
    required = [f.name for f in fields(cls) if f.default is MISSING and f.default_factory is MISSING]
    missing = [key for key in required if key not in options and key not in fixed]
    if missing:
        raise ValueError(f"reward {name!r} needs the option {', '.join(missing)}")
    return cls(
        **fixed,
        **{key: checked_value(value, hints[key], f"reward {name!r}: option {key!r}") for key, value in options.items()},
    )


def _is_frozen_dataclass(cls: type) -> bool:
    return is_dataclass(cls) and cls.__dataclass_params__.frozen  # pyright: ignore[reportAttributeAccessIssue]


def _follows_protocol(cls: type) -> bool:
    return issubclass(cls, Reward)


def _option(field: "Field[Any]", hint: Any, doc: str) -> Option:
    required = field.default is MISSING and field.default_factory is MISSING
    default = field.default if field.default is not MISSING else None
    if field.default_factory is not MISSING:
        default = field.default_factory()
    return Option(name=field.name, type=hint, default=default, doc=doc, required=required)
