"""Calling functions of another process over two pipes, so that what is tested cannot reach what tests it.

Plain data is copied. Anything else stays where it is and is known to the other side by a number, as a `Remote`. What
comes back from an untrusted side is therefore plain data of exact types, whose `==` nobody can have overloaded.

A message is one line of JSON: a request `{"do": ...}`, answered by `{"value": ...}` or `{"raised": [names, text]}`.
Either side may ask while it is being asked: a function that a test passes as an argument is called back.
"""

import builtins
import json
from collections import deque
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any, BinaryIO, NoReturn

MAX_LINE_BYTES = 2**24

_SEQUENCES: dict[str, Callable[[list[Any]], Any]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "deque": deque,
    "range": lambda items: range(*items),
    "complex": lambda items: complex(*items),
}
_PLAIN_TYPES = (bool, int, float, complex, str, bytes, list, tuple, dict, set, frozenset, object)
_TYPES = {cls.__name__: cls for cls in _PLAIN_TYPES}
_LARGE = 2**53


class PeerGoneError(BaseException):
    """The other process ended or broke the rules. No `except Exception` of a test's may take it for an answer."""


class Peer:
    """The other process, as this one sees it. Only the kinds of request in `allowed` are granted to it."""

    def __init__(self, incoming: BinaryIO, outgoing: BinaryIO, *, allowed: dict[str, Callable[..., Any]]) -> None:
        self.is_gone = False
        self._incoming, self._outgoing = incoming, outgoing
        self._allowed = allowed
        self._objects: list[Any] = []
        self._exceptions: dict[str, type[Exception]] = {}

    def ask(self, do: str, *arguments: Any, **named: Any) -> Any:
        """What the other process answers. Raises what it raised there, and `PeerGoneError`."""
        self._send({"do": do, "args": [self._encode(value) for value in arguments], "named": self._encode(named)})
        while True:
            reply = self._receive()
            if "do" in reply:
                self._answer(reply)
                continue
            try:
                for place, changed in reply.get("changed", {}).items():
                    _replace(arguments[int(place)], self._decode(changed))
                if "raised" in reply:
                    self._raise(*reply["raised"])
                return self._decode(reply["value"])
            except (LookupError, TypeError, ValueError, ArithmeticError, AttributeError) as error:
                if "raised" in reply:
                    raise
                self._leave(error)

    def serve(self) -> None:
        """Answers until the other process is gone."""
        while True:
            self._answer(self._receive())

    def send_greeting(self, problem: str = "") -> None:
        """The first message: empty, or why nothing can be asked."""
        self._send({"greeting": problem})

    def greeting(self) -> str:
        """Waits for `send_greeting` of the other side."""
        return str(self._receive().get("greeting", "no greeting"))[:300]

    def _answer(self, request: dict[str, Any]) -> None:
        try:
            arguments = [self._decode(data) for data in request["args"]]
            named = self._decode(request["named"])
            do = self._allowed[request["do"]]
        except (LookupError, TypeError, ValueError, ArithmeticError, RecursionError) as error:
            self._leave(error)
        reply: dict[str, Any]
        try:
            reply = {"value": self._encode(do(*arguments, **named))}
        except Exception as error:  # is raised again on the other side
            names = [cls.__name__ for cls in type(error).__mro__ if issubclass(cls, Exception)]
            reply = {"raised": [names, str(error)[:1000]]}
        changed = {}
        for place, argument in enumerate(arguments):
            if type(argument) in (list, dict, set, deque) and self._encode(argument) != request["args"][place]:
                changed[place] = self._encode(argument)
        self._send({**reply, "changed": changed})

    def _send(self, message: dict[str, Any]) -> None:
        try:
            self._outgoing.write(json.dumps(message).encode() + b"\n")
            self._outgoing.flush()
        except (OSError, ValueError) as error:
            self._leave(error)

    def _receive(self) -> dict[str, Any]:
        line = self._incoming.readline(MAX_LINE_BYTES)
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            self._leave(error)
        if not isinstance(message, dict):
            self._leave(None)
        return message

    def _leave(self, error: BaseException | None) -> NoReturn:
        self.is_gone = True
        raise PeerGoneError(f"the program ended or broke its connection{f' ({error})' if error else ''}") from None

    def _encode(self, value: Any) -> Any:
        if value is None or isinstance(value, bool):
            return value
        if isinstance(value, float):
            return float(value)
        if isinstance(value, int):
            plain = int(value)
            return plain if -_LARGE < plain < _LARGE else {"int": hex(plain)}
        if isinstance(value, str):
            return str.__str__(value)
        if isinstance(value, list):
            return [self._encode(item) for item in value]
        if isinstance(value, dict):
            return {"dict": [[self._encode(key), self._encode(item)] for key, item in value.items()]}
        if isinstance(value, bytes | bytearray):
            return {"bytes": bytes(value).hex()}
        if isinstance(value, tuple | set | frozenset | deque):
            name = next(cls.__name__ for cls in (tuple, set, frozenset, deque) if isinstance(value, cls))
            return {name: [self._encode(item) for item in value]}
        if isinstance(value, range):
            return {"range": [value.start, value.stop, value.step]}
        if isinstance(value, complex):
            return {"complex": [value.real, value.imag]}
        if isinstance(value, Decimal | Fraction):
            return {type(value).__name__: str(value)}
        if isinstance(value, type) and value in _TYPES.values():
            return {"type": value.__name__}
        if isinstance(value, type) and issubclass(value, Exception):
            return {"exception": [cls.__name__ for cls in value.__mro__]}
        if isinstance(value, Remote):
            return {"yours": object.__getattribute__(value, "_number")}
        self._objects.append(value)
        return {"mine": len(self._objects) - 1}

    def _decode(self, data: Any) -> Any:
        if isinstance(data, list):
            return [self._decode(item) for item in data]
        if not isinstance(data, dict):
            return data
        ((kind, inner),) = data.items()
        if kind == "int":
            return int(inner, 16)
        if kind == "dict":
            return {self._decode(key): self._decode(item) for key, item in inner}
        if kind == "bytes":
            return bytes.fromhex(inner)
        if kind in _SEQUENCES:
            return _SEQUENCES[kind]([self._decode(item) for item in inner])
        if kind == "Decimal":
            return Decimal(inner)
        if kind == "Fraction":
            return Fraction(inner)
        if kind == "type":
            return _TYPES[inner]
        if kind == "exception":
            return self._exception(inner)
        if kind == "yours":
            return self._objects[inner]
        if kind == "mine":
            return Remote(self, inner)
        raise ValueError(f"unknown data {kind!r:.40}")

    def _exception(self, names: list[str]) -> type[Exception]:
        """A class of this process that stands for one of the other: the built-in one, or a child of the nearest."""
        for name in names:
            known = self._exceptions.get(name) or vars(builtins).get(name)
            if isinstance(known, type) and issubclass(known, Exception):
                stand_in = known if name == names[0] else type(names[0], (known,), {})
                return self._exceptions.setdefault(names[0], stand_in)
        return Exception

    def _raise(self, names: list[str], text: str) -> NoReturn:
        cls = self._exception(names)
        try:
            error = cls(text)
        except TypeError:  # UnicodeDecodeError and a few others want more
            error = Exception(f"{names[0]}: {text}")
        raise error


