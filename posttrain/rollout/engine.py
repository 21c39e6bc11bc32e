"""What a rollout engine is: prompts in, sampled tokens with their log-probabilities out."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, runtime_checkable

import numpy as np
from PIL import Image
from torch import nn

from posttrain.model import ImagePatches


@dataclass(frozen=True, slots=True, kw_only=True)
class Sampling:
    """How tokens are drawn. Training needs top_p 1 and top_k 0: no trainer reproduces such filters."""

    max_new_tokens: int
    temperature: float = 1.0
    """0 takes the most likely token."""
    top_p: float = 1.0
    top_k: int = 0
    seed: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """One prompt to answer `n` times."""

    token_ids: np.ndarray
    """[T] int64, image tokens expanded (one per merged patch), as the trainer sees it."""
    images: tuple[ImagePatches, ...] = ()
    """As the trainer's vision tower reads them."""
    pictures: tuple[Image.Image, ...] = ()
    """The same images, already resized, for engines that cut patches themselves."""
    n: int = 1
    may_go_on: bool = False
    """A later request of the same key may begin with this one and its answer: an engine may keep what it knows of them,
    until it is told to `forget` the key. For one sample."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sample:
    """One answer."""

    token_ids: np.ndarray
    """[T] int64, the end-of-turn token included where it was said."""
    logprobs: np.ndarray
    """[T] float32, nats, of the sampled tokens under the distribution they were drawn from."""
    stop: Literal["end", "length"]
    weights_version: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One sample that has ended, and which request it answers."""

    key: int
    """The request's, as it was added."""
    index: int
    """Which of the request's `n` samples: 0 .. n - 1."""
    sample: Sample


class Stream(Protocol):
    """Requests that are answered while others join them. Used by one thread."""

    def add(self, key: int, request: Request, *, max_new_tokens: int, seed: int) -> None:
        """Takes a request in; its samples depend on it, the seed and the weights, not on what else is in the stream
        (up to rounding). The sampling's own `max_new_tokens` and `seed` are not read.

        Raises EngineError for a prompt that the engine cannot take.
        """
        ...

    def poll(self, timeout_s: float) -> list[Answer]:
        """Goes on sampling for a little (a token or several for every sample), and returns the samples that ended.

        An engine somewhere else is waited for `timeout_s` seconds at most. Empty where none has ended yet, or where
        nothing is asked. Raises EngineError when the engine has died: no request is ever waited for in vain.
        """
        ...

    def forget(self, key: int) -> None:
        """No request of this key follows."""
        ...

    @property
    def num_running(self) -> int:
        """Samples that are still to be returned."""
        ...

    def close(self) -> None:
        """Drops what is still running."""
        ...


@runtime_checkable
class StreamingEngine(Protocol):
    """An engine that takes requests while it answers others; every engine of the library does."""

    def stream(self, sampling: Sampling) -> Stream: ...


@dataclass(frozen=True, slots=True, kw_only=True)
class Capacity:
    """What one prompt may hold, all turns of its episode together; None where the engine sets no limit."""

    max_tokens: int | None = None
    max_images: int | None = None


def capacity_of(engine: "Engine") -> Capacity:
    """What an engine says of itself in `capacity`."""
    return getattr(engine, "capacity", Capacity())


class Engine(Protocol):
    """Samples from the policy's present weights. Vision tokens are never sampled."""

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample]]:
        """`n` samples for every request, in the order of the requests."""
        ...

    def update_weights(self, policy: nn.Module, version: int) -> None:
        """Takes over the policy's weights (adapters merged on the way)."""
        ...

    def rest(self) -> None:
        """Called when a batch of rollouts is done: gives device memory back to the trainer where it can."""
        ...

    def close(self) -> None: ...
