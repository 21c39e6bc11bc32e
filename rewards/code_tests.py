"""The tests of a reference for the reward `code`: what a program prints, or what its functions return."""

import ast
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .references import reference_field
from .score import BadReferenceError

MAX_TESTS = 1000
MAX_TEST_CHARS = 4_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramTests:
    """Inputs on stdin, and what must come out on stdout."""

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class FunctionTests:
    """Python statements that pass where they raise nothing."""

    sources: tuple[str, ...]
    names: tuple[str, ...] = ()
    """Functions under test, where the reference names them; they go before built-in ones of the same name."""


def reference_tests(reference: Mapping[str, Any], key: str) -> ProgramTests | FunctionTests:
    """The tests in `reference[key]`; in JSON where the field is text that can be read as JSON.

    - `[{"input": "1 2", "output": "3"}, ...]` or `{"inputs": [...], "outputs": [...]}`: a program is run on each input.
      Where the mapping or the reference has `fn_name` (or the reference `entry_point`), the inputs are arguments (a
      list, or text with the JSON of one argument a line) and the outputs return values.
    - `["assert add(1, 2) == 3", ...]`: each statement is a test.
    - `"def check(candidate): ..."`: one program of tests; its `check` is called with the function `entry_point`.

    Raises `BadReferenceError` for anything else, and where a test is no Python.
    """
    value = _from_json(reference_field(reference, key))
    function = reference.get("entry_point") or reference.get("fn_name")
    if isinstance(value, str):
        return _test_program(value, function, key)
    if isinstance(value, Mapping) and {"inputs", "outputs"} <= value.keys():
        pairs = _zipped(value["inputs"], value["outputs"], key)
        return _pairs(pairs, value.get("fn_name") or function, key)
    if not isinstance(value, list | tuple) or not value:
        raise BadReferenceError(f"{key!r} must be a list of tests, got {value!r:.80}")
    if all(isinstance(test, str) for test in value):
        return FunctionTests(sources=_bounded([_python(test, key) for test in value], key), names=_names(function))
    if all(isinstance(test, Mapping) and {"input", "output"} <= test.keys() for test in value):
        return _pairs([(test["input"], test["output"]) for test in value], function, key)
    raise BadReferenceError(f"{key!r} must hold statements, or mappings with 'input' and 'output', got {value!r:.80}")


def _from_json(value: Any) -> Any:
    if isinstance(value, str) and value.lstrip().startswith(("[", "{")):
        try:
            return json.loads(value)
        except (ValueError, RecursionError):
            return value
    return value


def _test_program(source: str, function: Any, key: str) -> FunctionTests:
    tree = ast.parse(_python(source, key))
    has_check = any(isinstance(node, ast.FunctionDef) and node.name == "check" for node in tree.body)
    if has_check and function:
        source = f"{source}\ncheck({function})\n"
    return FunctionTests(sources=_bounded([source], key), names=_names(function))


def _pairs(pairs: Sequence[tuple[Any, Any]], function: Any, key: str) -> ProgramTests | FunctionTests:
    if not pairs:
        raise BadReferenceError(f"{key!r} holds no test")
    if function:
        (name,) = _names(function)
        calls = [f"assert _same({name}(*{_arguments(given, key)!r}), {_value(wanted)!r})" for given, wanted in pairs]
        return FunctionTests(sources=_bounded(calls, key), names=(name,))
    inputs, outputs = (_bounded([_lines(pair[side], key) for pair in pairs], key) for side in (0, 1))
    return ProgramTests(inputs=inputs, outputs=outputs)


def _zipped(inputs: Any, outputs: Any, key: str) -> list[tuple[Any, Any]]:
    if not isinstance(inputs, list) or not isinstance(outputs, list) or len(inputs) != len(outputs):
        raise BadReferenceError(f"'inputs' and 'outputs' of {key!r} must be lists of one length")
    return list(zip(inputs, outputs, strict=True))


def _arguments(given: Any, key: str) -> list[Any]:
    if isinstance(given, list | tuple):
        return list(given)
    try:
        return [json.loads(line) for line in given.splitlines()]
    except (AttributeError, ValueError, RecursionError):
        raise BadReferenceError(f"an input of {key!r} must be arguments, one JSON a line, got {given!r:.80}") from None


def _value(wanted: Any) -> Any:
    try:
        return json.loads(wanted) if isinstance(wanted, str) else wanted
    except (ValueError, RecursionError):
        return wanted


def _lines(value: Any, key: str) -> str:
    """Text, or a list of lines."""
    if isinstance(value, list | tuple) and all(isinstance(line, str) for line in value):
        return "\n".join(value)
    if not isinstance(value, str):
        raise BadReferenceError(f"inputs and outputs of {key!r} must be text, got {value!r:.80}")
    return value


def _python(source: str, key: str) -> str:
    try:
        ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise BadReferenceError(f"{key!r} holds a test that is no Python ({error}): {source!r:.80}") from None
    return source


def _names(function: Any) -> tuple[str, ...]:
    if not function:
        return ()
    if not isinstance(function, str) or not function.isidentifier():
        raise BadReferenceError(f"'entry_point' must be a function's name, got {function!r:.80}")
    return (function,)


def _bounded(texts: list[str], key: str) -> tuple[str, ...]:
    if len(texts) > MAX_TESTS or sum(map(len, texts)) > MAX_TEST_CHARS:
        raise BadReferenceError(f"{key!r} holds {len(texts)} tests of {sum(map(len, texts)):,} characters: too many")
    return tuple(texts)
