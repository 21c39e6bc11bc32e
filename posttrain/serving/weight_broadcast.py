"""Weights by broadcast: from the trainer's memory into that of the servers' workers, bucket by bucket, without files.

Trainer and workers meet at a store that the trainer opens for one update; rank 0 of their group is the trainer. Each
bucket is announced in the store (its tensors' names, dtypes and shapes) and broadcast as bytes. Nothing is kept between
updates, so that a server which was restarted meanwhile is like any other.
"""

import json
import socket
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import timedelta
from typing import Any, Literal

import torch
from torch import distributed
from torch.distributed import PrefixStore, Store, TCPStore  # pyright: ignore[reportPrivateImportUsage]

Backend = Literal["gloo", "nccl"]

_BUCKET_BYTES = 256 << 20
_JOINING_S = 60.0
"""For workers to reach the trainer, at most: an address that is shut would be waited for in vain."""
_ALIGNED = 16
"""Bytes: a view of a bucket's bytes as any dtype has to begin at a multiple of it."""
_STEP_S = 120.0
"""For the group to form, and for a bucket to be with all, at most: a worker may still be at the last one."""
_JOINED, _BEGIN, _BUCKET = "joined", "begin", "bucket"


class BroadcastFailed(Exception):
    """The workers do not have the weights, or not all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Meeting:
    """Where and how the workers join the trainer; JSON on its way to them."""

    host: str
    port: int
    backend: Backend
    world_size: int
    """The trainer and all workers of all servers."""
    timeout_s: float
    """For the next bucket to be announced; joining and a broadcast have at most that too."""

    def as_json(self) -> dict[str, Any]:
        return asdict(self)


class Broadcast:
    """The trainer's side of one update."""

    def __init__(self, host: str, num_workers: int, *, backend: Backend, timeout_s: float) -> None:
        """host: this machine's address, as the workers reach it; nothing listens on any other.

        Raises BroadcastFailed where nothing can listen there.
        """
        self._device = torch.device("cuda", torch.cuda.current_device()) if backend == "nccl" else torch.device("cpu")
        try:
            family = socket.getaddrinfo(host, None)[0][0]
            listening = socket.create_server((host, 0), family=family)
        except OSError as error:
            raise BroadcastFailed(f"nothing can listen on {host}: {error}") from error
        self.meeting = Meeting(
            host=host,
            port=listening.getsockname()[1],
            backend=backend,
            world_size=1 + num_workers,
            timeout_s=timeout_s,
        )
        self._store = TCPStore(
            host,
            self.meeting.port,
            is_master=True,
            wait_for_workers=False,
            timeout=timedelta(seconds=timeout_s),
            master_listen_fd=listening.detach(),
        )

    def send(self, weights: Iterable[tuple[str, torch.Tensor]], *, is_off: Callable[[], bool]) -> Any:
        """Everything to all workers. The group, to be kept until they have said that they have it.

        is_off: whether a server has given up, which is looked at until all workers have joined.
        Raises BroadcastFailed where a worker does not join, or is lost on the way.
        """
        number, awaited = 0, _BEGIN
        try:
            self._wait_for_workers(is_off)
            self._tell(awaited, {})
            awaited = f"{_BUCKET}/0"
            group = _group(self._store, self.meeting, rank=0)
            for bucket in _buckets(weights):
                packed = _packed(bucket, self._device)
                self._tell(awaited, {"tensors": [_described(*one) for one in bucket]})
                number += 1
                awaited = f"{_BUCKET}/{number}"
                _broadcast(group, packed)
            self._tell(awaited, {"end": True})
        except BaseException as error:
            with suppress(RuntimeError):  # the workers need not wait for what never comes
                self._tell(awaited, {"failed": type(error).__name__})
            if isinstance(error, RuntimeError):
                raise BroadcastFailed(_first_line(error)) from error
            raise
        return group

    def _tell(self, key: str, told: dict[str, Any]) -> None:
        self._store.set(key, json.dumps(told))

    def _wait_for_workers(self, is_off: Callable[[], bool]) -> None:
        within_s = min(self.meeting.timeout_s, _JOINING_S)
        until = time.monotonic() + within_s
        awaited = [f"{_JOINED}/{rank}" for rank in range(1, self.meeting.world_size)]
        while awaited and not self._store.check(awaited):
            if is_off():
                raise BroadcastFailed("a server did not join")
            if time.monotonic() > until:
                raise BroadcastFailed(
                    f"not all {len(awaited)} workers reached {self.meeting.host}:{self.meeting.port} in {within_s:g} s"
                )
            time.sleep(0.005)


