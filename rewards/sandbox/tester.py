"""The child that runs the tests of a reference against the functions of an answer, which lives in another process.

The tests are never in the answer's process, on disk, or on a command line: an answer sees the calls, one at a time.
"""

import ast
import builtins
import json
import math
import os
import sys
from typing import Any

from . import wire
from .program import read_setup


def main(setup_descriptor: int, status_descriptor: int) -> None:
    """Writes a line to `status_descriptor` for each test: `{"passed": ..., "why": "...", "gone": ...}`.

    Ends where the answer's process is gone: the test that met that has failed, the rest has not been run.
    """
    setup = read_setup(setup_descriptor, status_descriptor)
    incoming, outgoing = os.fdopen(setup["pipes"][0], "rb"), os.fdopen(setup["pipes"][1], "wb")
    peer = wire.Peer(incoming, outgoing, allowed={"call": _call_back})
    try:
        problem = peer.greeting()
    except wire.PeerGoneError as error:
        problem = str(error)
    for source in setup["tests"]:
        report = {"passed": False, "why": problem} if problem else run_test(source, peer, setup["names"])
        report["gone"] = peer.is_gone
        os.write(status_descriptor, f"{json.dumps(report)}\n".encode())
        if peer.is_gone:
            return


def run_test(source: str, peer: wire.Peer, names: list[str]) -> dict[str, Any]:
    """Runs one test, in a namespace of its own."""
    try:
        tree = ast.parse(source)
        namespace: dict[str, Any] = {"__name__": "tests", "_same": same}
        for name in free_names(tree) | set(names):
            _provide(namespace, name, tree, peer, is_wanted=name in names)
        exec(compile(tree, "tests", "exec"), namespace)
    except BaseException as error:  # SystemExit of a test's included: whatever ends it early fails it
        return {"passed": False, "why": f"{type(error).__name__}: {error}"[:300]}
    if peer.is_gone:
        return {"passed": False, "why": "the program ended"}
    return {"passed": True, "why": ""}


def free_names(tree: ast.AST) -> set[str]:
    """Names that the test reads, and neither defines nor imports."""
    read, defined = set(), set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Name):
            (read if isinstance(node.ctx, ast.Load) else defined).add(node.id)
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            defined.add(node.name)
        elif isinstance(node, ast.alias):
            defined.add((node.asname or node.name).partition(".")[0])
        elif isinstance(node, ast.arg):
            defined.add(node.arg)
        elif isinstance(node, ast.ExceptHandler) and node.name:
            defined.add(node.name)
    return read - defined


def same(value: Any, wanted: Any) -> bool:
    """Equality of JSON data: a tuple is a list, floats agree to six digits, and True is not 1."""
    if isinstance(value, list | tuple) and isinstance(wanted, list | tuple):
        return len(value) == len(wanted) and all(same(a, b) for a, b in zip(value, wanted, strict=True))
    if isinstance(value, dict) and isinstance(wanted, dict):
        return value.keys() == wanted.keys() and all(same(value[key], wanted[key]) for key in wanted)
    if isinstance(value, bool) or isinstance(wanted, bool):
        return value is wanted
    if isinstance(value, float) and isinstance(wanted, int | float):
        return math.isclose(value, wanted, rel_tol=1e-6, abs_tol=1e-6)
    return value == wanted


def _provide(namespace: dict[str, Any], name: str, tree: ast.AST, peer: wire.Peer, *, is_wanted: bool) -> None:
    """Built-in functions and modules of the standard library are this process's own: the answer must not replace
    `sorted` or `math` in the test that judges it. Every other name is asked for there."""
    if not is_wanted and (hasattr(builtins, name) or name in namespace):
        return
    if not is_wanted and name in sys.stdlib_module_names and _is_used_as_module(name, tree):
        namespace[name] = __import__(name)
        return
    try:
        namespace[name] = peer.ask("find", name)
    except NameError:
        return  # the test may get by without it


def _is_used_as_module(name: str, tree: ast.AST) -> bool:
    reads = sum(isinstance(node, ast.Name) and node.id == name for node in ast.walk(tree))
    bases = sum(
        isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == name
        for node in ast.walk(tree)
    )
    return reads == bases


def _call_back(target: Any, *arguments: Any, **named: Any) -> Any:
    """Calls a function that a test passed to the answer."""
    return target(*arguments, **named)
