"""Weights by broadcast, between threads that stand for a trainer and workers: whole, in order, and never waited for."""

import socket
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import Any

import pytest
import torch

from posttrain.serving import weight_broadcast
from posttrain.serving.weight_broadcast import Broadcast, BroadcastFailed, own_address, received

CPU = torch.device("cpu")
_PATIENCE_S = 60.0

Weights = list[tuple[str, torch.Tensor]]


@pytest.fixture
def threads() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(4) as pool:
        yield pool


def broadcast(num_workers: int, timeout_s: float = _PATIENCE_S) -> Broadcast:
    return Broadcast("127.0.0.1", num_workers, backend="gloo", timeout_s=timeout_s)


def weights_of_every_kind() -> Weights:
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(40, 30, generator=generator)
    return [
        ("scalar", torch.tensor(3.5)),
        ("odd.bytes", torch.arange(7, dtype=torch.uint8)),
        ("half", torch.randn(33, generator=generator).half()),
        ("bf16", torch.randn(5, 3, generator=generator).bfloat16()),
        ("empty", torch.zeros(0, 4)),
        ("transposed", wide.T),
        ("a part", wide[:, 3:7]),
        ("double", torch.randn(2, 2, 2, generator=generator).double()),
        ("long", torch.tensor([2**40, -1])),
    ]


def taken(sending: Broadcast, rank: int, most: int | None = None) -> Weights:
    found: Weights = []
    with closing(received(sending.meeting, rank, CPU)) as weights:
        for name, weight in weights:
            if len(found) == most:
                raise ValueError("no room for more")
            found.append((name, weight))
    return found


def is_same(ours: Weights, theirs: Weights) -> bool:
    return all(
        name == other and a.dtype == b.dtype and torch.equal(a, b)
        for (name, a), (other, b) in zip(ours, theirs, strict=True)
    )


@pytest.mark.parametrize("bucket_bytes", [1, 100, 1 << 20])
@pytest.mark.parametrize("num_workers", [1, 3])
def test_every_worker_gets_every_weight_bit_for_bit(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch, bucket_bytes: int, num_workers: int
) -> None:
    monkeypatch.setattr(weight_broadcast, "_BUCKET_BYTES", bucket_bytes)
    sending, weights = broadcast(num_workers), weights_of_every_kind()
    workers = [threads.submit(taken, sending, rank) for rank in range(1, num_workers + 1)]
    group = sending.send(weights, is_off=lambda: False)
    assert all(is_same(weights, worker.result(_PATIENCE_S)) for worker in workers)
    del group


def test_nothing_at_all_is_a_broadcast_too(threads: ThreadPoolExecutor) -> None:
    sending = broadcast(1)
    worker = threads.submit(taken, sending, 1)
    group = sending.send([], is_off=lambda: False)
    assert worker.result(_PATIENCE_S) == []
    del group


def test_a_worker_that_fails_on_the_way_ends_it_for_all(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_broadcast, "_BUCKET_BYTES", 1)
    sending = broadcast(2, timeout_s=600.0)
    workers = [threads.submit(taken, sending, 1, 2), threads.submit(taken, sending, 2)]
    with pytest.raises(BroadcastFailed):
        # So much of it that no buffer on the way holds it all.
        sending.send(weights_of_every_kind() + [("more", torch.zeros(1 << 22))] * 20, is_off=lambda: False)
    with pytest.raises(ValueError, match="no room"):
        workers[0].result(_PATIENCE_S)
    with pytest.raises(BroadcastFailed):
        workers[1].result(_PATIENCE_S)


def test_a_trainer_that_fails_on_the_way_tells_the_workers(
    threads: ThreadPoolExecutor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_broadcast, "_BUCKET_BYTES", 1)

    def weights() -> Iterator[tuple[str, torch.Tensor]]:
        yield "a", torch.ones(3)
        yield "b", torch.ones(3)
        raise MemoryError

    sending = broadcast(1, timeout_s=600.0)
    worker: Future[Any] = threads.submit(taken, sending, 1)
    with pytest.raises(MemoryError):
        sending.send(weights(), is_off=lambda: False)
    with pytest.raises(BroadcastFailed, match="the trainer gave up: MemoryError"):
        worker.result(_PATIENCE_S)


def test_workers_that_do_not_come_are_not_waited_for(threads: ThreadPoolExecutor) -> None:
    with pytest.raises(BroadcastFailed, match=r"not all 1 workers reached 127.0.0.1:\d+ in 0.2 s"):
        broadcast(1, timeout_s=0.2).send([], is_off=lambda: False)
    sending = broadcast(2, timeout_s=600.0)
    worker = threads.submit(taken, sending, 1)  # the other one's server has refused
    with pytest.raises(BroadcastFailed, match="a server did not join"):
        sending.send([], is_off=lambda: True)
    with pytest.raises(BroadcastFailed, match="the trainer gave up"):
        worker.result(_PATIENCE_S)


def test_a_trainer_that_is_gone_is_an_error_for_a_worker() -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    meeting = weight_broadcast.Meeting(
        host="127.0.0.1", port=port, backend="gloo", world_size=2, timeout_s=0.5
    )  # closed
    with pytest.raises(BroadcastFailed):
        next(received(meeting, 1, CPU))


def test_it_listens_on_the_address_that_it_was_given_and_no_other() -> None:
    sending = broadcast(1)
    with socket.create_connection(("127.0.0.1", sending.meeting.port), timeout=60):
        pass
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.2", sending.meeting.port), timeout=60)
    with pytest.raises(BroadcastFailed, match=r"nothing can listen on 192\.0\.2\.1"):
        Broadcast("192.0.2.1", 1, backend="gloo", timeout_s=1.0)
    assert own_address("127.0.0.1") == "127.0.0.1"
