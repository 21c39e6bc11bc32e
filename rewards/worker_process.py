"""The child's side of a worker: reads jobs as JSON lines on stdin, answers as JSON lines on stdout.

Imports the standard library alone, so that a worker starts fast and holds no torch.
"""

import importlib
import json
import os
import signal
import sys
from collections.abc import Callable
from typing import Any

MEMORY_LIMIT_BYTES = 4 * 2**30
"""Address space of a worker on Linux: an answer such as 9^(9^(9^9)) must not eat the trainer's memory."""


def serve() -> None:
    """Answers jobs until stdin closes.

    `{"load": "module:function"}` imports, `{"call": "module:function", "args": [...], "deadline_s": x}` calls; the
    answer is `{"value": ...}` or `{"error": "..."}`.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C goes to the whole terminal group; the parent decides
    requests = os.fdopen(os.dup(0), "rb")
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    os.dup2(2, 1)  # what a library prints must not mix with the answers
    _limit_memory()
    functions: dict[str, Callable[..., Any]] = {}
    for line in requests:
        answers.write(json.dumps(_answer(json.loads(line), functions)).encode() + b"\n")
        answers.flush()


def load_function(path: str) -> Callable[..., Any]:
    """The function that "module:function" names."""
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def _answer(request: dict[str, Any], functions: dict[str, Callable[..., Any]]) -> dict[str, Any]:
    try:
        if "load" in request:
            functions[request["load"]] = load_function(request["load"])
            return {"value": None}
        _limit_cpu(request["deadline_s"])
        return {"value": functions[request["call"]](*request["args"])}
    except Exception as error:  # whatever the job raised is its answer: the parent turns it into an unscored verdict
        return {"error": f"{type(error).__name__}: {str(error)[:300]}"}


def _limit_memory() -> None:
    if sys.platform == "linux":
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_AS)
        soft = MEMORY_LIMIT_BYTES if hard == resource.RLIM_INFINITY else min(MEMORY_LIMIT_BYTES, hard)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


def _limit_cpu(deadline_s: float) -> None:
    """Lets the kernel end a worker that spins long past its deadline: its parent was killed and cannot."""
    if sys.platform != "win32":
        import resource

        used = resource.getrusage(resource.RUSAGE_SELF)
        soft = int(used.ru_utime + used.ru_stime + 2 * deadline_s) + 5
        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (soft if hard == resource.RLIM_INFINITY else min(soft, hard), hard))
