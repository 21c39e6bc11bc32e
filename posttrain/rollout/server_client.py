"""One vLLM server, asked from an event loop: JSON over HTTP, a deadline for everything, and what a failure means."""

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx

from posttrain.errors import ConfigError, EngineError
from posttrain.server_words import ServerWords, is_this_machine, key_of

GENERATE = "/inference/v1/generate"
WEIGHTS = "/v1/posttrain/weights"

_CONNECT_S = 10.0
_KEPT_OPEN_S = 2.0
"""An idle connection is used again within this: vLLM closes it after 5 s, and a request must not cross with that."""
_BUSY = (408, 425, 429)
"""Statuses below 500 that say "later", and nothing about the request."""
_CHUNK = 1 << 20


class ServerLost(Exception):
    """The server cannot be reached, broke off or hangs: another may answer."""


class TryFailed(Exception):
    """The server answered, but not with what was asked for: it, or another, may do better."""


class Refused(EngineError):
    """The server understood, and asking again would change nothing."""

    def __init__(self, text: str, *, status: int) -> None:
        super().__init__(text)
        self.status = status


class ServerClient:
    """Asks one server. Used from one event loop; the key is in no message."""

    def __init__(self, url: str, *, api_key_env: str | None) -> None:
        """url: of the server's root, with or without /v1. Raises ConfigError for one that cannot be asked."""
        try:
            root = httpx.URL(url)
        except httpx.InvalidURL as error:
            raise ConfigError(f"engine: a server's url cannot be read ({error}); want http://host:8000") from None
        if root.scheme not in ("http", "https") or not root.host or root.userinfo or root.query:
            raise ConfigError(
                "engine: the url of a server must be like http://host:8000, without a name, a password or a query in it"
            )
        self.url = str(root).rstrip("/").removesuffix("/v1")
        self._key_env, self._key = api_key_env, key_of(api_key_env, "engine")
        self._words = ServerWords(self._key)
        self._http = httpx.AsyncClient(
            headers={"Authorization": f"Bearer {self._key}"} if self._key else {},
            timeout=httpx.Timeout(None, connect=_CONNECT_S),
            limits=httpx.Limits(max_connections=None, keepalive_expiry=_KEPT_OPEN_S),
            trust_env=not is_this_machine(root.host),
            verify=root.scheme == "https",  # else certificates would be read for nothing
        )

    async def get(self, path: str, *, timeout_s: float) -> Any:
        return await self._ask("GET", path, timeout_s)

    async def post(self, path: str, body: bytes, *, timeout_s: float) -> Any:
        """The answer's JSON. Raises ServerLost, TryFailed or Refused."""
        return await self._ask("POST", path, timeout_s, content=body, headers={"Content-Type": "application/json"})

    async def put(self, path: str, file: Path, *, timeout_s: float) -> None:
        size = str(file.stat().st_size)
        await self._ask("PUT", path, timeout_s, content=_bytes_of(file), headers={"Content-Length": size})

    async def is_healthy(self, *, timeout_s: float) -> bool:
        """False = its engine is dead, or it does not answer in time."""
        try:
            async with asyncio.timeout(timeout_s):
                return (await self._http.get(self.url + "/health")).status_code == 200
        except (TimeoutError, httpx.TransportError):
            return False

    async def close(self) -> None:
        await self._http.aclose()

    async def _ask(self, method: str, path: str, timeout_s: float, **options: Any) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                response = await self._http.request(method, self.url + path, **options)
        except TimeoutError:
            raise ServerLost(f"gave no whole answer within {timeout_s:g} s") from None
        except (httpx.TransportError, httpx.DecodingError) as error:
            what = "cannot be reached" if isinstance(error, httpx.ConnectError) else "broke off"
            raise ServerLost(f"{what} ({self._words.clean(str(error)) or type(error).__name__})") from None
        status = response.status_code
        if status >= 500 or status in _BUSY:
            raise TryFailed(f"answered {status} ({self._words.message(response.content)})")
        if status == 401:
            todo = (
                f"put the right key into ${self._key_env}" if self._key else "name the variable of its key: api_key_env"
            )
            raise Refused(f"{self.url} refuses the API key (401): {todo}", status=status)
        if status >= 300 and status != 409:
            raise Refused(
                f"{self.url} refused {method} {path} with {status}: {self._words.message(response.content)}",
                status=status,
            )
        if not response.content:
            return None
        try:
            return json.loads(response.content)
        except ValueError:
            raise TryFailed(f"sent {len(response.content)} bytes that are no whole JSON") from None


async def _bytes_of(file: Path) -> AsyncIterator[bytes]:
    with contextlib.closing(file.open("rb")) as opened:
        while chunk := await asyncio.to_thread(opened.read, _CHUNK):
            yield chunk
