"""One or many vLLM servers as one: requests spread by load, tried again elsewhere, and never waited for in vain."""

import asyncio
import time
from collections.abc import Sequence
from dataclasses import dataclass
from threading import Event
from typing import Any, NoReturn

from posttrain.errors import EngineError
from posttrain.rollout.engine import Sample
from posttrain.rollout.server_client import GENERATE, ServerLost, TryFailed
from posttrain.rollout.server_homes import Homes
from posttrain.rollout.server_member import FRESH, Member
from posttrain.rollout.server_samples import Job, said_in
from posttrain.rollout.server_weights import Published

_SLACK = 4
"""Requests that a server which knows a prompt may have above the least loaded one, besides a half."""
_AGAIN_S = (0.5, 5.0)
"""First and longest pause before a server that is down is asked again."""
_LOOK_AGAIN_S = 0.2
"""While no server is there: between two looks at whether that has been for too long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long what is waited for."""

    timeout_s: float
    """Of one try of one request."""
    retries: int
    """Tries after the first."""
    without_servers_s: float
    """With no server answering, before the engine gives up: long enough for a restart."""
    probe_every_s: float = 5.0
    """Between two looks at the health of a server that is at a request."""
    probe_s: float = 30.0
    """For its health to be said."""


class Fleet:
    """Used from one event loop."""

    def __init__(self, members: Sequence[Member], patience: Patience, *, concurrency: int) -> None:
        """concurrency: requests that a server is at, at most; it makes batches of them itself."""
        self.members, self._patience, self._concurrency = members, patience, concurrency
        self.present: Published | None = None
        self._changed = asyncio.Condition()
        self._looking: set[asyncio.Task[None]] = set()

    @property
    def num_running(self) -> int:
        return sum(member.num_running for member in self.members)

    async def sample(self, job: Job, homes: Homes) -> Sample:
        """One sample, stamped with the version whose weights said it.

        Raises EngineError when no server has answered for too long, after too many tries, or where trying is no use.
        """
        failures = []
        for attempt in range(self._patience.retries + 1):
            if attempt:
                await asyncio.sleep(min(0.25 * 2**attempt, 5.0))
            member = await self._free(job, homes)
            try:
                with member.at_work():
                    return await self._asked(member, job)
            except ServerLost as failure:
                self._lost(member, str(failure))
                failures.append(f"{member.url} {failure}")
            except TryFailed as failure:
                member.doubt()
                failures.append(f"{member.url} {failure}")
            finally:
                async with self._changed:
                    self._changed.notify()
        raise EngineError(
            f"a request failed {len(failures)} times, the last time {failures[-1]}: see in the server's log what "
            "went wrong there"
        )

    async def look(self) -> None:
        """Learns what the servers are; waits for the first one to answer."""
        begun = time.monotonic()
        while True:
            results = await asyncio.gather(*(member.look() for member in self.members), return_exceptions=True)
            absent = []
            for member, result in zip(self.members, results, strict=True):
                if isinstance(result, (ServerLost, TryFailed)):
                    absent.append(member)
                    member.why = str(result)
                elif isinstance(result, BaseException):
                    raise result
            if len(absent) < len(self.members):
                for member in absent:
                    self._lost(member, member.why)
                return
            if time.monotonic() - begun >= self._patience.without_servers_s:
                self._give_up()
            await asyncio.sleep(_AGAIN_S[0])

    async def hold(self, present: Published | None) -> None:
        """Gives the weights to all servers. Those that are not there get them when they are back, before all else.

        Raises EngineError when no server has them for too long, or where one cannot hold them.
        """
        self.present = present
        results = await asyncio.gather(*(self._gets(member) for member in self.members), return_exceptions=True)
        for member, result in zip(self.members, results, strict=True):
            if isinstance(result, (ServerLost, TryFailed)):
                self._lost(member, str(result))
            elif isinstance(result, BaseException):
                raise result
        while all(member.down_since is not None for member in self.members):
            self._check_patience()
            await self._change(within_s=_LOOK_AGAIN_S)

    async def there(self) -> list[Member]:
        """The servers that answer now, and what they are; those that do not are looked for."""
        up = [member for member in self.members if member.down_since is None]
        results = await asyncio.gather(*(member.look() for member in up), return_exceptions=True)
        there = []
        for member, result in zip(up, results, strict=True):
            if isinstance(result, (ServerLost, TryFailed)):
                self._lost(member, str(result))
            elif isinstance(result, BaseException):
                raise result
            else:
                there.append(member)
        return there

    async def receive(
        self, present: Published, invited: Sequence[tuple[Member, dict[str, Any]]], *, broken: Event
    ) -> None:
        """Has servers join a broadcast, each with its invitation. The others get files when they are back.

        broken: set as soon as one has failed, for then the others wait for nobody who comes.
        Raises TryFailed with what each of those that failed has said, when all have ended, or EngineError.
        """
        self.present = present
        joining = (self._receives(member, present, invitation, broken) for member, invitation in invited)
        failures = [failure for failure in await asyncio.gather(*joining) if failure]
        if failures:
            raise TryFailed("; ".join(failures))

    async def _receives(self, member: Member, present: Published, invitation: dict[str, Any], broken: Event) -> str:
        """What went wrong."""
        try:
            await member.receive(present, invitation)
        except (ServerLost, TryFailed) as failure:
            broken.set()
            return f"{member.url} {failure}"
        except EngineError:
            broken.set()
            raise
        return ""

    async def close(self) -> None:
        for task in self._looking:
            task.cancel()
        for member in self.members:
            await member.client.close()

    async def _gets(self, member: Member) -> None:
        try:
            await member.hold(self.present)
        except TryFailed:
            await asyncio.sleep(_AGAIN_S[0])
            await member.hold(self.present)
        member.found()

    async def _asked(self, member: Member, job: Job) -> Sample:
        present, patience = self.present, self._patience
        try:
            await member.hold(present)
        except (TryFailed, EngineError) as failure:  # another may hold them
            if present is None and isinstance(failure, EngineError):
                raise
            raise ServerLost(f"does not hold the present weights: {failure}") from failure
        reply = await member.ask(
            GENERATE,
            job.body,
            timeout_s=patience.timeout_s,
            probe_every_s=patience.probe_every_s,
            probe_s=patience.probe_s,
        )
        said = said_in(reply, job)
        wanted = present.label if present is not None else FRESH
        if said.labels != {wanted}:
            raise TryFailed(f"sampled with weights {', '.join(sorted(said.labels))} instead of {wanted}")
        return said.sample(present.version if present is not None else 0)

    async def _free(self, job: Job, homes: Homes) -> Member:
        """A server with room: the one that knows the prompt, unless others have much less to do."""
        token_ids = job.request.token_ids
        while True:
            there = [member for member in self.members if member.down_since is None]
            if not there:
                self._check_patience()
            least = min(there, key=lambda member: member.num_running, default=None)
            if least is not None and least.num_running < self._concurrency:
                home = homes.of(token_ids)
                if home is None:
                    homes.learn(token_ids, least)
                    return least
                room = min(least.num_running * 1.5 + _SLACK, self._concurrency)
                return home if home in there and home.num_running < room else least
            await self._change(within_s=5.0 if there else _LOOK_AGAIN_S)

    async def _change(self, *, within_s: float) -> None:
        """Waits until a server is back or has room."""
        async with self._changed:
            try:
                async with asyncio.timeout(within_s):
                    await self._changed.wait()
            except TimeoutError:
                pass

    def _check_patience(self) -> None:
        """No server is there: for too long?"""
        since = max(member.down_since or 0.0 for member in self.members)
        if time.monotonic() - since > self._patience.without_servers_s:
            self._give_up()

    def _lost(self, member: Member, why: str) -> None:
        if member.down_since is None:
            member.lost(why)
            task = asyncio.get_running_loop().create_task(self._look_for(member))
            self._looking.add(task)
            task.add_done_callback(self._looking.discard)

    async def _look_for(self, member: Member) -> None:
        pause_s, longest_s = _AGAIN_S
        while True:
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, longest_s)
            try:
                await member.hold(self.present)
            except (ServerLost, TryFailed, EngineError) as failure:
                member.why = str(failure)
                continue
            member.found()
            async with self._changed:
                self._changed.notify_all()
            return

    def _give_up(self) -> NoReturn:
        told = "; ".join(f"{member.url} {member.why}" for member in self.members)
        raise EngineError(f"no vLLM server answers ({told}): start one with `posttrain serve`")
