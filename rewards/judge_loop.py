"""One event loop in a thread of its own, so that judges can be asked from any thread and inside any running loop."""

import os
import threading
from collections.abc import Coroutine
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    import asyncio

Result = TypeVar("Result")

_loops: "dict[int, asyncio.AbstractEventLoop]" = {}
_starting = threading.Lock()


def run_on_judge_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` returns; blocks the calling thread alone. Interrupting the caller cancels the work."""
    import asyncio

    future = asyncio.run_coroutine_threadsafe(work, _loop())
    try:
        return future.result()
    except BaseException:
        future.cancel()
        raise


def _loop() -> "asyncio.AbstractEventLoop":
    """The loop of this process: a forked child has none of its parent's threads, and starts its own."""
    import asyncio

    with _starting:
        loop = _loops.get(os.getpid())
        if loop is None:
            loop = _loops[os.getpid()] = asyncio.new_event_loop()
            # a daemon: a judge that does not answer must not keep the interpreter from ending
            threading.Thread(target=loop.run_forever, name="judges", daemon=True).start()
        return loop
