"""Starting confined processes, waiting for them, and ending them: the parent's side of the sandbox."""

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO, Any, Literal

LAYERS = ("namespaces", "landlock", "seccomp")
"""What the kernel can do; see `confine`."""
_FOLDER = str(Path(__file__).resolve().parent.parent)
_STARTUP_S = 30.0
"""For Python to start and the process to confine itself, before the answer's own time begins."""
_MAX_ERROR_BYTES = 65_536

Child = Literal["program", "tester"]


class SandboxError(RuntimeError):
    """The sandbox itself failed; nothing is known about the program."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What one process may use."""

    deadline_s: float
    """Wall-clock seconds; as much processor time."""
    memory_bytes: int
    """Address space, the interpreter's share included."""
    output_bytes: int = 2**20
    """On stdout, and on stderr."""
    packages: bool = False
    """Whether installed packages can be imported, or the standard library alone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a program ended."""

    output: bytes
    """What it wrote on stdout, up to `output_bytes`."""
    problem: str
    """Why it is no success: its last line on stderr, or what ended it; empty where it ended by itself with status 0."""


def run_program(code: str, stdin: bytes, limits: Limits) -> Ended:
    """Runs a Python program with this input. Raises `SandboxError` where it could not be started."""
    with _Confined("program", {"code": code}, limits, stdin=stdin) as process:
        process.wait_until_ready()
        problem = "" if process.wait(time.monotonic() + limits.deadline_s) else "ran past its deadline"
        return Ended(output=process.output(), problem=problem or process.problem())


def run_tests(
    code: str, tests: Sequence[str], names: Sequence[str], limits: Limits, *, ends: float
) -> Iterator[tuple[bool, str]]:
    """Runs tests one after the other against the functions of one process; yields whether each passed, and why not.

    Ends early where a test ended the process or ran past the deadline, after saying so, and at `ends` on the monotonic
    clock. `names` are taken from the answer even where Python has them built in. Raises `SandboxError`.
    """
    to_answer, to_tester = os.pipe(), os.pipe()
    of_answer, of_tester = (to_answer[0], to_tester[1]), (to_tester[0], to_answer[1])
    with contextlib.ExitStack() as stack:
        closing = stack.enter_context(contextlib.ExitStack())
        for end in (*to_answer, *to_tester):
            closing.callback(os.close, end)
        setup = {"tests": list(tests), "names": list(names)}
        answer = stack.enter_context(_Confined("program", {"code": code}, limits, pipes=of_answer))
        tester = stack.enter_context(_Confined("tester", setup, limits, pipes=of_tester, times=len(tests)))
        closing.close()  # each end is now the child's alone, so that its end is noticed
        answer.wait_until_ready()
        tester.wait_until_ready()
        for _ in tests:
            line = tester.line(min(time.monotonic() + limits.deadline_s, ends))
            if not line:
                yield False, "ran past its deadline" if line is None else f"the tests ended: {tester.problem()}"
                return
            report = json.loads(line)
            yield report["passed"], report["why"]
            if report["gone"]:
                return


@cache
def layers_in_force() -> tuple[str, ...]:
    """Which of `LAYERS` confine a program on this machine; raises `SandboxError` where none can be started."""
    if sys.platform != "linux":
        raise SandboxError(f"programs run in a sandbox of the Linux kernel; this is {sys.platform}")
    with _Confined("program", {"code": ""}, Limits(deadline_s=10, memory_bytes=2**29)) as process:
        return tuple(process.wait_until_ready())


