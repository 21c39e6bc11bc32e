"""Event loops for coroutines of users: one serves everybody, and another one takes over while a coroutine blocks it."""

import asyncio
import threading

_PING_S = 1.0


class EventLoops:
    """One loop at a time, on a daemon thread, so that a client made by one call serves the next. Used by any thread.

    A coroutine whose work never awaits blocks its loop: those that wait there go on when it ends, later ones elsewhere.
    """

    def __init__(self, name: str) -> None:
        """name: of the threads."""
        self._name = name
        self._lock = threading.Lock()
        self._loops: list[asyncio.AbstractEventLoop] = []
        """The one in use first; each of the others was blocked once."""

    def running(self) -> asyncio.AbstractEventLoop:
        """A loop that has just answered; finding one may take a second. Not to be called within one of the loops."""
        with self._lock:
            pongs = [_ping(loop) for loop in self._loops]
            if pongs and pongs[0].wait(_PING_S):
                return self._loops[0]
            free = next((place for place, pong in enumerate(pongs) if pong.is_set()), None)
            loop = self._started() if free is None else self._loops.pop(free)
            self._loops.insert(0, loop)
            return loop

    def stop(self) -> None:
        """Leaves what still runs in the loops unfinished."""
        with self._lock:
            for loop in self._loops:
                loop.call_soon_threadsafe(loop.stop)
            self._loops.clear()

    def _started(self) -> asyncio.AbstractEventLoop:
        loop = asyncio.new_event_loop()
        threading.Thread(target=loop.run_forever, name=self._name, daemon=True).start()
        return loop


def _ping(loop: asyncio.AbstractEventLoop) -> threading.Event:
    pong = threading.Event()
    loop.call_soon_threadsafe(pong.set)
    return pong
