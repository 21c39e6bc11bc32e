"""Threads on which environments work while the engine samples: with deadlines, and none of them can hang the run."""

import asyncio
import inspect
import logging
import math
import queue
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

from posttrain.environments.event_loops import EventLoops
from posttrain.rollout.aside_work import AsideWork
from posttrain.rollout.environment_jobs import Job, Late, Outcome, Stand

_log = logging.getLogger(__name__)

MAX_THREADS = 512
"""Environments that are at work at once, each on a thread: those that wait, for a network or a clock, are cheap. One
whose own methods are coroutines holds no thread."""
_FIRST_THREADS = 16
"""More only make tools that compute, and the engine beside them, take turns."""
_LONG_WAIT_S = 0.1
"""Tools that wait keep jobs waiting for a thread: then there are twice as many, as often as it takes."""
_CLOSE_S = 10.0
"""What is done aside has so long, all of it together, when the workers close."""


class EnvironmentWorkers:
    """Runs jobs, plain functions and coroutine functions alike; `ready` gives what has ended.

    A job that does not answer within its deadline is abandoned: its thread cannot be stopped, but nobody waits for it,
    another takes its place, and a daemon thread does not keep the process alive. An abandoned coroutine is cancelled.
    Coroutines run in one event loop, on a thread of its own, so that a client session made by one call serves the next;
    while one of them blocks it, later ones run in another. Used by one thread.
    """

    def __init__(self, max_threads: int = MAX_THREADS) -> None:
        self._max_threads = max_threads
        self._parts: queue.SimpleQueue[Callable[[], bool] | None] = queue.SimpleQueue()
        """Of jobs; each says whether its thread is still one of ours."""
        self._outcomes: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
        self._pending: dict[int, Job] = {}
        self._num_threads = 0
        self._helped_out = -math.inf
        self._loops = EventLoops("posttrain-environment-loop")
        self._aside = AsideWork(self._loops)

    @property
    def num_pending(self) -> int:
        return len(self._pending)

    def submit(
        self,
        key: int,
        work: Callable[[], Any],
        *,
        timeout_s: float,
        then: Callable[[Any], Any] = lambda answer: answer,
        if_abandoned: Callable[[], Any] | None = None,
    ) -> None:
        """key: of one job at a time. then: makes the outcome's value of the answer, on a thread and never in an event
        loop, and the deadline does not count it. if_abandoned: called aside, to clean up, when an abandoned job has
        ended after all, or at once where it was not at work."""
        job = Job(key=key, work=work, then=then, timeout_s=timeout_s, if_abandoned=if_abandoned)
        self._pending[key] = job
        if self._num_threads < min(self._max_threads, _FIRST_THREADS, len(self._pending)):
            self._start_thread()
        self._parts.put(partial(self._begin, job))

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
            self._parts.put(None)
        self._num_threads = 0
        if num_left := self._aside.wait(_CLOSE_S):
            _log.warning("%d environments had not closed after %g s", num_left, _CLOSE_S)
        self._loops.stop()

    def _abandon_late(self) -> list[Outcome]:
        late: list[Outcome] = []
        for job in list(self._pending.values()):
            if time.monotonic() < job.late_at or not self._abandon(job, only_late=True):
                continue
            del self._pending[job.key]
            late.append(
                Outcome(key=job.key, error=Late(f"gave no answer within {job.timeout_s:g} s"), seconds=job.seconds)
            )
            if job.awaited is None and self._pending:
                self._start_thread()
        return late

    def _abandon(self, job: Job, *, only_late: bool = False) -> bool:
        """False where it has answered."""
        with job.lock:
            stood = job.stand
            if stood is Stand.OVER or (only_late and time.monotonic() < job.late_at):
                return False
            job.stand = Stand.OVER
            if stood is Stand.LOOP:
                self._aside.expect(job)  # `close` gives it time to unwind, and to be cleaned up
        match stood:
            case Stand.QUEUE:
                self._clean_up(job)
            case Stand.THREAD:
                self._num_threads -= 1  # that thread is lost
            case Stand.LOOP:
                assert job.awaited is not None
                job.awaited.cancel()
        return True

    def _help_out(self) -> None:
        """More threads where jobs have waited for one for long."""
        now = time.monotonic()
        if self._num_threads >= self._max_threads or now - self._helped_out < _LONG_WAIT_S:
            return
        num_waiting = sum(
            job.stand is Stand.QUEUE and now - job.queued > _LONG_WAIT_S for job in self._pending.values()
        )
        if num_waiting:
            self._helped_out = now
            for _ in range(min(num_waiting, max(1, self._num_threads), self._max_threads - self._num_threads)):
                self._start_thread()

    def _next_deadline(self) -> float:
        """Seconds until a job may be late; one whose time does not run is looked at again soon."""
        now = time.monotonic()
        waits = [0.05 if math.isinf(job.late_at) else job.late_at - now for job in self._pending.values()]
        return max(0.001, min(waits, default=0.05))

    def _start_thread(self) -> None:
        self._num_threads += 1
        threading.Thread(target=self._work, name="posttrain-environment", daemon=True).start()

    def _work(self) -> None:
        while (part := self._parts.get()) is not None:
            if not part():
                return  # this thread was counted as lost

    def _begin(self, job: Job) -> bool:
        if not job.begin():
            return True
        try:
            answer = job.work()
            if inspect.isawaitable(answer):
                return self._await(job, answer)
        except BaseException as error:  # whatever a user's environment raises belongs to its own episode
            return self._end(job, error=error)
        return self._follow_up(job, answer) if job.answer(Stand.THREAD) else self._end(job)

    def _await(self, job: Job, coroutine: Any) -> bool:
        """Hands a coroutine to an event loop; False where its job was abandoned."""
        left, job.late_at = job.late_at - time.monotonic(), math.inf  # a loop that is blocked takes none of its time
        loop = self._loops.running()
        with job.lock:
            if job.stand is not Stand.OVER:
                job.late_at, job.stand = time.monotonic() + left, Stand.LOOP
                job.awaited = asyncio.run_coroutine_threadsafe(self._finish(job, coroutine), loop)
                return True
        _drop(coroutine)
        return self._end(job)

    async def _finish(self, job: Job, coroutine: Any) -> None:
        """Only here has an abandoned coroutine ended: its future is cancelled before it unwinds."""
        if job.stand is Stand.OVER:
            _drop(coroutine)
            self._end(job)
        else:
            try:
                answer = await coroutine
            except asyncio.CancelledError:
                self._end(job, error=TimeoutError("was cancelled"))
            except BaseException as error:  # SystemExit too: it would end the loop
                self._end(job, error=error)
            else:
                if job.answer(Stand.QUEUE):  # the loop is for those that wait
                    self._parts.put(partial(self._go_on, job, answer))
                else:
                    self._end(job)
        self._aside.settle(job)

    def _go_on(self, job: Job, answer: Any) -> bool:
        return self._follow_up(job, answer) if job.go_on() else True

    def _follow_up(self, job: Job, answer: Any) -> bool:
        try:
            value = job.then(answer)
        except BaseException as error:  # an answer of which nothing can be made is its environment's fault
            return self._end(job, error=error)
        return self._end(job, value=value)

    def _end(self, job: Job, *, value: Any = None, error: BaseException | None = None) -> bool:
        """Hands the outcome over; False where it comes too late."""
        with job.lock:  # held for `put` too: no outcome comes after `abandon_all`
            in_time = job.stand is not Stand.OVER
            job.stand = Stand.OVER
            if in_time:
                self._outcomes.put(Outcome(key=job.key, value=value, error=error, seconds=job.seconds))
        if not in_time:
            self._clean_up(job)
        return in_time

    def _clean_up(self, job: Job) -> None:
        if job.if_abandoned is not None:
            self._aside.start(job.if_abandoned)


def _drop(coroutine: Any) -> None:
    """One that will not be run says nothing of it."""
    if inspect.iscoroutine(coroutine):
        coroutine.close()
