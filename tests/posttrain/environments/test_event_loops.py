"""One loop for all, and another one while it is blocked."""

import asyncio
import threading
from collections.abc import Callable

import pytest

from posttrain.environments import event_loops
from posttrain.environments.event_loops import EventLoops
from tests.waiting import HANG_S, PATIENCE_S, comes_true

Loop = asyncio.AbstractEventLoop


def test_a_loop_that_was_blocked_serves_again_so_that_there_are_no_more_than_were_blocked_at_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    leave: dict[Loop, threading.Event] = {}
    ping: Callable[[Loop], threading.Event] = event_loops._ping

    def patient_ping(loop: Loop) -> threading.Event:
        """A machine that pauses is no loop that is blocked."""
        pong = ping(loop)
        assert pong.wait(0 if loop in leave else PATIENCE_S) or loop in leave
        return pong

    async def block(begun: threading.Event, leave: threading.Event) -> None:
        begun.set()
        leave.wait(HANG_S)

    monkeypatch.setattr(event_loops, "_ping", patient_ping)
    monkeypatch.setattr(event_loops, "_PING_S", 0.1)
    loops = EventLoops("test-loop")
    used: list[Loop] = []
    for number in range(3):
        loop = loops.running()
        assert loops.running() is loop
        used.append(loop)
        begun = threading.Event()
        leave[loop] = threading.Event()
        asyncio.run_coroutine_threadsafe(block(begun, leave[loop]), loop)
        assert begun.wait(PATIENCE_S)
        if number == 1:
            leave.pop(used[0]).set()
    assert used[0] is not used[1] and used[2] is used[0]
    for event in leave.values():
        event.set()
    loops.stop()
    assert comes_true(lambda: not any(loop.is_running() for loop in used))
