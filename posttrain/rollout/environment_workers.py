"""Threads on which environments work while the engine samples: with deadlines, and none of them can hang the run."""

import asyncio
import inspect
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

from posttrain.environments.event_loops import EventLoops
from posttrain.rollout.aside_work import AsideWork

_log = logging.getLogger(__name__)

MAX_THREADS = 64
_FIRST_THREADS = 16
"""More only make tools that compute, and the engine beside them, take turns."""
_LONG_WAIT_S = 0.1
"""Tools that wait, for a network or a clock, keep jobs waiting for a thread: then another one helps."""
_CLOSE_S = 10.0
"""What is done aside has so long, all of it together, when the workers close."""


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


@dataclass(slots=True, kw_only=True, eq=False)
class _Job:
    key: int
    work: Callable[[], Any]
    timeout_s: float
    if_abandoned: Callable[[], Any] | None
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    late_at: float = math.inf
    """On the clock of `started`."""
    awaited: "Future[None] | None" = None
    """Of a coroutine, which holds no thread while it waits."""
    is_over: bool = False
    """Answered or abandoned, whichever came first."""
    lock: threading.Lock = field(default_factory=threading.Lock)
    """Of `started`, `awaited` and `is_over`: once it is over, they stay as they are."""

    def begin(self) -> bool:
        """False where it was abandoned before."""
        with self.lock:
            if not self.is_over:
                self.started = time.monotonic()
                self.late_at = self.started + self.timeout_s
            return not self.is_over


