"""A judge: asked for a verdict until it gives one, with what it said before remembered and what it costs counted."""

import os
import secrets
import threading
from collections.abc import Callable, Coroutine, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from .judge_cache import VerdictCache
from .judge_client import JudgeClient, JudgeCounts, JudgeError
from .judge_prompts import JudgeQuestion
from .judge_server import JudgeServer
from .judge_verdicts import NoVerdictError

if TYPE_CHECKING:
    import asyncio  # here and in its functions: at the top it would take a sixth of the time to import the rewards

_WARMER = 0.3
"""A judge that gave no verdict is asked again at a temperature higher by this."""

Verdict = Mapping[str, Any]
"""The fields of a verdict, as its format accepts them."""


@dataclass(slots=True)
class _Shared:
    task: "asyncio.Task[Verdict]"
    waiting: int = 0


class Judge:
    """One server with its cache, budget and counts. Opens nothing before it is asked.

    The same question that is asked several times at once, as by the equal answers of a group, is asked once.
    """

    def __init__(self, server: JudgeServer) -> None:
        self.server = server
        self.counts = JudgeCounts()
        self._client: JudgeClient | None = None
        self._cache = VerdictCache(server.cache) if server.cache else None
        self._under_way: dict[str, _Shared] = {}

    async def ask(self, question: JudgeQuestion) -> Verdict:
        """The verdict's fields; on the judges' loop alone. Raises `JudgeError` where there is none."""
        self.counts.asked += 1
        try:
            client = self._client = self._client or JudgeClient(self.server, self.counts)
            model = await client.model()
            key = question.key(model, self._sampling(0))
            if self._cache is not None and (kept := self._cache.get(key)) is not None and question.verdict.holds(kept):
                self.counts.cache_hits += 1
                return kept
            return await self._shared(key, lambda: self._verdict(client, model, question, key))
        except JudgeError:
            self.counts.failed += 1
            raise

    async def _shared(self, key: str, ask: Callable[[], Coroutine[Any, Any, Verdict]]) -> Verdict:
        """What `ask` gives, begun once for all who want the same; it ends early where they have all been cancelled."""
        import asyncio

        shared = self._under_way.get(key)
        if shared is None:
            shared = self._under_way[key] = _Shared(asyncio.create_task(ask()))
        shared.waiting += 1
        try:
            return await asyncio.shield(shared.task)
        finally:
            shared.waiting -= 1
            if not shared.waiting:
                del self._under_way[key]
                shared.task.cancel()  # has no effect on one that is done

    def metrics(self) -> dict[str, float]:
        """What has been asked so far, as metrics: `judge/failed_frac`, `judge/requests` and so on."""
        return _metrics([self.counts])

    async def _verdict(self, client: JudgeClient, model: str, question: JudgeQuestion, key: str) -> Verdict:
        why = ""
        for attempt in range(self.server.verdict_tries):
            verdict_id = secrets.token_hex(8)
            body = {"model": model, "messages": question.messages(secrets.token_hex(8), verdict_id)}
            body |= self._sampling(attempt)
            if self.server.structured:
                schema = {"name": "verdict", "strict": True, "schema": question.verdict.schema()}
                body["response_format"] = {"type": "json_schema", "json_schema": schema}
            reply = await client.complete({name: value for name, value in body.items() if value is not None})
            try:
                if not reply.finished:
                    raise NoVerdictError(f"it was cut off after {self.server.max_reply_tokens} tokens")
                verdict = question.verdict.parse(reply.text, verdict_id)
            except NoVerdictError as error:
                self.counts.unreadable += 1
                why = str(error)
                continue
            if self._cache is not None:
                self._cache.put(key, verdict)
            return verdict
        tries = f"{self.server.verdict_tries} tries; the last time" if self.server.verdict_tries > 1 else "1 try:"
        raise JudgeError(f"the judge gave no verdict in {tries} {why}")

    def _sampling(self, attempt: int) -> dict[str, Any]:
        return {
            "temperature": self.server.temperature + _WARMER * attempt,
            "max_tokens": self.server.max_reply_tokens,
            **self.server.extra_body,
        }


_judges: dict[tuple[int, str], Judge] = {}
_finding = threading.Lock()


def find_judge(server: JudgeServer) -> Judge:
    """The judge with these settings; this process has one. A forked child has judges of its own."""
    with _finding:
        return _judges.setdefault((os.getpid(), server.identity), Judge(server))


def judge_metrics() -> dict[str, float]:
    """`Judge.metrics` over all judges of this process; empty where none was asked."""
    counts = [judge.counts for (process, _), judge in list(_judges.items()) if process == os.getpid()]
    return _metrics(counts) if any(each.asked for each in counts) else {}


def _metrics(counts: list[JudgeCounts]) -> dict[str, float]:
    sums = {
        name: float(sum(getattr(each, name) for each in counts))
        for name in ("asked", "failed", "cache_hits", "requests", "retries", "unreadable", "tokens")
    }
    fractions = {"failed_frac": sums["failed"] / max(sums["asked"], 1.0)}
    return {f"judge/{name}": value for name, value in (sums | fractions).items()}
