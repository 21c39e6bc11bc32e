"""Environments written for TRL's `environment_factory`: objects with `reset`, whose other public methods are tools."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from posttrain.environments.deadlines import run_on
from posttrain.environments.environment import Done, Observation, Opening, Reply
from posttrain.environments.options import imported
from posttrain.environments.own_thread import OwnThread
from posttrain.environments.registry import register_environment
from posttrain.environments.tool_answers import AnswerLimits, ToolAnswer, tool_answer
from posttrain.environments.tool_environment import ToolEnvironment
from posttrain.environments.tool_registry import ToolSpec
from posttrain.environments.tools import Tool, tool_from_function
from posttrain.errors import ConfigError, DataError
from posttrain.records import Example, Message

_NOT_TOOLS = ("reset", "get_reward")


@register_environment("trl")
@dataclass(slots=True, kw_only=True, eq=False)
class TRLEnvironment:
    """One episode with an object made by the factory, by the rules of TRL 1.16's `GRPOTrainer`.

    Public methods of its class but `reset` and `get_reward` are tools, `async` ones too. `reset` gets the row's columns
    by name (`prompt`, `images`, and the reference fields); what it returns, None, text or a list of content parts, is
    added to the last turn of the prompt. `get_reward` is `score` here. What a tool returns that is no text, image or
    JSON is written by `str`.

    The factory and the object's methods run on one thread, coroutines in the event loop of all tools. A call that does
    not answer in time ends the episode with ToolBroken: it may still be changing the object, whose reward then means
    nothing. Different from TRL: the object is made anew for every episode, `reset` without `**kwargs` gets only the
    columns that it names, and may be `async`; a call's arguments are checked before it, errors read `Tool Execution
    Error: ...`, and what is no text is written as JSON.
    """

    environment: str | Callable[[], Any]
    """The class or factory, or "module:Class"."""
    tools: Sequence[ToolSpec] = ()
    """Further tools, as of the environment `tools`."""
    max_calls_per_turn: int = 8
    """Calls of one reply that are run; the others are refused."""
    tool_timeout_s: float = 30.0
    """Wall-clock seconds of one call."""
    turn_timeout_s: float = 90.0
    """Wall-clock seconds of all calls of a reply."""
    max_text_chars: int = 8000
    """Text of one answer; more is cut off, with a remark."""
    _object: Any = field(init=False, repr=False)
    _thread: OwnThread = field(init=False, repr=False, default_factory=OwnThread)
    _inner: ToolEnvironment = field(init=False, repr=False)

    def __post_init__(self) -> None:
        factory = imported(self.environment, "environment") if isinstance(self.environment, str) else self.environment
        self._object = run_on(self._thread, factory)
        if "reset" not in dir(self._object):
            raise ConfigError(f"{type(self._object).__name__} has no method reset, which TRL's environments must have")
        methods = [
            self._tool(getattr(self._object, name))
            for name, _ in inspect.getmembers(type(self._object), inspect.isfunction)
            if name not in _NOT_TOOLS and not name.startswith("_")
        ]
        self._inner = ToolEnvironment(
            tools=[*self.tools, *methods],
            max_calls_per_turn=self.max_calls_per_turn,
            tool_timeout_s=self.tool_timeout_s,
            turn_timeout_s=self.turn_timeout_s,
            max_text_chars=self.max_text_chars,
        )

    def validate(self, example: Example) -> None:
        """Raises DataError where `reset` wants columns that the row lacks, and as the environment `tools`."""
        row = _row(example)
        if lacking := [name for name in _required(self._object.reset) if name not in row]:
            raise DataError(
                f"{example.id}: {type(self._object).__name__}.reset wants {', '.join(map(repr, lacking))}, but the "
                f"row's columns are: {', '.join(row)}"
            )
        self._inner.validate(example)

    def start(self, example: Example) -> Opening:
        self.validate(example)
        added = run_on(self._thread, lambda: self._object.reset(**_accepted(self._object.reset, _row(example))))
        asked = _asked(example)
        if added is None:
            return self._inner.start(replace(example, messages=asked))
        if not isinstance(added, str | list):
            raise DataError(f"{example.id}: reset must return None, text or a list of parts, got {added!r:.80}")
        answer = self._reset_answer(added)
        last = {**asked[-1], "content": _joined(asked[-1]["content"], answer.message["content"])}
        return self._inner.start(
            replace(example, messages=(*asked[:-1], last), images=(*example.images, *answer.images))
        )

    def step(self, reply: Reply) -> Observation | Done:
        return self._inner.step(reply)

    def score(self) -> float | None:
        """What the object's `get_reward` returns; None where it has none."""
        if "get_reward" not in dir(self._object):
            return None
        return run_on(self._thread, self._object.get_reward)

    def close(self) -> None:
        self._inner.close()
        self._thread.end()

    def _tool(self, method: Callable[..., Any]) -> Tool:
        return replace(tool_from_function(method), thread=self._thread, written=str)

    def _reset_answer(self, added: str | list[Any]) -> ToolAnswer:
        limits = AnswerLimits(max_text_chars=self.max_text_chars)
        return tool_answer(added, limits, tool=f"{type(self._object).__name__}.reset", written=str)


def _asked(example: Example) -> tuple[Message, ...]:
    messages = example.messages
    return messages[:-1] if messages and messages[-1]["role"] == "assistant" else messages


def _row(example: Example) -> dict[str, Any]:
    images: list[Image.Image] = list(example.images)
    return {**example.reference, "prompt": list(_asked(example)), **({"images": images} if images else {})}


def _required(function: Callable[..., Any]) -> list[str]:
    by_name = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    parameters = inspect.signature(function).parameters.values()
    return [p.name for p in parameters if p.kind in by_name and p.default is p.empty]


def _accepted(function: Callable[..., Any], row: Mapping[str, Any]) -> dict[str, Any]:
    parameters = inspect.signature(function).parameters
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters.values()):
        return dict(row)
    return {name: row[name] for name in parameters if name in row}


def _joined(content: Any, added: Any) -> Any:
    """Two texts as one, with nothing between them, as TRL joins them; otherwise the parts of both."""
    if isinstance(content, str) and isinstance(added, str):
        return content + added
    first, second = ([{"type": "text", "text": c}] if isinstance(c, str) else c for c in (content, added))
    return [*first, *second]
