"""The child that runs an answer: as a program with stdin and stdout, or serving its functions to a tester.

Everything the parent has to say is read, and the process confined, before the first line of the answer runs.
"""

import json
import os
import sys
import types
from typing import Any

from . import wire
from .confine import confine

GLOBAL_METHODS = {
    "__bool__": bool,
    "__len__": len,
    "__iter__": iter,
    "__next__": next,
    "__str__": str,
    "__repr__": repr,
    "__hash__": hash,
}
"""What Python looks up on the type is done as Python does it: `bool()` of an object that has only `__len__`."""


def main(setup_descriptor: int, status_descriptor: int) -> None:
    """`setup_descriptor`: a file with one JSON object; `status_descriptor`: a pipe that says when the answer begins.

    The pipe stays open: its end is how the parent learns that this process has ended.
    """
    setup = read_setup(setup_descriptor, status_descriptor)
    is_program = "pipes" not in setup
    module = types.ModuleType("__main__" if is_program else "answer")  # functions are tested without the main part
    sys.modules[module.__name__] = module
    sys.argv = ["answer.py"]
    os.environ.clear()
    if is_program:
        exec(compile(setup["code"], "answer.py", "exec"), vars(module))
        return
    peer = wire.Peer(
        os.fdopen(setup["pipes"][0], "rb"),
        os.fdopen(setup["pipes"][1], "wb"),
        allowed={
            "find": lambda name: find(vars(module), name),
            "call": lambda target, *arguments, **named: target(*arguments, **named),
            "method": method,
            "getattr": getattr,
            "setattr": setattr,
        },
    )
    try:
        exec(compile(setup["code"], "answer.py", "exec"), vars(module))
    except Exception as error:
        peer.send_greeting(f"{type(error).__name__}: {error}")
        return
    peer.send_greeting()
    try:
        peer.serve()
    except wire.PeerGoneError:
        return


def read_setup(setup_descriptor: int, status_descriptor: int) -> dict[str, Any]:
    """Reads what to do, confines this process, and reports the layers that hold it."""
    with os.fdopen(setup_descriptor, "rb") as file:
        setup = json.load(file)
    layers = confine(**setup["limits"])
    os.write(status_descriptor, f"{json.dumps(layers)}\n".encode())
    return setup


def find(namespace: dict[str, Any], name: str) -> Any:
    """A global of the answer, or a method of its class Solution. Raises NameError where there is neither."""
    if name in namespace:
        return namespace[name]
    if isinstance(solution := namespace.get("Solution"), type) and hasattr(solution, name):
        return getattr(solution(), name)
    raise NameError(f"name {name!r} is not defined")


def method(target: Any, name: str, *arguments: Any) -> Any:
    """A special method of an object, called as its operator calls it."""
    if name in GLOBAL_METHODS:
        return GLOBAL_METHODS[name](target)
    return getattr(type(target), name)(target, *arguments)
