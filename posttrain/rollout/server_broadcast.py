"""One update of all servers that are there by broadcast: they are invited over HTTP, and met in a group."""

import asyncio
import logging
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from threading import Event

import httpx
import torch

from posttrain.rollout.server_client import TryFailed
from posttrain.rollout.server_fleet import Fleet
from posttrain.rollout.server_member import Member
from posttrain.rollout.server_stream import Background
from posttrain.rollout.server_weights import Published
from posttrain.server_words import is_this_machine
from posttrain.serving.weight_broadcast import Backend, Broadcast, BroadcastFailed, own_address

_log = logging.getLogger(__name__)

_LAST_WORDS_S = 10.0
"""For the servers to say what went wrong."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Broadcasting:
    """How weights are broadcast to the servers of a fleet.

    host: this machine's address as the servers reach it; None finds it. timeout_s: of every step.
    """

    fleet: Fleet
    background: Background
    backend: Backend
    host: str | None
    timeout_s: float

    def give(self, weights: Iterable[tuple[str, torch.Tensor]], present: Published) -> None:
        """Raises BroadcastFailed where not every server that is there has them; EngineError where one never will."""
        begun = time.monotonic()
        members = self._wait_for(self.fleet.there())
        silent = [member.url for member in members if member.num_workers is None]
        if silent or not members:
            raise BroadcastFailed(f"{silent[0]} is of an older posttrain" if silent else "no server answers")
        host = self.host or _address_for([member.url for member in members])
        sending = Broadcast(
            host,
            sum(member.num_workers or 0 for member in members),
            backend=self.backend,
            timeout_s=self.timeout_s,
        )
        broken = Event()
        received = asyncio.run_coroutine_threadsafe(
            self.fleet.receive(present, _invitations(members, sending), broken=broken), self.background.loop
        )
        failures: list[str] = []
        group = None
        try:
            try:
                group = sending.send(weights, is_off=broken.is_set)
            except BroadcastFailed as failure:
                failures.append(str(failure))
            try:
                received.result(_LAST_WORDS_S if failures else self.timeout_s)
            except TryFailed as failure:
                failures.append(str(failure))
            except TimeoutError:
                failures.append("a server did not say that it has them")
        finally:
            received.cancel()
            del group  # not before: what is still on its way would be lost with it
        if failures:
            raise BroadcastFailed("; ".join(failures))
        _log.info("broadcast weights %s to %d servers in %.1f s", present.label, len(members), time.monotonic() - begun)

    def _wait_for(self, members: object) -> list[Member]:
        return asyncio.run_coroutine_threadsafe(members, self.background.loop).result()  # pyright: ignore


def _invitations(members: Sequence[Member], sending: Broadcast) -> list[tuple[Member, dict[str, object]]]:
    invited, first_rank = [], 1
    for member in members:
        invited.append((member, {"meeting": sending.meeting.as_json(), "first_rank": first_rank}))
        first_rank += member.num_workers or 0
    return invited


def _address_for(urls: Sequence[str]) -> str:
    hosts = [httpx.URL(url).host for url in urls]
    elsewhere = [host for host in hosts if not is_this_machine(host)]
    try:
        return own_address((elsewhere or hosts)[0])
    except OSError as error:
        raise BroadcastFailed(f"no way to {(elsewhere or hosts)[0]}: {error}") from error