class EnvironmentWorkers:
    """Runs jobs, plain functions and coroutine functions alike; `ready` gives what has ended.

    A job that does not answer within its deadline is abandoned: its thread cannot be stopped, but nobody waits for it,
    another takes its place, and a daemon thread does not keep the process alive. An abandoned coroutine is cancelled.
    Coroutines run in one event loop, on a thread of its own, so that a client session made by one call serves the next;
    while one of them blocks it, later ones run in another. Used by one thread.
    """

    def __init__(self, max_threads: int = MAX_THREADS) -> None:
        self._max_threads = max_threads
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._pending: dict[int, _Job] = {}
        self._num_threads = 0
        self._loops = EventLoops("posttrain-environment-loop")
        self._aside = AsideWork(self._loops)

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    def submit(
        self, key: int, work: Callable[[], Any], *, timeout_s: float, if_abandoned: Callable[[], Any] | None = None
    ) -> None:
        """key: of one job at a time. if_abandoned: called aside, to clean up, when an abandoned job has ended after
        all, or at once where it had not begun."""
        job = _Job(key=key, work=work, timeout_s=timeout_s, if_abandoned=if_abandoned)
        self._pending[key] = job
        if self._num_threads < min(self._max_threads, _FIRST_THREADS, len(self._pending)):
            self._start_thread()
        self._jobs.put(job)

    def aside(self, work: Callable[[], Any]) -> None:
        """Runs something whose outcome nobody waits for, a function or a coroutine function, on a thread of its own."""
        self._aside.start(work)

    def abandon_all(self) -> set[int]:
        """Waits for nothing that is still pending: the keys of those jobs, for which `if_abandoned` will be called."""
        keys = {job.key for job in self._pending.values() if self._abandon(job)}
        self._pending.clear()
        while not self._outcomes.empty():
            self._outcomes.get()
        return keys

    def ready(self, timeout_s: float) -> list[Outcome]:
        """Jobs that ended, or overran their deadlines; waits for the first one for `timeout_s` seconds at most."""
        outcomes: list[Outcome] = []
        until = time.monotonic() + timeout_s
        while True:
            while not self._outcomes.empty():
                outcomes.append(self._outcomes.get())
            for outcome in outcomes:
                self._pending.pop(outcome.key, None)
            outcomes += self._abandon_late()
            self._help_out()
            left = until - time.monotonic()
            if outcomes or left <= 0 or not self._pending:
                return outcomes
            try:
                outcomes.append(self._outcomes.get(timeout=min(left, self._next_deadline())))
            except queue.Empty:
                continue

    def close(self) -> None:
        """Lets idle threads end, and waits a while for what is done aside; jobs that still run are left behind."""
        for _ in range(self._num_threads):
            self._jobs.put(None)
        self._num_threads = 0
        if num_left := self._aside.wait(_CLOSE_S):
            _log.warning("%d environments had not closed after %g s", num_left, _CLOSE_S)
        self._loops.stop()

    def _abandon_late(self) -> list[Outcome]:
        late: list[Outcome] = []
        for job in list(self._pending.values()):
            now = time.monotonic()
            if now < job.late_at or not self._abandon(job):
                continue
            assert job.started is not None
            del self._pending[job.key]
            error = Late(f"gave no answer within {job.timeout_s:g} s")
            late.append(Outcome(key=job.key, error=error, seconds=now - job.started))
            if job.awaited is None and self._pending:
                self._start_thread()
        return late

    def _abandon(self, job: _Job) -> bool:
        """False where it has answered."""
        with job.lock:
            if job.is_over:
                return False
            job.is_over = True
            if job.awaited is not None:
                self._aside.expect(job)  # `close` gives it time to unwind, and to be cleaned up
        if job.started is None:
            self._clean_up(job)
        elif job.awaited is not None:
            job.awaited.cancel()
        else:
            self._num_threads -= 1  # that thread is lost
        return True

    def _help_out(self) -> None:
        """One more thread where a job has waited for one for long."""
        if self._num_threads >= self._max_threads:
            return
        now = time.monotonic()
        if any(job.started is None and now - job.submitted > _LONG_WAIT_S for job in self._pending.values()):
            self._start_thread()

    def _next_deadline(self) -> float:
        """Seconds until a job may be late; one whose time does not run yet is looked at again soon."""
        now = time.monotonic()
        waits = [0.05 if math.isinf(job.late_at) else job.late_at - now for job in self._pending.values()]
        return max(0.001, min(waits, default=0.05))

    def _start_thread(self) -> None:
        self._num_threads += 1
        threading.Thread(target=self._work, name="posttrain-environment", daemon=True).start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if not job.begin():
                continue
            try:
                value = job.work()
                in_time = self._await(job, value) if inspect.isawaitable(value) else self._end(job, value=value)
            except BaseException as error:  # whatever a user's environment raises belongs to its own episode
                in_time = self._end(job, error=error)
            if not in_time:
                return  # this thread was counted as lost

    def _await(self, job: _Job, value: Any) -> bool:
        """Hands a coroutine to an event loop; False where its job was abandoned."""
        left, job.late_at = job.late_at - time.monotonic(), math.inf  # a loop that is blocked takes none of its time
        loop = self._loops.running()
        with job.lock:
            if not job.is_over:
                job.late_at = time.monotonic() + left
                job.awaited = asyncio.run_coroutine_threadsafe(self._finish(job, value), loop)
                return True
        _drop(value)
        return self._end(job)

    async def _finish(self, job: _Job, value: Any) -> None:
        """Only here has an abandoned coroutine ended: its future is cancelled before it unwinds."""
        if job.is_over:
            _drop(value)
            self._end(job)
        else:
            try:
                self._end(job, value=await value)
            except asyncio.CancelledError:
                self._end(job, error=TimeoutError("was cancelled"))
            except BaseException as error:  # SystemExit too: it would end the loop
                self._end(job, error=error)
        self._aside.settle(job)

    def _end(self, job: _Job, *, value: Any = None, error: BaseException | None = None) -> bool:
        """Hands the outcome over; False where it comes too late."""
        assert job.started is not None
        with job.lock:  # held for `put` too: no outcome comes after `abandon_all`
            in_time, job.is_over = not job.is_over, True
            if in_time:
                seconds = time.monotonic() - job.started
                self._outcomes.put(Outcome(key=job.key, value=value, error=error, seconds=seconds))
        if not in_time:
            self._clean_up(job)
        return in_time

    def _clean_up(self, job: _Job) -> None:
        if job.if_abandoned is not None:
            self._aside.start(job.if_abandoned)


def _drop(value: Any) -> None:
    """A coroutine that will not be run says nothing of it."""
    if inspect.iscoroutine(value):
        value.close()
