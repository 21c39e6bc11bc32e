"""Work whose outcome nobody waits for, such as environments that close; the end of a stage gives it a while."""

import asyncio
import inspect
import threading
from collections.abc import Callable
from typing import Any

from posttrain.environments.event_loops import EventLoops


class AsideWork:
    """Functions and coroutine functions, each on a daemon thread of its own. Used by any thread."""

    def __init__(self, loops: EventLoops) -> None:
        """loops: in which coroutines run."""
        self._loops = loops
        self._expected: set[object] = set()
        self._changed = threading.Condition()

    def start(self, work: Callable[[], Any]) -> None:
        token = object()

        def run() -> None:
            try:
                value = work()
                if inspect.isawaitable(value):
                    asyncio.run_coroutine_threadsafe(_awaited(value), self._loops.running()).result()
            finally:
                self.settle(token)

        self.expect(token)
        threading.Thread(target=run, name="posttrain-environment-aside", daemon=True).start()

    def expect(self, what: object) -> None:
        """`wait` waits for it too, until it is settled."""
        with self._changed:
            self._expected.add(what)

    def settle(self, what: object) -> None:
        """It has ended, if it was expected at all."""
        with self._changed:
            self._expected.discard(what)
            self._changed.notify_all()

    def wait(self, timeout_s: float) -> int:
        """Until all has ended: how much has not, after so many seconds."""
        with self._changed:
            self._changed.wait_for(lambda: not self._expected, timeout_s)
            return len(self._expected)


async def _awaited(value: Any) -> Any:
    return await value
