"""Killable worker processes: a verdict that hangs or crashes costs one deadline, never the run.

Not `multiprocessing`: its children import the main script again, which imports torch, and fork breaks CUDA and threads.
Not `signal.alarm`: it works on the main thread alone, and cannot stop a computation inside C.
"""

import atexit
import os
import queue
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from typing import Any

from .worker import ChildDiedError, JobRaisedError, Worker

MAX_WORKERS = 16
"""Each holds sympy, a tenth of a gigabyte, once it has compared an answer."""
MEMORY_LIMIT_BYTES = 4 * 2**30
"""Address space of a worker on Linux: an answer such as 9^(9^(9^9)) must not eat the trainer's memory."""


class WorkerError(RuntimeError):
    """A job without a result: it ran past its deadline, its process died, or it raised."""


class WorkerPool:
    """Up to `num_workers` processes, started when first needed; usable from any thread and any event loop.

    A job is the name of a function, "module:function", and arguments that JSON can carry. The function is imported
    before the clock starts, so that a deadline is about the job alone. `num_jobs`, `num_timeouts` and `num_crashes`
    count what has ended so far.
    """

    def __init__(self, num_workers: int | None = None, *, memory_limit_bytes: int = MEMORY_LIMIT_BYTES) -> None:
        self.num_workers = num_workers or default_num_workers()
        self.memory_limit_bytes = memory_limit_bytes
        self.num_jobs = 0
        self.num_timeouts = 0
        self.num_crashes = 0
        self._free = threading.BoundedSemaphore(self.num_workers)
        self._lock = threading.Lock()
        self._idle: list[Worker] = []
        self._alive: set[Worker] = set()
        self._waiting: queue.SimpleQueue[tuple[Future[Any], str, tuple[Any, ...], float]] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []

    @property
    def timeout_rate(self) -> float:
        """Share of the jobs so far that ran past their deadline, in [0, 1]; 0 before the first."""
        return self.num_timeouts / max(self.num_jobs, 1)

    def run(self, function: str, *arguments: Any, deadline_s: float) -> Any:
        """What `function(*arguments)` returns in a worker.

        Raises `WorkerError` at the deadline (wall-clock seconds; waiting for a free worker does not count), where the
        process dies, and where the function raises. Raises `RuntimeError` where the function cannot be imported.
        """
        with self._free:
            worker = self._take()
            timed_out = crashed = False
            try:
                worker.load(function)
                return worker.call(function, arguments, deadline_s)
            except JobRaisedError as error:
                raise WorkerError(str(error)) from None
            except ChildDiedError as error:
                timed_out, crashed = error.timed_out, not error.timed_out
                raise WorkerError(str(error)) from None
            finally:
                with self._lock:
                    self.num_jobs += 1
                    self.num_timeouts += timed_out
                    self.num_crashes += crashed
                self._give_back(worker)

    def submit(self, function: str, *arguments: Any, deadline_s: float) -> "Future[Any]":
        """`run` as a future, at once. Cancelling it before it has begun takes the job back."""
        future: Future[Any] = Future()
        self._waiting.put((future, function, arguments, deadline_s))
        with self._lock:
            if (
                len(self._threads) < self.num_workers
            ):  # daemons: a hanging job must not keep the interpreter from ending
                self._threads.append(threading.Thread(target=self._run_waiting, daemon=True))
                self._threads[-1].start()
        return future

    async def run_async(self, function: str, *arguments: Any, deadline_s: float) -> Any:
        """`run` without blocking the event loop."""
        import asyncio

        return await asyncio.wrap_future(self.submit(function, *arguments, deadline_s=deadline_s))

    def run_many(self, function: str, jobs: Sequence[Sequence[Any]], *, deadline_s: float) -> list[Any | WorkerError]:
        """The result of `function(*job)` for each job, in order; a job without one gives its `WorkerError`."""
        futures = [self.submit(function, *job, deadline_s=deadline_s) for job in jobs]
        try:
            return [_outcome(future) for future in futures]
        finally:
            for future in futures:
                future.cancel()  # those that are left where the function cannot be imported

    def close(self) -> None:
        """Kills every worker; jobs that are running fail. The pool starts new ones if it is used again."""
        with self._lock:
            workers, self._alive, self._idle = self._alive, set(), []
        for worker in workers:
            worker.kill()

    def _run_waiting(self) -> None:
        while True:
            future, function, arguments, deadline_s = self._waiting.get()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                value = self.run(function, *arguments, deadline_s=deadline_s)
            except BaseException as error:  # belongs to whoever waits for the future
                future.set_exception(error)
            else:
                future.set_result(value)

    def _take(self) -> "Worker":
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.is_alive():
                    return worker
                self._alive.discard(worker)
            worker = Worker(self.memory_limit_bytes)
            self._alive.add(worker)
            return worker

    def _give_back(self, worker: "Worker") -> None:
        with self._lock:
            if worker in self._alive and worker.is_alive():  # close() may have run meanwhile
                self._idle.append(worker)
                return
            self._alive.discard(worker)
        worker.kill()


def default_num_workers() -> int:
    """One for each core that this process may use, shared with the other ranks of the machine; 16 at most."""
    usable = len(os.sched_getaffinity(0)) if sys.platform == "linux" else os.cpu_count() or 1
    return max(1, min(MAX_WORKERS, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1"))))


def shared_pool() -> WorkerPool:
    """The process's own pool, closed at exit. A forked child gets a new one: its parent's pipes are not its own."""
    return _pools.setdefault(os.getpid(), WorkerPool())


_pools: dict[int, WorkerPool] = {}


@atexit.register
def _close_shared_pool() -> None:
    if pool := _pools.get(os.getpid()):
        pool.close()


def _outcome(future: "Future[Any]") -> Any | WorkerError:
    try:
        return future.result()
    except WorkerError as error:
        return error
