"""One loop for all, and another one while it is blocked."""

import asyncio
import threading
import time

from posttrain.environments.event_loops import EventLoops


def test_a_loop_that_was_blocked_serves_again_so_that_there_are_no_more_than_were_blocked_at_once() -> None:
    async def block(begun: threading.Event) -> None:
        begun.set()
        time.sleep(1.5)

    loops = EventLoops("test-loop")
    used = []
    for _ in range(3):
        loop = loops.running()
        assert loops.running() is loop
        used.append(loop)
        begun = threading.Event()
        asyncio.run_coroutine_threadsafe(block(begun), loop)
        assert begun.wait(5)
    assert used[0] is not used[1] and used[2] is used[0]
    time.sleep(1.6)
    loops.stop()
    time.sleep(0.1)
    assert not any(loop.is_running() for loop in used)