def received(meeting: Meeting, rank: int, device: torch.device) -> Generator[tuple[str, torch.Tensor]]:
    """A worker's side: the weights as they come, in memory of their own. To be closed by whoever stops before the end.

    device: the worker's, for NCCL; gloo brings them to the host, as files would be.
    Raises BroadcastFailed where the trainer is lost or gives up.
    """
    try:
        joining_s = min(meeting.timeout_s, _JOINING_S)
        store = TCPStore(meeting.host, meeting.port, is_master=False, timeout=timedelta(seconds=joining_s))
        store.set_timeout(timedelta(seconds=meeting.timeout_s))
        store.set(f"{_JOINED}/{rank}", "")
        _told(store, _BEGIN)
        group = _group(store, meeting, rank)
    except RuntimeError as error:
        raise BroadcastFailed(_first_line(error)) from error
    number = 0
    try:
        while True:
            try:
                told = _told(store, f"{_BUCKET}/{number}")
                if "end" in told:
                    return
                places, size = _places(told["tensors"])
                bucket = torch.empty(size, dtype=torch.uint8, device=device if meeting.backend == "nccl" else "cpu")
                _broadcast(group, bucket)
            except RuntimeError as error:
                raise BroadcastFailed(_first_line(error)) from error
            for (name, dtype, shape), (start, end) in zip(told["tensors"], places, strict=True):
                yield name, bucket[start:end].view(getattr(torch, dtype)).view(shape)
            number += 1
    finally:
        group.abort()  # at once: the others must not wait for a worker that has failed


def _told(store: Store, key: str) -> dict[str, Any]:
    """What the trainer says, waited for."""
    told = json.loads(store.get(key))
    if "failed" in told:
        raise BroadcastFailed(f"the trainer gave up: {told['failed']}")
    return told


def own_address(towards: str) -> str:
    """The address of this machine from which `towards` (a host) is reached. Nothing is sent."""
    family, kind, protocol, _, address = socket.getaddrinfo(towards, 9, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind, protocol) as asked:
        asked.connect(address)
        return asked.getsockname()[0]


def _group(store: Store, meeting: Meeting, rank: int) -> Any:
    timeout = timedelta(seconds=min(meeting.timeout_s, _STEP_S))
    inner = PrefixStore("group", store)
    if meeting.backend == "nccl":
        options: Any = distributed.ProcessGroupNCCL.Options()
        options._timeout = timeout
        return distributed.ProcessGroupNCCL(inner, rank, meeting.world_size, options)
    gloo: Any = distributed.ProcessGroupGloo
    options = gloo._Options()
    options._timeout = timeout
    # Left to itself it would listen on whatever address the machine's name has.
    options._devices = [gloo.create_device(hostname=own_address(meeting.host))]
    return gloo(inner, rank, meeting.world_size, options)


def _broadcast(group: Any, bucket: torch.Tensor) -> None:
    options = distributed.BroadcastOptions()
    options.rootRank, options.rootTensor = 0, 0
    group.broadcast([bucket], options).wait()


def _buckets(weights: Iterable[tuple[str, torch.Tensor]]) -> Iterator[list[tuple[str, torch.Tensor]]]:
    bucket: list[tuple[str, torch.Tensor]] = []
    held = 0
    for name, weight in weights:
        if bucket and held + weight.nbytes > _BUCKET_BYTES:
            yield bucket
            bucket, held = [], 0
        bucket.append((name, weight))
        held += weight.nbytes
    if bucket:
        yield bucket


def _described(name: str, tensor: torch.Tensor) -> tuple[str, str, list[int]]:
    return name, str(tensor.dtype).removeprefix("torch."), list(tensor.shape)


def _places(described: Sequence[tuple[str, str, list[int]]]) -> tuple[list[tuple[int, int]], int]:
    """Where in a bucket each tensor begins and ends, and the bucket's size: bytes."""
    places, end = [], 0
    for _, dtype, shape in described:
        start = -(-end // _ALIGNED) * _ALIGNED
        end = start + getattr(torch, dtype).itemsize * torch.Size(shape).numel()
        places.append((start, end))
    return places, end


def _packed(bucket: Sequence[tuple[str, torch.Tensor]], device: torch.device) -> torch.Tensor:
    places, size = _places([_described(*one) for one in bucket])
    packed = torch.empty(size, dtype=torch.uint8, device=device)
    for (_, tensor), (start, end) in zip(bucket, places, strict=True):
        packed[start:end].view(tensor.dtype).copy_(tensor.detach().reshape(-1))
    return packed


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
