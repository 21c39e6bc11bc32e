"""What an environment is: it speaks messages; tokens, masks, limits, deadlines and failures are its wrapper's."""

from collections.abc import Awaitable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

from PIL import Image

from posttrain.environments.shown_messages import check_observation, check_opening
from posttrain.records import Example, Message
from posttrain.rewards import ToolCall


@dataclass(frozen=True, slots=True, kw_only=True)
class Opening:
    """What the policy is shown first. Raises ValueError where it cannot be shown as it is."""

    messages: tuple[Message, ...]
    """Ends with a user turn; the n-th image part shows the n-th image."""
    images: tuple[Image.Image, ...] = ()
    """RGB, not resized."""
    tools: tuple[Mapping[str, Any], ...] = ()
    """Schemas as chat templates take them: {"type": "function", "function": {"name", "description", "parameters"}}."""

    def __post_init__(self) -> None:
        check_opening(self.messages, self.images)


@dataclass(frozen=True, slots=True, kw_only=True)
class CallRequest:
    """One tool call as the policy wrote it."""

    name: str
    """Empty where it could not be read."""
    arguments: Mapping[str, Any]
    problem: str = ""
    """Why it could not be read, in a sentence that the policy can learn from; empty where it was."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reply:
    """One finished turn of the policy."""

    text: str
    """All that it said, thoughts and markup included, without the end-of-turn token."""
    calls: tuple[CallRequest, ...] = ()
    """Its tool calls in order, the unreadable ones too; those within thoughts are not calls."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """What the policy reads next; the episode goes on. Raises ValueError where it cannot be shown as it is."""

    messages: tuple[Message, ...]
    """Turns of the role "tool" or "user", with image parts where images are shown."""
    images: tuple[Image.Image, ...] = ()
    """RGB, not resized, in the order of their parts."""
    calls: tuple[ToolCall, ...] = ()
    """The calls that this turn made, as they went: what rewards and the report count."""

    def __post_init__(self) -> None:
        check_observation(self.messages, self.images)


@dataclass(frozen=True, slots=True, kw_only=True)
class Done:
    """The episode is over: the reply was the answer."""

    calls: tuple[ToolCall, ...] = ()
    """Calls of the last turn, where it made any."""


@runtime_checkable
class Environment(Protocol):
    """One episode with one example; made anew for every trajectory, used once.

    `start`, `step` and `close` may be coroutines. They are called one after another, each on whichever thread is free:
    what only works on the thread that made it cannot be kept from one to the next. What they raise ends this episode,
    without a score, and no other.
    """

    def validate(self, example: Example) -> None:
        """Raises DataError for a row with which no episode can start; `posttrain check` asks before training."""
        ...

    def start(self, example: Example) -> Opening | Awaitable[Opening]: ...

    def step(self, reply: Reply) -> Observation | Done | Awaitable[Observation | Done]: ...

    def close(self) -> Awaitable[None] | None:
        """Called once if `start` was called, also after a failure, `start`'s own too; what needs it is made there."""
        ...


@runtime_checkable
class ScoringEnvironment(Protocol):
    """An environment that also knows how well the episode went, as simulators and games do."""

    def score(self) -> float | Awaitable[float | None] | None:
        """Called once, after the last turn and before `close`; None means no verdict."""
        ...
