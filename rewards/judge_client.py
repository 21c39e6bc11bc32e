"""Chat completions over HTTP: a deadline for every try, capped retries, a budget, and patience that ends."""

import itertools
import json
import random
import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, NoReturn

from .judge_server import JudgeServer

_LONGEST_PAUSE_S = 30.0
_LONGEST_RETRY_AFTER_S = 60.0
_PROBE_EVERY_S = 30.0
_BUSY = (408, 425, 429)
"""Statuses below 500 that say "later", and nothing about the request."""
_MOST_WORDS = 300
"""Characters of a server's own message that are repeated in a reason."""


class JudgeError(RuntimeError):
    """No reply, and why, in words for the report."""


@dataclass(slots=True)
class JudgeCounts:
    """What has been asked of one judge so far. Written on the judges' own loop, read from anywhere."""

    asked: int = 0
    """Verdicts that rewards wanted."""
    failed: int = 0
    """Of those, the ones without a verdict."""
    cache_hits: int = 0
    """Of those asked, the ones that the cache held."""
    requests: int = 0
    """HTTP requests for a reply, retries included."""
    retries: int = 0
    """Of those, tries after one that failed."""
    unreadable: int = 0
    """Replies that were no verdict."""
    tokens: int = 0
    """Read and written, as the server counts; a quarter of the characters where it does not."""


@dataclass(frozen=True, slots=True)
class Reply:
    """What the judge said."""

    text: str
    finished: bool
    """False where the token limit ended it."""


class _TryFailed(Exception):
    """One try that failed in a way that another may not."""

    def __init__(self, what: str, *, wait_s: float = 0.0) -> None:
        super().__init__(what)
        self.wait_s = wait_s
        """The shortest pause that the server asks for."""


