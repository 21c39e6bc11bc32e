"""The child's side of a worker: reads jobs as JSON lines on stdin, answers as JSON lines on stdout.

Two processes: a nursery that imports what jobs need, and a child forked from it that runs them. A child that hangs is
killed by the parent and forked again in milliseconds; importing its modules anew would take seconds for sympy. The
nursery runs no job and no thread, so that forking it is safe. Imports the standard library alone: a worker starts fast
and holds no torch.

The nursery reaps a dead child only when the parent has taken note of its death and sent another job: until then its pid
names nothing else, and the parent can kill by it.
"""

import gc
import importlib
import json
import os
import resource
import signal
import sys
from collections.abc import Callable
from typing import Any, BinaryIO, NoReturn

_LOAD, _END = b"L", b"E"
"""How a child that goes willingly says why, on a pipe of their own: to have something imported, or for good."""


def serve(memory_limit_bytes: int) -> None:
    """Answers jobs until stdin closes. `memory_limit_bytes` bounds the address space, on Linux.

    `{"load": "module:function"}` imports, `{"call": "module:function", "args": [...], "deadline_s": x}` calls; the
    answer is `{"value": ...}` or `{"error": "..."}`. A child first says `{"pid": n}`; `{"died": "..."}` follows the
    end of a child that was not asked to end.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the parent, which decides
    requests = os.fdopen(os.dup(0), "rb", buffering=0)
    answers = os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    _limit_memory(memory_limit_bytes)
    line = _read_line(requests)
    while line:
        request = json.loads(line)
        if "load" in request:
            _send(answers, _loaded(request))
            line = _read_line(requests)
            continue
        goodbye, goodbye_of_child = os.pipe()
        gc.freeze()  # a collection in the child would touch, and so copy, every page of the nursery
        pid = os.fork()
        if pid == 0:
            _run_jobs(line, requests, answers, goodbye_of_child)
        os.close(goodbye_of_child)
        said = os.read(goodbye, 1 << 16)  # nothing where the child ended without a word
        os.close(goodbye)
        if not said:
            _send(answers, {"died": "killed its worker process"}, after_newline=True)
        line = said[1:] if said.startswith(_LOAD) else b"" if said else _read_line(requests)
        os.waitpid(pid, 0)


def load_function(path: str) -> Callable[..., Any]:
    """The function that "module:function" names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _run_jobs(line: bytes, requests: BinaryIO, answers: BinaryIO, goodbye: int) -> NoReturn:
    """The life of a child: this job and those after it, until something is to be imported or there are none."""
    _send(answers, {"pid": os.getpid()})
    inherited = frozenset(sys.modules)
    while line:
        request = json.loads(line)
        if "call" in request:
            _send(answers, _called(request))
        elif request["load"].partition(":")[0] in inherited:
            _send(answers, _loaded(request))
        else:
            os.write(goodbye, _LOAD + line)
            os._exit(0)
        line = _read_line(requests)
    os.write(goodbye, _END)
    os._exit(0)


def _loaded(request: dict[str, Any]) -> dict[str, Any]:
    try:
        load_function(request["load"])
    except Exception as error:  # the parent tells its caller that there is no such function
        return _told(error)
    return {"value": None}


def _called(request: dict[str, Any]) -> dict[str, Any]:
    try:
        _limit_cpu(request["deadline_s"])
        return {"value": load_function(request["call"])(*request["args"])}
    except Exception as error:  # whatever the job raised is its answer: the parent turns it into an unscored verdict
        return _told(error)


def _told(error: Exception) -> dict[str, Any]:
    return {"error": f"{type(error).__name__}: {str(error)[:300]}"}


def _read_line(requests: BinaryIO) -> bytes:
    """One line; the parent never sends a second one before it has the answer, so nothing is read ahead."""
    pieces = []
    while piece := requests.read(1 << 16):
        pieces.append(piece)
        if piece.endswith(b"\n"):
            return b"".join(pieces)
    return b""


def _send(answers: BinaryIO, answer: dict[str, Any], *, after_newline: bool = False) -> None:
    try:
        line = json.dumps(answer)
    except (TypeError, ValueError, RecursionError) as error:
        line = json.dumps(_told(error))
    rest = memoryview((b"\n" if after_newline else b"") + line.encode() + b"\n")  # ends an answer that was cut off
    while rest:
        rest = rest[answers.write(rest) :]


def _limit_memory(memory_limit_bytes: int) -> None:
    if sys.platform == "linux":
        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        soft = memory_limit_bytes if hard == resource.RLIM_INFINITY else min(memory_limit_bytes, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _limit_cpu(deadline_s: float) -> None:
    """Lets the kernel end a child that spins long past its deadline: its parent was killed and cannot."""
    used = resource.getrusage(resource.RUSAGE_SELF)
    soft = int(used.ru_utime + used.ru_stime + 2 * deadline_s) + 5
    _, hard = resource.getrlimit(resource.RLIMIT_CPU)
    resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
