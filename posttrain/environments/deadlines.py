"""Running a tool for at most so long: one that hangs is left behind on its thread, which nobody waits for."""

import asyncio
import inspect
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from typing import Any, TypeVar

from posttrain.environments.event_loops import EventLoops
from posttrain.environments.own_thread import OwnThread
from posttrain.environments.tool_errors import ToolError

T = TypeVar("T")

_loops = EventLoops("posttrain-tool-loop")


class TimeUp(ToolError):
    """The work was not done within its time."""


def run_within(
    seconds: float, work: Callable[[], Any], finish: Callable[[Any], T], thread: OwnThread | None = None
) -> T:
    """What `finish` makes of what `work` returns, or of what the coroutine gives that it returns.

    Runs on a daemon thread of its own, or on the `thread` of the object that it works on, which is given up where time
    runs out; coroutines run in one event loop for all tools, on another thread, so that a client made by one call
    serves the next. Raises TimeUp after `seconds`, what the work raises, and ToolBroken where `thread` has been given
    up. A thread cannot be stopped: work that never ends keeps its thread until the process ends. A coroutine is
    cancelled.
    """
    outcome: Future[T] = Future()
    ends = time.monotonic() + seconds

    def run() -> None:
        try:
            outcome.set_result(finish(_awaited_value(work(), ends, seconds)))
        except BaseException as error:  # SystemExit too: it would end this thread in silence
            outcome.set_exception(error)

    if thread is None:
        threading.Thread(target=run, name="posttrain-tool", daemon=True).start()
    else:
        thread.begin(run)
    try:
        if not wait([outcome], max(ends - time.monotonic(), 0)).done:
            raise TimeUp(f"no answer within {seconds:.3g} s")
        return outcome.result()
    except TimeUp:
        if thread is not None:
            thread.leave()
        raise


def run_on(thread: OwnThread, work: Callable[[], T]) -> T:
    """The same without a deadline: whoever calls has one. `work` may return a coroutine, which is awaited."""
    return run_within(threading.TIMEOUT_MAX / 2, work, lambda value: value, thread)


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
