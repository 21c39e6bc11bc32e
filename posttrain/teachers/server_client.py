"""JSON over HTTP with a teacher's server: a deadline for every request, capped retries, one sentence when all fail."""

import itertools
import json
import random
import time
from collections.abc import Callable
from threading import Event, Lock
from typing import Any, NoReturn, TypeVar

import httpx

from posttrain.errors import ConfigError, TeacherError
from posttrain.server_words import ServerWords, is_this_machine, key_of

_LONGEST_PAUSE_S = 60.0
_KEPT_OPEN_S = 2.0
"""An idle connection is used again within this: vLLM closes it after 5 s, and a request must not cross with that."""
_BUSY = (408, 425, 429)
"""Statuses below 500 that say "later", and nothing about the request."""

_Read = TypeVar("_Read")


class ServerRefusal(TeacherError):
    """A status below 500: the server understood, and asking again would change nothing."""

    def __init__(self, text: str, *, status: int, message: str) -> None:
        super().__init__(text)
        self.status = status
        self.message = message
        """The server's own words."""


class _Failure(Exception):
    """One try that failed in a way that another may not."""

    def __init__(self, what: str, todo: str) -> None:
        super().__init__(what)
        self.todo = todo


class ServerClient:
    """Asks one server; may be shared by any number of threads.

    url: of the server's root, with or without /v1. timeout_s: for one whole try, from connecting to the last byte.
    retries: tries after the first, where the connection failed, the time ran out, the answer was cut short, or the
    server answered 5xx or that it is busy. backoff_s: the longest pause before the first of them; it doubles up to a
    minute, and each pause is drawn from its upper half, so that clients do not come back all at once.
    api_key_env: the environment variable that holds the server's key. The key is in no message.
    A proxy that the environment names is used, but never for this machine itself.
    """

    def __init__(
        self, name: str, url: str, *, timeout_s: float, retries: int, backoff_s: float, api_key_env: str | None
    ) -> None:
        try:
            root = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ConfigError(f"teacher '{name}': its url cannot be read ({error}); want http://host:8000") from None
        if root.scheme not in ("http", "https") or not root.host or root.userinfo or root.query:
            raise ConfigError(
                f"teacher '{name}': its url must be like http://host:8000, without a name, a password or a query in it"
            )
        if timeout_s <= 0 or retries < 0 or backoff_s < 0:
            raise ConfigError(
                f"teacher '{name}': timeout_s {timeout_s} must be above 0, retries {retries} and backoff_s {backoff_s} "
                "not below"
            )
        self._root = str(root).rstrip("/").removesuffix("/v1")
        self.who = f"teacher '{name}' at {self._root}"
        self._timeout_s, self._retries, self._backoff_s = timeout_s, retries, backoff_s
        self._key_env, self._key = api_key_env, key_of(api_key_env, f"teacher '{name}'")
        self._words = ServerWords(self._key)
        self._http = httpx.Client(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=timeout_s,
            limits=httpx.Limits(max_connections=None, keepalive_expiry=_KEPT_OPEN_S),
            trust_env=not is_this_machine(root.host),
        )
        self._draw = random.Random()
        self._reading = Lock()

    def get(self, path: str, read: Callable[[Any], _Read]) -> _Read:
        return self._ask("GET", path, None, read, Event())

    def post(
        self, path: str, body: dict[str, Any], read: Callable[[Any], _Read], *, stop: Event | None = None
    ) -> _Read:
        """What `read` makes of the answer's JSON; one answer is read at a time, for scores of a long prompt are
        hundreds of MB as Python objects. `stop`, once set by another thread, ends the pauses between tries.

        Raises ServerRefusal for a status below 500, TeacherError when all tries failed, and what `read` raises.
        """
        return self._ask("POST", path, json.dumps(body, allow_nan=False).encode(), read, stop or Event())

    def close(self) -> None:
        self._http.close()

    def _ask(self, method: str, path: str, body: bytes | None, read: Callable[[Any], _Read], stop: Event) -> _Read:
        begun = time.monotonic()
        for attempt in itertools.count():
            try:
                return self._try(method, path, body, read)
            except _Failure as failure:
                pause_s = min(self._backoff_s * 2 ** min(attempt, 10), _LONGEST_PAUSE_S) * self._draw.uniform(0.5, 1)
                if attempt == self._retries or stop.wait(pause_s):
                    tries = f"{attempt + 1} tries in {time.monotonic() - begun:.0f} s" if attempt else "1 try"
                    raise TeacherError(f"{self.who} {failure} ({method} {path}, {tries}): {failure.todo}") from None
        raise AssertionError("counting never ends")

    def _try(self, method: str, path: str, body: bytes | None, read: Callable[[Any], _Read]) -> _Read:
        headers = {"Content-Type": "application/json"} if body is not None else {}
        deadline = time.monotonic() + self._timeout_s
        received = bytearray()
        try:
            with self._http.stream(method, self._root + path, content=body, headers=headers) as response:
                for chunk in response.iter_bytes():
                    received += chunk
                    if time.monotonic() > deadline:  # the client's own limit is one of silence, not of the whole
                        raise httpx.ReadTimeout("the whole answer took too long")
        except httpx.TimeoutException:
            raise _Failure(
                f"gave no whole answer within {self._timeout_s:g} s",
                "raise timeout_s, lower concurrency, or see in the server's log whether it hangs",
            ) from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            connecting = isinstance(error, httpx.ConnectError)
            raise _Failure(
                f"{'cannot be reached' if connecting else 'broke off'} ({self._words.clean(str(error))})",
                "start it, or correct its url" if connecting else "see in the server's log why it stopped",
            ) from None
        if response.status_code >= 500 or response.status_code in _BUSY:
            raise _Failure(
                f"answered {response.status_code} ({self._words.message(received)})",
                "see in the server's log what went wrong there",
            )
        if response.status_code != 200:
            self._refuse(response.status_code, self._words.message(received))
        with self._reading:
            try:
                parsed = json.loads(received)
            except ValueError:
                raise _Failure(
                    f"sent {len(received)} bytes that are no whole JSON",
                    "see in the server's log what cuts its answers, or what stands between",
                ) from None
            return read(parsed)

    def _refuse(self, status: int, message: str) -> NoReturn:
        if status == 401 and self._key:
            text = f"refuses the API key in ${self._key_env} (401): put the right one there"
        elif status == 401:
            text = "wants an API key (401): put it into an environment variable, and name that one as api_key_env"
        else:
            text = f"refused a request with {status}: {message}"
        raise ServerRefusal(f"{self.who} {text}", status=status, message=message)
