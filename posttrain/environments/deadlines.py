"""Running a tool for at most so long: one that hangs is left behind on its thread, which nobody waits for."""

import asyncio
import inspect
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from posttrain.environments.tools import ToolError

T = TypeVar("T")

_PING_S = 1.0


class TimeUp(ToolError):
    """The work was not done within its time."""


def run_within(seconds: float, work: Callable[[], Any], finish: Callable[[Any], T]) -> T:
    """What `finish` makes of what `work` returns, or of what the coroutine gives that it returns.

    Runs on a daemon thread of its own; coroutines run in one event loop for all tools, on another thread, so that a
    client made by one call serves the next. Raises TimeUp after `seconds`, and what the work raises. A thread cannot be
    stopped: work that never ends keeps its thread until the process ends. A coroutine is cancelled.
    """
    outcome: Future[T] = Future()
    ends = time.monotonic() + seconds

    def run() -> None:
        try:
            outcome.set_result(finish(_awaited_value(work(), ends, seconds)))
        except BaseException as error:  # SystemExit too: it would end this thread in silence
            outcome.set_exception(error)

    threading.Thread(target=run, name="posttrain-tool", daemon=True).start()
    if not wait([outcome], max(ends - time.monotonic(), 0)).done:
        raise TimeUp(f"no answer within {seconds:.3g} s")
    return outcome.result()


def _awaited_value(value: Any, ends: float, seconds: float) -> Any:
    if not inspect.isawaitable(value):
        return value

    async def awaited() -> Any:
        return await value

    pending = asyncio.run_coroutine_threadsafe(awaited(), _loops.running())
    if not wait([pending], max(ends - time.monotonic(), 0)).done:
        pending.cancel()
        raise TimeUp(f"no answer within {seconds:.3g} s")
    return pending.result()


class _Loops:
    """The event loop for tools; a new one where a coroutine blocks it by work that never awaits."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None

    def running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or not self._answers(self._loop):
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="posttrain-tool-loop", daemon=True).start()
            return self._loop

    def _answers(self, loop: asyncio.AbstractEventLoop) -> bool:
        pong = threading.Event()
        loop.call_soon_threadsafe(pong.set)
        return pong.wait(_PING_S)


_loops = _Loops()
