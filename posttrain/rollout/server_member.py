"""A vLLM server of the fleet: which weights it holds, how it is given the present ones, and whether it is there."""

import asyncio
import json
import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from posttrain.errors import EngineError
from posttrain.model import Family, ModelFacts
from posttrain.rollout.server_client import WEIGHTS, Refused, ServerClient, ServerLost, TryFailed
from posttrain.rollout.server_weights import Published

_log = logging.getLogger(__name__)

FRESH = "default"
"""vLLM's label of weights that were loaded when the server started."""
HALF_LOADED = "half-loaded"
_ASK_S = 30.0
"""For a server to say what it holds."""


class Member:
    """Used from the fleet's event loop."""

    def __init__(self, client: ServerClient, facts: ModelFacts, *, load_s: float) -> None:
        """load_s: seconds that the server may take to be given weights."""
        self.client, self._facts, self._load_s = client, facts, load_s
        self.num_running = 0
        self.down_since: float | None = None
        self.why = ""
        """It is down."""
        self.max_model_len = 0
        self.max_images: int | None = None
        """None until it is known, and for a server that does not say."""
        self.num_workers: int | None = None
        """Of all its copies of the model; None for a server that does not say."""
        self._label: str | None = None  # what it is known to hold; None = it has to be asked
        self._given: str | None = None  # the process that has had weights of this run
        self._giving = asyncio.Lock()
        self._watch: asyncio.Task[None] | None = None

    @property
    def url(self) -> str:
        return self.client.url

    def doubt(self) -> None:
        """It may have been restarted: asked what it holds before it is asked for more."""
        self._label = None

    def lost(self, why: str) -> None:
        self.doubt()
        self.why = why
        if self.down_since is None:
            self.down_since = time.monotonic()
            _log.warning("vLLM server %s %s", self.url, why)

    def found(self) -> None:
        if self.down_since is not None:
            _log.warning("vLLM server %s answers again, after %.0f s", self.url, time.monotonic() - self.down_since)
        self.down_since = None

    async def hold(self, present: Published | None) -> None:
        """Sees to it that the server holds the present weights; None: those that it was started with.

        Raises ServerLost and TryFailed, EngineError where it cannot hold them or others use it for weights of theirs.
        """
        wanted = present.label if present is not None else FRESH
        if self._label == wanted:
            return
        async with self._giving:
            if self._label == wanted:
                return
            status = await self._status()
            if status["label"] != wanted:
                if present is None:
                    raise EngineError(
                        f"{self.url} holds weights of another run ('{status['label']}'): restart it, or update its "
                        "weights before it is asked"
                    )
                self._check_takes(present, status)
                await self._give(present)
            self._label, self._given = wanted, status["process"]

    async def receive(self, present: Published, invitation: dict[str, Any]) -> None:
        """Has the server join the trainer's broadcast of the present weights. Raises as `hold` does."""
        async with self._giving:
            status = await self._status()
            self._check_takes(present, status)
            self.doubt()
            reply = await self._load(present, invitation)
            _check_has(present, reply)
            self._label, self._given = present.label, status["process"]

    def _check_takes(self, present: Published, status: dict[str, Any]) -> None:
        run = present.label.partition("-")[0]
        foreign = status["label"] not in (FRESH, HALF_LOADED) and not status["label"].startswith(run + "-")
        if foreign and status["process"] == self._given:
            raise EngineError(f"{self.url} is given weights by another run too: give each run its own servers")
        if status.get("device") == "cpu" and self._facts.family is Family.QWEN3_VL_MOE:
            raise EngineError(
                f"{self.url}: vLLM on a CPU packs the weights of experts once and cannot take new ones: serve on a GPU"
            )

    async def look(self) -> None:
        """Learns what the server is."""
        await self._status()

    async def _status(self) -> dict[str, Any]:
        try:
            status = await self.client.get(WEIGHTS, timeout_s=_ASK_S)
        except Refused as refusal:
            if refusal.status not in (404, 405):
                raise
            raise EngineError(f"{self.url} cannot take weights: start it with `posttrain serve`") from refusal
        if not isinstance(status, dict) or not {"label", "process", "max_model_len"} <= status.keys():
            raise EngineError(f"{self.url} cannot take weights: start it with `posttrain serve`")
        if status.get("logprobs_mode") != "processed_logprobs":
            raise EngineError(
                f"{self.url} gives log-probabilities as '{status.get('logprobs_mode')}', not after the temperature: "
                "start it with `posttrain serve`"
            )
        self.max_model_len, self.max_images = int(status["max_model_len"]), status.get("max_images")
        self.num_workers = status.get("workers")
        return status

    async def _give(self, present: Published) -> None:
        files = present.files()
        if not files:
            present.wanted.set()
            raise TryFailed("lacks the present weights, of which this process has no files")
        begun = time.monotonic()
        reply = await self._load(present, {"files": files})
        for name in reply.get("missing", ()):  # it does not see the trainer's folder
            if name in files:
                path = f"{WEIGHTS}/{present.label}/{name}"
                await self.client.put(path, present.folder / name, timeout_s=self._load_s)
        if "missing" in reply:
            reply = await self._load(present, {"files": files})
        _check_has(present, reply)
        _log.info("gave %s weights %s in %.1f s", self.url, present.label, time.monotonic() - begun)

    async def _load(self, present: Published, told: dict[str, Any]) -> dict[str, Any]:
        path = f"{WEIGHTS}/{present.label}"
        reply = await self.client.post(path, json.dumps(told).encode(), timeout_s=self._load_s)
        if not isinstance(reply, dict):
            raise TryFailed("sent an answer about weights that is none")
        return reply

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """One request's place at the server."""
        self.num_running += 1
        try:
            yield
        finally:
            self.num_running -= 1
            if not self.num_running and self._watch is not None:
                self._watch.cancel()
                self._watch = None

    async def ask(self, path: str, body: bytes, *, timeout_s: float, probe_every_s: float, probe_s: float) -> Any:
        """The answer to a request, or ServerLost as soon as the server's health fails: a hang is not waited out."""
        if self._watch is None or self._watch.done():
            self._watch = asyncio.create_task(self._until_unhealthy(probe_every_s, probe_s))
        watch = self._watch
        asked = asyncio.create_task(self.client.post(path, body, timeout_s=timeout_s))
        try:
            await asyncio.wait({asked, watch}, return_when=asyncio.FIRST_COMPLETED)
            if asked.done():
                return asked.result()
            raise ServerLost("does not answer /health")
        finally:
            asked.cancel()

    async def _until_unhealthy(self, every_s: float, probe_s: float) -> None:
        """Returns when two looks in a row have failed: one may meet a restart of a connection."""
        missed = 0
        while missed < 2:
            await asyncio.sleep(every_s)
            missed = 0 if await self.client.is_healthy(timeout_s=probe_s) else missed + 1


def _check_has(present: Published, reply: dict[str, Any]) -> None:
    if reply.get("label") != present.label:
        raise TryFailed(f"did not take the weights: {json.dumps(reply)[:200]}")
