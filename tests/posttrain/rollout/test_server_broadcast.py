"""Weights broadcast to servers: equal to the policy's, as files where a broadcast fails, and for who was not there."""

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from posttrain.model import Family
from posttrain.model.loading import named_weights

from posttrain.errors import ConfigError, EngineError
from posttrain.recipe import parse_recipe
from posttrain.rollout.engine import Request, Sampling
from posttrain.rollout.server_engine import VllmServerEngine
from posttrain.serving import weight_broadcast
from tests.posttrain.rollout.fake_vllm import FakeVllm

T1 = Sampling(max_new_tokens=4)
PROMPT = Request(token_ids=np.array([5]), n=2)


@pytest.fixture(scope="module")
def tiny(load_tiny):
    return load_tiny(Family.QWEN3_VL)


@pytest.fixture(autouse=True)
def many_buckets(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(weight_broadcast, "_BUCKET_BYTES", 1 << 16)


@pytest.fixture
def servers(tiny) -> Iterator[list[FakeVllm]]:
    made = [FakeVllm(tiny.facts) for _ in range(2)]
    made[1].num_workers = 2  # a copy of the model on two GPUs
    yield made
    for server in made:
        server.stop()


@pytest.fixture
def connect(tiny) -> Iterator[Callable[..., VllmServerEngine]]:
    engines = []

    def make(*fakes: FakeVllm, **options: Any) -> VllmServerEngine:
        engines.append(VllmServerEngine([fake.url for fake in fakes], tiny.facts, broadcast="gloo", **options))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def has(server: FakeVllm, tiny: Any) -> bool:
    expected = dict(named_weights(tiny.model))
    return server.loaded.keys() == expected.keys() and all(
        torch.equal(server.loaded[name], weight) for name, weight in expected.items()
    )


def labels(engine: VllmServerEngine) -> set[int]:
    return {sample.weights_version for sample in engine.generate([PROMPT], T1)[0]}


def test_all_workers_of_all_servers_have_the_weights_and_no_file_was_written(servers, connect, tiny) -> None:
    engine = connect(*servers)
    for version in (1, 2):
        tiny.shake(version)
        engine.update_weights(tiny.policy, version)
        assert all(has(server, tiny) for server in servers) and labels(engine) == {version}
    assert [server.log.count("receive") for server in servers] == [2, 2]
    assert not any({"load", "upload"} & set(server.log) for server in servers)
    assert engine._weights_dir is not None and not list(engine._weights_dir.iterdir())


@pytest.mark.parametrize("fault", ["refuses", "leaves", "knows of no broadcasts"])
def test_where_a_broadcast_fails_the_weights_go_as_files(servers, connect, tiny, caplog, fault: str) -> None:
    engine = connect(*servers)
    if fault == "refuses":
        servers[0].load_faults = [(500, "RuntimeError: out of memory")]
    elif fault == "leaves":
        servers[0].leaves_after = 3
    else:
        servers[0].num_workers = None
    tiny.shake(3)
    engine.update_weights(tiny.policy, 3)
    assert all(has(server, tiny) for server in servers) and labels(engine) == {3}
    (said,) = [record.getMessage() for record in caplog.records if "as files" in record.getMessage()]
    words = {"refuses": "out of memory", "leaves": "no room for more", "knows of no broadcasts": "an older posttrain"}
    assert words[fault] in said
    engine.update_weights(tiny.policy, 4)  # the next one is tried as the first was
    assert all(has(server, tiny) for server in servers) and labels(engine) == {4}


def test_a_server_that_was_not_there_is_given_files_when_it_is_back(servers, connect, tiny) -> None:
    engine = connect(*servers, without_servers_s=60.0)
    servers[0].stop()
    tiny.shake(5)
    engine.update_weights(tiny.policy, 5)
    assert has(servers[1], tiny) and not servers[0].loaded
    servers[0].start()
    servers[1].stop()  # the one that is back alone answers
    assert labels(engine) == {5}
    assert has(servers[0], tiny) and "load" in servers[0].log


def test_with_no_server_there_the_run_stops(servers, connect, tiny) -> None:
    engine = connect(*servers, without_servers_s=0.5)
    for server in servers:
        server.stop()
    with pytest.raises(EngineError, match="no vLLM server answers"):
        engine.update_weights(tiny.policy, 1)


def test_another_runs_weights_are_an_error_and_no_reason_for_files(servers, connect, tiny) -> None:
    engine, other = connect(*servers), connect(*servers)
    engine.update_weights(tiny.policy, 1)
    other.update_weights(tiny.policy, 1)
    with pytest.raises(EngineError, match="by another run too"):
        engine.update_weights(tiny.policy, 2)
    assert not any("load" in server.log for server in servers)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_nccl_without_a_gpu_is_refused(servers, tiny) -> None:
    with pytest.raises(ConfigError, match="the trainer has none; use 'gloo'"):
        VllmServerEngine([servers[0].url], tiny.facts, broadcast="nccl")


@pytest.mark.parametrize(
    ("engine", "sentence"),
    [
        ({"broadcast": "gloo"}, "it needs kind 'server'"),
        ({"kind": "server", "servers": ["http://127.0.0.1:1"], "broadcast_host": "10.0.0.1"}, "needs 'broadcast'"),
        ({"kind": "server", "servers": ["http://127.0.0.1:1"], "broadcast": "smoke"}, "'gloo' or 'nccl'"),
    ],
)
def test_recipes_that_ask_for_no_possible_broadcast_are_refused(engine: dict[str, Any], sentence: str) -> None:
    stage = {"algorithm": "sapo", "data": [{"scenes": {"task": "ground", "size": 8}}]}
    with pytest.raises(ConfigError, match=sentence):
        parse_recipe({"name": "r", "model": {"path": "m"}, "engine": engine, "stages": {"sapo": stage}})