class _Confined:
    """One child with its files, its group and its status pipe; the whole group is killed when the block is left."""

    def __init__(
        self,
        child: Child,
        setup: dict[str, Any],
        limits: Limits,
        *,
        stdin: bytes = b"",
        pipes: tuple[int, int] | None = None,
        times: int = 1,
    ) -> None:
        self._limits = limits
        self._setup = {
            **setup,
            "limits": {
                "cpu_s": int(limits.deadline_s * times) + 2,
                "memory_bytes": limits.memory_bytes,
                "output_bytes": limits.output_bytes,
                "folders": _package_folders() if limits.packages else [],
            },
        }
        if pipes is not None:
            self._setup["pipes"] = pipes
        self._child, self._stdin, self._pipes = child, stdin, pipes or ()
        self._stack = contextlib.ExitStack()
        self._received = bytearray()

    def __enter__(self) -> "_Confined":
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="program-"))
            setup, stdin = self._file(stack, json.dumps(self._setup).encode()), self._file(stack, self._stdin)
            self._output, self._errors = self._file(stack, b""), self._file(stack, b"")
            self._status, status_of_child = os.pipe()
            stack.callback(os.close, self._status)
            descriptors = (setup.fileno(), status_of_child, *self._pipes)
            start = f"from sandbox.{self._child} import main; del sys.path[0]; main({descriptors[0]}, {descriptors[1]})"
            # as -I isolates, but with the hash seed fixed: the same program gets the same verdict
            flags = ["-s", "-P", "-X", "utf8"] if self._limits.packages else ["-s", "-P", "-S", "-X", "utf8"]
            try:
                self._process = subprocess.Popen(
                    [sys.executable, *flags, "-c", f"import sys; sys.path.insert(0, {_FOLDER!r}); {start}"],
                    cwd=folder,
                    env={"PYTHONHASHSEED": "0", "OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
                    pass_fds=descriptors,
                    start_new_session=True,
                    stderr=self._errors,
                    stdin=stdin,
                    stdout=self._output,
                )
            except OSError as error:
                raise SandboxError(f"no process could be started: {error}") from error
            finally:
                os.close(status_of_child)
            stack.callback(self._kill)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def wait_until_ready(self) -> list[str]:
        """The layers that confine the process, which now begins with what it is there for."""
        line = self.line(time.monotonic() + _STARTUP_S)
        if not line:
            raise SandboxError(f"a process could not confine itself: {self._last_error() or 'it said nothing'}")
        return json.loads(line)

    def line(self, ends: float) -> bytes | None:
        """The next line of its status; empty where it has ended, None where the time (monotonic clock) has come."""
        poll = select.poll()
        poll.register(self._status, select.POLLIN)
        while (end := self._received.find(b"\n")) < 0:
            if not poll.poll(max(ends - time.monotonic(), 0.0) * 1000):
                return None
            piece = os.read(self._status, 1 << 16)
            if not piece:
                return b""
            self._received += piece
        line = bytes(self._received[:end])
        del self._received[: end + 1]
        return line

    def wait(self, ends: float) -> bool:
        """Whether it ended before that time."""
        while (line := self.line(ends)) != b"":
            if line is None:
                return False
            self._received.clear()  # whatever a program writes there says nothing
        return True

    def output(self) -> bytes:
        self._output.seek(0)
        return self._output.read(self._limits.output_bytes)

    def problem(self) -> str:
        """Why it ended otherwise than well; it has ended, or is about to."""
        self._kill()
        status = self._process.returncode
        if status < 0:
            name = signal.Signals(-status).name
            return "ran out of processor time" if name == "SIGXCPU" else f"ended by {name}"
        return (self._last_error() or f"ended with status {status}") if status else ""

    def _last_error(self) -> str:
        size = self._errors.seek(0, os.SEEK_END)
        self._errors.seek(max(size - _MAX_ERROR_BYTES, 0))
        lines = self._errors.read(_MAX_ERROR_BYTES).decode(errors="replace").strip().splitlines()
        return lines[-1][:300] if lines else ""

    def _kill(self) -> None:
        """Ends the process and its group. One that is ending keeps the status that it has."""
        if self._process.returncode is None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def _file(self, stack: contextlib.ExitStack, content: bytes) -> IO[bytes]:
        """An open file without a name; a pipe would block whoever writes more than its reader takes."""
        file = stack.enter_context(tempfile.TemporaryFile(prefix="program-"))  # noqa: SIM115  the stack closes it
        file.write(content)
        file.flush()
        file.seek(0)
        return file


def _package_folders() -> list[str]:
    return sorted({sysconfig.get_path("purelib"), sysconfig.get_path("platlib")})