class Remote:
    """An object of the other process: called, looked into and iterated there.

    Compared with anything of this process it is unequal, and it neither adds to it nor orders with it: an answer that
    says yes to every comparison is no right answer. Two objects of the other process are compared there.
    """

    def __init__(self, peer: Peer, number: int) -> None:
        object.__setattr__(self, "_peer", peer)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return object.__getattribute__(self, "_peer").ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        object.__getattribute__(self, "_peer").ask("setattr", self, name, value)

    def __call__(self, *arguments: Any, **named: Any) -> Any:
        return object.__getattribute__(self, "_peer").ask("call", self, *arguments, **named)


def _forwarded(name: str) -> Callable[..., Any]:
    def method(self: Remote, *arguments: Any) -> Any:
        return object.__getattribute__(self, "_peer").ask("method", self, name, *arguments)

    return method


def _between_remotes(name: str) -> Callable[[Remote, Any], Any]:
    def method(self: Remote, other: Any) -> Any:
        if not isinstance(other, Remote):
            return NotImplemented
        return object.__getattribute__(self, "_peer").ask("method", self, name, other)

    return method


for _name in "bool len iter next getitem setitem delitem str repr hash enter exit".split():  # noqa: SIM905
    setattr(Remote, f"__{_name}__", _forwarded(f"__{_name}__"))
for _name in "eq ne lt le gt ge add sub mul truediv floordiv mod matmul and or xor".split():  # noqa: SIM905
    setattr(Remote, f"__{_name}__", _between_remotes(f"__{_name}__"))


def _replace(target: Any, content: Any) -> None:
    """Gives a container of this process the content that the other side left in its copy."""
    if type(target) is not type(content):
        raise TypeError(f"a {type(target).__name__} became a {type(content).__name__}")
    target.clear()
    if isinstance(target, list | deque):
        target.extend(content)
    else:
        target.update(content)
