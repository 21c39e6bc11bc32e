"""Threads on which environments work while the engine samples: with deadlines, and none of them can hang the run."""

import asyncio
import inspect
import queue
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import Any

MAX_THREADS = 64
_FIRST_THREADS = 16
"""More only make tools that compute, and the engine beside them, take turns."""
_LONG_WAIT_S = 0.1
"""Tools that wait, for a network or a clock, keep jobs waiting for a thread: then another one helps."""


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


@dataclass(slots=True, kw_only=True)
class _Job:
    key: int
    work: Callable[[], Any]
    timeout_s: float
    if_abandoned: Callable[[], Any] | None
    submitted: float = field(default_factory=time.monotonic)
    started: float | None = None
    awaited: "Future[Any] | None" = None
    """Of a coroutine, which holds no thread while it waits."""
    is_over: bool = False
    """Answered or abandoned, whichever came first."""
    lock: threading.Lock = field(default_factory=threading.Lock)


class EnvironmentWorkers:
    """Runs jobs, plain functions and coroutine functions alike; `ready` gives what has ended.

    A job that does not answer within its deadline is abandoned: its thread cannot be stopped, but nobody waits for it,
    another takes its place, and a daemon thread does not keep the process alive. Coroutines all run in one event loop,
    on a thread of its own, so that a client session made by one call serves the next. Used by one thread.
    """

    def __init__(self, max_threads: int = MAX_THREADS) -> None:
        self._max_threads = max_threads
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._pending: dict[int, _Job] = {}
        self._num_threads = 0
        self._loop: asyncio.AbstractEventLoop | None = None
        self._loop_lock = threading.Lock()

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    def submit(
        self, key: int, work: Callable[[], Any], *, timeout_s: float, if_abandoned: Callable[[], Any] | None = None
    ) -> None:
        """key: of one job at a time. if_abandoned: called when an abandoned job comes back after all, to clean up."""
        job = _Job(key=key, work=work, timeout_s=timeout_s, if_abandoned=if_abandoned)
        self._pending[key] = job
        if self._num_threads < min(self._max_threads, _FIRST_THREADS, len(self._pending)):
            self._start_thread()
        self._jobs.put(job)

    def aside(self, work: Callable[[], Any]) -> None:
        """Runs something whose outcome nobody waits for, on a thread of its own."""

        def run() -> None:
            value = work()
            if inspect.isawaitable(value):
                asyncio.run_coroutine_threadsafe(_awaited(value), self._event_loop())

        threading.Thread(target=run, name="posttrain-environment-aside", daemon=True).start()

    def abandon_all(self) -> None:
        """Waits for nothing that is still pending."""
        for job in self._pending.values():
            with job.lock:
                job.is_over = True
            if job.awaited is None and job.started is not None:
                self._num_threads -= 1
        self._pending.clear()
        while not self._outcomes.empty():
            self._outcomes.get()

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
        """Lets idle threads end; jobs that still run are left behind."""
        for _ in range(self._num_threads):
            self._jobs.put(None)
        self._num_threads = 0
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._loop = None

    def _abandon_late(self) -> list[Outcome]:
        late: list[Outcome] = []
        now = time.monotonic()
        for job in list(self._pending.values()):
            with job.lock:
                if job.is_over or job.started is None or now - job.started < job.timeout_s:
                    continue
                job.is_over = True
            del self._pending[job.key]
            error = Late(f"gave no answer within {job.timeout_s:g} s")
            late.append(Outcome(key=job.key, error=error, seconds=now - job.started))
            if job.awaited is not None:
                job.awaited.cancel()
            else:
                self._num_threads -= 1  # that thread is lost
                if self._pending:
                    self._start_thread()
        return late

    def _help_out(self) -> None:
        """One more thread where a job has waited for one for long."""
        if self._num_threads >= self._max_threads:
            return
        now = time.monotonic()
        if any(job.started is None and now - job.submitted > _LONG_WAIT_S for job in self._pending.values()):
            self._start_thread()

    def _next_deadline(self) -> float:
        """Seconds until a job may be late; one that has not started yet is looked at again soon."""
        now = time.monotonic()
        waits = [0.05 if job.started is None else job.started + job.timeout_s - now for job in self._pending.values()]
        return max(0.001, min(waits, default=0.05))

    def _start_thread(self) -> None:
        self._num_threads += 1
        threading.Thread(target=self._work, name="posttrain-environment", daemon=True).start()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            job.started = time.monotonic()
            try:
                value = job.work()
            except BaseException as error:  # whatever a user's environment raises belongs to its own episode
                is_in_time = self._end(job, error=error)
            else:
                if inspect.isawaitable(value):
                    self._await(job, value)
                    continue
                is_in_time = self._end(job, value=value)
            if not is_in_time:
                return  # another thread has taken its place

    def _await(self, job: _Job, value: Any) -> None:
        job.awaited = asyncio.run_coroutine_threadsafe(_awaited(value), self._event_loop())

        def when_done(future: "Future[Any]") -> None:
            if future.cancelled():
                self._end(job, error=TimeoutError("was cancelled"))
            elif (error := future.exception()) is not None:
                self._end(job, error=error)
            else:
                self._end(job, value=future.result())

        job.awaited.add_done_callback(when_done)

    def _end(self, job: _Job, *, value: Any = None, error: BaseException | None = None) -> bool:
        """Hands the outcome over; False where it comes too late."""
        assert job.started is not None
        with job.lock:
            in_time, job.is_over = not job.is_over, True
        if in_time:
            seconds = time.monotonic() - job.started
            self._outcomes.put(Outcome(key=job.key, value=value, error=error, seconds=seconds))
        elif job.if_abandoned is not None:
            job.if_abandoned()
        return in_time

    def _event_loop(self) -> asyncio.AbstractEventLoop:
        with self._loop_lock:
            if self._loop is None:
                self._loop = asyncio.new_event_loop()
                threading.Thread(target=self._loop.run_forever, name="posttrain-environment-loop", daemon=True).start()
            return self._loop


async def _awaited(value: Any) -> Any:
    return await value
