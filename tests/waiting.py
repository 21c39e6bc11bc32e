"""Waiting for what other threads and processes do, on a machine that may be slow and may pause."""

import time
from collections.abc import Callable

PATIENCE_S = 60.0
"""Far more than a busy machine takes: what has not come by then never will."""
HANG_S = 600.0
"""What hangs does so for longer than any test waits; also a deadline that nothing meets."""
PROCESS_S = 900.0
"""For a program that takes up to half a minute on an idle machine."""
GROWING_S = (0.3, 3.0, 30.0)
"""Deadlines to be tried in turn where one thing hangs and another must keep the same deadline: until it does."""


def comes_true(condition: Callable[[], bool], within_s: float = PATIENCE_S) -> bool:
    """Whether the condition holds before the time is up; it is looked at every hundredth of a second."""
    ends = time.monotonic() + within_s
    while not condition():
        if time.monotonic() > ends:
            return False
        time.sleep(0.01)
    return True
