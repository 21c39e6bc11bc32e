"""One worker as the pool sees it: a nursery process, its child that runs the jobs, and the pipes to both."""

import json
import os
import select
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from typing import Any

from . import worker_process

START_DEADLINE_S = 120.0
"""For starting a worker and importing what it runs; on a cold, busy disk this takes many seconds."""
END_DEADLINE_S = 10.0
"""For a worker to notice that its child was killed; then it is killed as a whole."""


class JobRaisedError(Exception):
    """The job's function raised; its process is well."""


class ChildDiedError(Exception):
    """The process that ran the job is gone: it was killed at the deadline, or ended by itself."""

    def __init__(self, message: str, *, timed_out: bool) -> None:
        super().__init__(message)
        self.timed_out = timed_out


class Worker:
    """A pair of processes, started at once; used by one thread at a time."""

    def __init__(self, memory_limit_bytes: int) -> None:
        serve = f"from {worker_process.__name__} import serve; serve({memory_limit_bytes})"
        # a fixed hash seed: sympy orders sets by hash, and the same answer must get the same verdict in every worker
        self._process = subprocess.Popen(
            [sys.executable, "-c", f"import sys; sys.path[:] = {sys.path!r}; {serve}"],
            bufsize=0,
            env={**os.environ, "PYTHONHASHSEED": "0"},
            process_group=0,  # one signal reaches the child as well; Ctrl-C in the terminal reaches neither
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        assert self._process.stdin is not None and self._process.stdout is not None
        self._to, self._from = self._process.stdin.fileno(), self._process.stdout.fileno()
        os.set_blocking(self._to, False)
        self._received = bytearray()
        self._loaded: set[str] = set()
        self._child_pid: int | None = None

    def is_alive(self) -> bool:
        return self._process.poll() is None

    def load(self, function: str) -> None:
        """Imports "module:function". Raises `RuntimeError` where that fails."""
        if function in self._loaded:
            return
        try:
            self._ask({"load": function}, START_DEADLINE_S)
        except (JobRaisedError, ChildDiedError) as error:
            raise RuntimeError(f"no worker process can run {function}: {error}") from None
        self._loaded.add(function)

    def call(self, function: str, arguments: Sequence[Any], deadline_s: float) -> Any:
        """The function's value. Raises `JobRaisedError`, or `ChildDiedError`; then the next job gets a new child."""
        return self._ask({"call": function, "args": list(arguments), "deadline_s": deadline_s}, deadline_s)

    def kill(self) -> None:
        """Ends nursery and child."""
        if self.is_alive():
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def _ask(self, request: dict[str, Any], deadline_s: float) -> Any:
        ends = time.monotonic() + deadline_s
        try:
            self._write(json.dumps(request).encode() + b"\n", ends)
            reply = self._reply(ends)
        except TimeoutError:
            self._kill_child()
            raise ChildDiedError(f"ran past its deadline of {deadline_s:g} s", timed_out=True) from None
        except (BrokenPipeError, EOFError):
            self.kill()
            raise ChildDiedError("killed its worker process", timed_out=False) from None
        if "died" in reply:
            self._child_pid = None
            raise ChildDiedError(reply["died"], timed_out=False)
        if "error" in reply:
            raise JobRaisedError(reply["error"])
        return reply["value"]

    def _kill_child(self) -> None:
        """Ends the child, and waits until the nursery has noticed; ends both where that is not possible."""
        if self._child_pid is None:
            self.kill()
            return
        try:
            os.kill(self._child_pid, signal.SIGKILL)  # the nursery has not reaped it: the pid is still its own
            while "died" not in self._reply(time.monotonic() + END_DEADLINE_S):
                pass  # an answer that came too late
        except (TimeoutError, BrokenPipeError, EOFError, ProcessLookupError):
            self.kill()
        self._child_pid = None

    def _reply(self, ends: float) -> dict[str, Any]:
        while True:
            line = self._read_line(ends)
            try:
                reply = json.loads(line)
            except ValueError:
                continue  # an answer that the child's end cut off, or the empty line after it
            if "pid" not in reply:
                return reply
            self._child_pid = reply["pid"]

    def _read_line(self, ends: float) -> bytes:
        while (end := self._received.find(b"\n")) < 0:
            _wait(self._from, select.POLLIN, ends)
            piece = os.read(self._from, 1 << 16)
            if not piece:
                raise EOFError
            self._received += piece
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    def _write(self, line: bytes, ends: float) -> None:
        rest = memoryview(line)
        while rest:
            _wait(self._to, select.POLLOUT, ends)
            rest = rest[os.write(self._to, rest) :]


def _wait(descriptor: int, event: int, ends: float) -> None:
    """Returns when the pipe is ready. Raises `TimeoutError` at `ends`, a time of the monotonic clock."""
    poll = select.poll()
    poll.register(descriptor, event)
    if not poll.poll(max(ends - time.monotonic(), 0.0) * 1000):
        raise TimeoutError
