"""Killable worker processes: a verdict that hangs or crashes costs one deadline, never the run.

Not `multiprocessing`: its children import the main script again, which imports torch, and fork breaks CUDA and threads.
Not `signal.alarm`: it works on the main thread alone, and cannot stop a computation inside C.
"""

import atexit
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from . import worker_process

START_DEADLINE_S = 120.0
"""For starting a worker and importing what it runs; on a cold, busy disk this takes many seconds."""


class WorkerError(RuntimeError):
    """A job without a result: it ran past its deadline, its process died, or it raised."""


class WorkerPool:
    """Up to `num_workers` processes, started when first needed; usable from any thread.

    A job is the name of a function, "module:function", and arguments that JSON can carry. The function is imported
    before the clock starts, so that a deadline is about the job alone.
    """

    def __init__(self, num_workers: int | None = None) -> None:
        self.num_workers = num_workers or min(4, os.cpu_count() or 1)
        self.num_timeouts = 0
        self.num_crashes = 0
        self._free = threading.BoundedSemaphore(self.num_workers)
        self._lock = threading.Lock()
        self._idle: list[_Worker] = []
        self._alive: set[_Worker] = set()

    def run(self, function: str, *arguments: Any, deadline_s: float) -> Any:
        """What `function(*arguments)` returns in a worker.

        Raises `WorkerError` at the deadline (wall-clock seconds; waiting for a free worker does not count), where the
        process dies, and where the function raises. Raises `RuntimeError` where the function cannot be imported.
        """
        with self._free:
            worker = self._take()
            reusable = False
            try:
                worker.load(function)
                value = worker.call(function, arguments, deadline_s)
                reusable = True
                return value
            except _JobRaised as error:
                reusable = True
                raise WorkerError(str(error)) from None
            except _WorkerDied as error:
                with self._lock:
                    self.num_timeouts += error.timed_out
                    self.num_crashes += not error.timed_out
                raise WorkerError(str(error)) from None
            finally:
                self._give_back(worker, reusable)

    def run_many(self, function: str, jobs: Sequence[Sequence[Any]], *, deadline_s: float) -> list[Any | WorkerError]:
        """The result of `function(*job)` for each job, in order; a job without one gives its `WorkerError`."""
        if not jobs:
            return []

        def run_one(job: Sequence[Any]) -> Any | WorkerError:
            try:
                return self.run(function, *job, deadline_s=deadline_s)
            except WorkerError as error:
                return error

        with ThreadPoolExecutor(min(len(jobs), self.num_workers)) as threads:
            return list(threads.map(run_one, jobs))

    def close(self) -> None:
        """Kills every worker; jobs that are running fail. The pool starts new ones if it is used again."""
        with self._lock:
            workers, self._alive, self._idle = self._alive, set(), []
        for worker in workers:
            worker.kill()

    def _take(self) -> "_Worker":
        with self._lock:
            while self._idle:
                worker = self._idle.pop()
                if worker.is_alive():
                    return worker
                self._alive.discard(worker)
            worker = _Worker()
            self._alive.add(worker)
            return worker

    def _give_back(self, worker: "_Worker", reusable: bool) -> None:
        with self._lock:
            if reusable and worker in self._alive:  # close() may have run meanwhile
                self._idle.append(worker)
                return
            self._alive.discard(worker)
        worker.kill()


def shared_pool() -> WorkerPool:
    """The process's own pool, closed at exit. A forked child gets a new one: its parent's pipes are not its own."""
    return _pools.setdefault(os.getpid(), WorkerPool())


_pools: dict[int, WorkerPool] = {}


@atexit.register
def _close_shared_pool() -> None:
    if pool := _pools.get(os.getpid()):
        pool.close()


class _JobRaised(Exception):
    """The job's function raised; its process is well."""


class _WorkerDied(Exception):
    def __init__(self, message: str, *, timed_out: bool) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class _Worker:
    """One child process and the pipes to it; used by one thread at a time."""

    def __init__(self) -> None:
        code = f"import sys; sys.path[:] = {sys.path!r}; from {worker_process.__name__} import serve; serve()"
        # a fixed hash seed: sympy orders sets by hash, and the same answer must get the same verdict in every worker
        environment = {**os.environ, "PYTHONHASHSEED": "0"}
        self._process = subprocess.Popen(
            [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        self._loaded: set[str] = set()
        self._killed = False

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def load(self, function: str) -> None:
        if function in self._loaded:
            return
        try:
            self._ask({"load": function}, START_DEADLINE_S)
        except (_JobRaised, _WorkerDied) as error:
            raise RuntimeError(f"no worker process can run {function}: {error}") from None
        self._loaded.add(function)

    def call(self, function: str, arguments: Sequence[Any], deadline_s: float) -> Any:
        return self._ask({"call": function, "args": list(arguments), "deadline_s": deadline_s}, deadline_s)

    def kill(self) -> None:
        self._killed = True
        self._process.kill()
        self._process.wait()

    def _ask(self, request: dict[str, Any], deadline_s: float) -> Any:
        line = json.dumps(request).encode() + b"\n"
        timer = threading.Timer(deadline_s, self.kill)
        timer.daemon = True
        started = time.monotonic()
        timer.start()
        try:
            answer = self._exchange(line)
        finally:
            timer.cancel()
            timer.join()  # a kill that has begun is over before the next job can meet it
        if self._killed or not answer.endswith(b"\n"):
            timed_out = time.monotonic() - started >= deadline_s
            what = f"ran past its deadline of {deadline_s:g} s" if timed_out else "killed its worker process"
            raise _WorkerDied(what, timed_out=timed_out)
        reply = json.loads(answer)
        if "error" in reply:
            raise _JobRaised(reply["error"])
        return reply["value"]

    def _exchange(self, line: bytes) -> bytes:
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None and stdout is not None
        try:
            stdin.write(line)
            stdin.flush()
            return stdout.readline()
        except (BrokenPipeError, ConnectionResetError):
            return b""