class JudgeClient:
    """Asks one server; used on one event loop. Nothing is opened before the first request.

    A judge that has answered nothing for `outage_s` is down: from then on one request every 30 s tries it and the
    others fail at once, so that a dead judge costs a run seconds a step and not hours.
    """

    def __init__(self, server: JudgeServer, counts: JudgeCounts) -> None:
        import asyncio

        self._server, self._counts = server, counts
        self._slots = asyncio.Semaphore(server.concurrency)
        self._probing = asyncio.Lock()
        self._naming = asyncio.Lock()
        self._http: Any = None
        self._key = ""
        self._model = server.model
        self._draw = random.Random()
        self._silent_since: float | None = None
        self._last_failure = 0.0
        self._next_probe: float | None = None
        """Set while the judge is down."""

    async def model(self) -> str:
        """The model's name: the one that was given, or the only one that the server has. Raises `JudgeError`."""
        async with self._naming:
            if not self._model:
                listed = await self._patiently("GET", "/v1/models", None)
                try:
                    names = [entry["id"] for entry in listed["data"]]
                except (KeyError, TypeError):
                    names = []
                if len(names) != 1:
                    raise JudgeError(f"{self._who} serves {names or 'nothing'}: name one as the server's model")
                self._model = str(names[0])
        return self._model

    async def complete(self, body: Mapping[str, Any]) -> Reply:
        """The reply to one chat request. Raises `JudgeError`: refused, out of budget, or all tries failed."""
        answer = await self._patiently("POST", "/v1/chat/completions", body)
        try:
            choice = answer["choices"][0]
            text = choice["message"].get("content") or ""
            reply = Reply(text=str(text), finished=choice.get("finish_reason") != "length")
        except (KeyError, IndexError, TypeError, AttributeError):
            raise JudgeError(f"{self._who} sent no chat completion: {self._clean(json.dumps(answer))}") from None
        self._counts.tokens += self._tokens(answer, body, reply.text)
        return reply

    @property
    def _who(self) -> str:
        return f"the judge at {self._server.root}"

    async def _patiently(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        """The answer's JSON. A pause between tries keeps its slot: a judge in trouble is not asked more."""
        import asyncio

        async with self._slots:
            async with self._probing:
                if self._next_probe is not None:
                    if time.monotonic() < self._next_probe:
                        raise JudgeError(f"{self._who} is down: no answer for {self._silence_s():.0f} s")
                    return await self._probe(method, path, body)
            begun = time.monotonic()
            for attempt in itertools.count():
                try:
                    return await self._try(method, path, body, attempt)
                except _TryFailed as failure:
                    if attempt == self._server.retries or self._next_probe is not None:
                        tries = "1 try" if attempt == 0 else f"{attempt + 1} tries in {time.monotonic() - begun:.0f} s"
                        raise JudgeError(f"{self._who} {failure} ({tries})") from None
                    pause_s = min(self._server.backoff_s * 2 ** min(attempt, 16), _LONGEST_PAUSE_S)
                    await asyncio.sleep(max(pause_s * self._draw.uniform(0.5, 1), failure.wait_s))

    async def _probe(self, method: str, path: str, body: Mapping[str, Any] | None) -> Any:
        try:
            return await self._try(method, path, body, 0)
        except _TryFailed as failure:
            raise JudgeError(f"{self._who} {failure}; down for {self._silence_s():.0f} s") from None

    async def _try(self, method: str, path: str, body: Mapping[str, Any] | None, attempt: int) -> Any:
        import asyncio

        import httpx

        http = self._connection()
        if body is not None:
            self._spend(attempt)
        content = None if body is None else json.dumps(body, allow_nan=False).encode()
        try:
            async with asyncio.timeout(self._server.timeout_s):  # the library's own limit is one of silence
                response = await http.request(method, self._server.root + path, content=content)
        except (TimeoutError, httpx.TimeoutException):
            self._note_failure()
            raise _TryFailed(f"gave no whole answer within {self._server.timeout_s:g} s") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            self._note_failure()
            broke = "cannot be reached" if isinstance(error, httpx.ConnectError) else "broke off"
            raise _TryFailed(f"{broke} ({self._clean(str(error)) or type(error).__name__})") from None
        if response.status_code >= 500:
            self._note_failure()
            raise _TryFailed(f"answered {response.status_code} ({self._message(response.text)})")
        self._silent_since = self._next_probe = None
        if response.status_code in _BUSY:
            wait_s = _retry_after_s(response.headers.get("Retry-After", ""))
            raise _TryFailed(f"is busy ({response.status_code})", wait_s=wait_s)
        if response.status_code != 200:
            self._refuse(response.status_code, response.text)
        try:
            return json.loads(response.content)
        except (ValueError, RecursionError):
            raise _TryFailed(f"sent {len(response.content)} bytes that are no JSON") from None

    def _connection(self) -> Any:
        import httpx

        if self._http is None:
            try:
                self._key = self._server.api_key()
            except ValueError as error:
                raise JudgeError(str(error)) from None
            headers = {"Content-Type": "application/json"}
            self._http = httpx.AsyncClient(
                headers=headers | ({"Authorization": f"Bearer {self._key}"} if self._key else {}),
                timeout=self._server.timeout_s,
                limits=httpx.Limits(max_connections=None, max_keepalive_connections=self._server.concurrency),
                trust_env=not self._server.is_this_machine,
            )
        return self._http

    def _spend(self, attempt: int) -> None:
        """Counts one request, where the budget allows it; the requests under way may overdraw the tokens."""
        for name, most, spent in (
            ("requests", self._server.max_requests, self._counts.requests),
            ("tokens", self._server.max_tokens, self._counts.tokens),
        ):
            if most and spent >= most:
                raise JudgeError(f"the judge's budget of {most:,} {name} is spent (max_{name})")
        self._counts.requests += 1
        self._counts.retries += attempt > 0

    def _note_failure(self) -> None:
        now = time.monotonic()
        if self._silent_since is None or now - self._last_failure > 2 * self._server.outage_s:
            self._silent_since = now  # nobody asked for long: that is no silence
        self._last_failure = now
        if now - self._silent_since >= self._server.outage_s:
            self._next_probe = now + _PROBE_EVERY_S

    def _silence_s(self) -> float:
        return time.monotonic() - (self._silent_since or time.monotonic())

    def _refuse(self, status: int, text: str) -> NoReturn:
        if status == 401 and not self._key:
            raise JudgeError(f"{self._who} wants an API key (401): name its environment variable as api_key_env")
        raise JudgeError(f"{self._who} refused with {status}: {self._message(text)}")

    def _message(self, body: str) -> str:
        """What a body says, whichever shape a server gives its errors."""
        try:
            found = json.loads(body)
        except (ValueError, RecursionError):
            found = body
        for key in ("error", "message", "detail"):
            if isinstance(found, dict) and key in found:
                found = found[key]
        return self._clean(found if isinstance(found, str) else json.dumps(found)) or "without a word"

    def _clean(self, text: str) -> str:
        """One short line, without the key: some servers repeat it."""
        text = " ".join(text[: 10 * _MOST_WORDS].split())
        text = text.replace(self._key, "***") if self._key else text
        return text if len(text) <= _MOST_WORDS else text[:_MOST_WORDS] + " ..."

    def _tokens(self, answer: Mapping[str, Any], body: Mapping[str, Any], said: str) -> int:
        match answer.get("usage"):
            case {"total_tokens": int(tokens)}:
                return tokens
            case _:
                return (len(json.dumps(body.get("messages"))) + len(said)) // 4


def _retry_after_s(header: str) -> float:
    """Seconds that a server asks for, at most a minute; 0 where it says nothing that can be read."""
    try:
        wait_s = float(header)
    except ValueError:
        try:
            from email.utils import parsedate_to_datetime

            wait_s = parsedate_to_datetime(header).timestamp() - time.time()
        except (ValueError, TypeError):
            return 0.0
    return min(max(wait_s, 0.0), _LONGEST_RETRY_AFTER_S) if wait_s == wait_s else 0.0
