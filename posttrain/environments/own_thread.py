"""A thread for one object: connections of sqlite3 and contexts of graphics work only on the thread that made them."""

import threading
import weakref
from collections.abc import Callable
from queue import SimpleQueue

from posttrain.environments.tool_errors import ToolBroken


class OwnThread:
    """Runs what it is given one after another, on one daemon thread, which starts with the first.

    It ends with `end`, or when nobody holds this object any more. Work that hangs cannot be stopped: `leave` gives the
    thread up, and nothing else runs on it, because what hangs there may still be changing the object.
    """

    def __init__(self) -> None:
        self._jobs: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._is_started = False
        self._why_not = ""

    def begin(self, job: Callable[[], None]) -> None:
        """Has it run; it must not raise. Raises ToolBroken after `leave` and `end`."""
        if self._why_not:
            raise ToolBroken(self._why_not)
        if not self._is_started:
            self._is_started = True
            threading.Thread(target=_work, args=(self._jobs,), name="posttrain-own", daemon=True).start()
            weakref.finalize(self, self._jobs.put, None).atexit = False
        self._jobs.put(job)

    def leave(self) -> None:
        """Gives the thread up."""
        self._stop("an earlier call on this object gave no answer in time and may still be changing it")

    def end(self) -> None:
        """Lets the thread end, once it has done what it was given."""
        self._stop("the episode of this object is over")

    def _stop(self, why: str) -> None:
        if not self._why_not:
            self._why_not = why
            self._jobs.put(None)


def _work(jobs: "SimpleQueue[Callable[[], None] | None]") -> None:
    while (job := jobs.get()) is not None:
        job()
        del job  # it holds what it works on, whose end may end this thread
