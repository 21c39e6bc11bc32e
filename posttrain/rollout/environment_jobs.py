"""A job of the environments' workers: where it stands, how long it may take, and what became of it."""

import math
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from enum import Enum, auto
from typing import Any


class Late(TimeoutError):
    """A job that overran its deadline, and may still be at work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What became of a job."""

    key: int
    value: Any = None
    error: BaseException | None = None
    """What it raised; Late where it did not answer in time."""
    seconds: float = 0.0
    """Until it had answered."""


class Stand(Enum):
    """Where a job stands."""

    QUEUE = auto()
    """Waits for a thread: to begin, or for what follows a coroutine's answer."""
    THREAD = auto()
    """Holds one."""
    LOOP = auto()
    """A coroutine, which holds no thread while it waits."""
    OVER = auto()
    """Answered or abandoned, whichever came first."""


@dataclass(slots=True, kw_only=True, eq=False)
class Job:
    """`work` has `timeout_s` seconds from when it begins; what `then` makes of its answer takes none of them."""

    key: int
    work: Callable[[], Any]
    then: Callable[[Any], Any]
    timeout_s: float
    if_abandoned: Callable[[], Any] | None
    stand: Stand = Stand.QUEUE
    queued: float = field(default_factory=time.monotonic)
    """On the clock of `started`."""
    started: float | None = None
    answered: float | None = None
    late_at: float = math.inf
    awaited: "Future[None] | None" = None
    """Of a coroutine."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Of `stand`: once it is OVER, everything stays as it is."""

    @property
    def seconds(self) -> float:
        """Since it began, until it had answered."""
        assert self.started is not None
        return (self.answered or time.monotonic()) - self.started

    def begin(self) -> bool:
        """It has got a thread. False where it was abandoned before."""
        with self.lock:
            if self.stand is not Stand.OVER:
                self.stand, self.started = Stand.THREAD, time.monotonic()
                self.late_at = self.started + self.timeout_s
            return self.stand is not Stand.OVER

    def answer(self, goes_on: Stand) -> bool:
        """It has answered, and what follows is nobody's fault but ours. False where that came too late."""
        with self.lock:
            if self.stand is not Stand.OVER:
                self.stand, self.answered, self.late_at = goes_on, time.monotonic(), math.inf
                self.queued = self.answered
            return self.stand is not Stand.OVER

    def go_on(self) -> bool:
        """It has got a thread again, after its answer. False where it was abandoned meanwhile."""
        with self.lock:
            if self.stand is not Stand.OVER:
                self.stand = Stand.THREAD
            return self.stand is not Stand.OVER
