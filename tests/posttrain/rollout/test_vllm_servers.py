"""Real servers of `posttrain serve`: the trainer's log-probabilities, new weights, and servers killed and restarted."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
import pytest
from peft import LoraConfig, get_peft_model
from posttrain.model import Budget, Family, PackedPolicy
from posttrain.model.loading import save_model

from posttrain.errors import EngineError
from posttrain.pipeline import run_recipe
from posttrain.recipe import parse_recipe
from posttrain.rollout.engine import Answer, Capacity, Sampling, Stream
from posttrain.rollout.server_engine import VllmServerEngine

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

PARITY = 1e-5
"""Nats in float32, measured 2e-6."""
_STARTS_WITHIN_S = 900
_KEY = "a-key-of-tests"


@dataclass
class Server:
    """A `posttrain serve` of its own process group, on the same port after every start."""

    folder: Path
    log: Path
    weights_dir: Path | None
    port: int
    process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self, folder: Path | None = None) -> None:
        command = [sys.executable, "-m", "posttrain", "serve", str(folder or self.folder), "--port", str(self.port)]
        command += ["--dtype", "float32", "--max-model-len", "512", "--max-images", "4", "--api-key-env", "ROLLOUT_KEY"]
        command += ["--weights-dir", str(self.weights_dir)] if self.weights_dir else []
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "ROLLOUT_KEY": _KEY}
        with self.log.open("ab") as out:
            self.process = subprocess.Popen(
                command, env=environment, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
            )

    def wait(self) -> None:
        until = time.monotonic() + _STARTS_WITHIN_S
        with httpx.Client(trust_env=False) as client:
            while self.process is not None and self.process.poll() is None and time.monotonic() < until:
                try:
                    if client.get(self.url + "/health").status_code == 200:
                        return
                except httpx.TransportError:
                    time.sleep(0.3)
        self.kill()
        pytest.fail(f"the server did not start:\n{self.log.read_text(errors='replace')[-3000:]}")

    def stop(self) -> None:
        """As if it hung."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGSTOP)

    def kill(self) -> None:
        """Without a word of farewell."""
        if self.process is not None and self.process.poll() is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait(20)


@pytest.fixture(scope="module")
def servers(load_tiny, tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[Server]]:
    """Two: one is sent its weights, the other finds them in the shared folder."""
    pytest.importorskip("vllm", reason="vLLM is not installed")
    folder = load_tiny(Family.QWEN3_VL).folder
    shared, logs = tmp_path_factory.mktemp("weights"), tmp_path_factory.mktemp("logs")
    made = []
    for place in range(2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        made.append(Server(folder, logs / str(place), shared if place else None, port))
        made[-1].start()
    for server in made:
        server.wait()
    yield made
    for server in made:
        server.kill()


@pytest.fixture
def tiny(load_tiny):
    return load_tiny(Family.QWEN3_VL)


@pytest.fixture
def connect(servers: list[Server], tiny, monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., VllmServerEngine]]:
    monkeypatch.setenv("ROLLOUT_KEY", _KEY)
    engines = []

    def make(**options) -> VllmServerEngine:
        quick = {"weights_dir": servers[1].weights_dir, "api_key_env": "ROLLOUT_KEY", "probe_every_s": 0.5}
        engines.append(VllmServerEngine([server.url for server in servers], tiny.facts, **{**quick, **options}))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def drain(stream: Stream, within_s: float) -> list[Answer]:
    answers, until = [], time.monotonic() + within_s
    while stream.num_running:
        assert time.monotonic() < until, f"{stream.num_running} samples never came"
        answers += stream.poll(0.5)
    return answers


def gap_of(tiny, requests, answers: list[Answer]) -> float:
    """Largest difference to the trainer's log-probabilities; answer `key` is the one sample of request `key`."""
    assert sorted(answer.key for answer in answers) == list(range(len(requests)))
    by_key = {answer.key: answer.sample for answer in answers}
    return tiny.gap(requests, [[by_key[key]] for key in range(len(requests))])


def test_log_probabilities_and_greedy_answers_are_the_trainers(connect, tiny) -> None:
    engine, requests = connect(), tiny.mixed_requests()
    tiny.shake(1)
    engine.update_weights(tiny.policy, 1)
    for temperature in (1.0, 0.7, 2.0, 0.0):
        samples = engine.generate(requests, Sampling(max_new_tokens=16, temperature=temperature, seed=3))
        assert tiny.gap(requests, samples, temperature or 1.0) < PARITY
    again = engine.generate(requests, Sampling(max_new_tokens=16, temperature=0.0, seed=4))
    assert [[s.token_ids.tolist() for s in g] for g in samples] == [[s.token_ids.tolist() for s in g] for g in again]


def test_an_episode_of_two_turns_with_an_image_each_has_the_trainers_log_probabilities(connect, tiny) -> None:
    engine = connect()
    engine.update_weights(tiny.policy, 1)
    stream = engine.stream(Sampling(max_new_tokens=0))
    sequence, logprobs = tiny.episode(stream, turns=2, max_new_tokens=10)
    assert len(sequence.images) == 2 and sequence.num_trained == len(logprobs) > 4
    (ours,) = tiny.policy.eval().logprobs([sequence], Budget(tokens=4096))
    assert np.abs(ours.numpy() - logprobs).max() < PARITY


def test_a_sapo_recipe_trains_on_rollouts_of_both_servers(
    servers: list[Server], tiny, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROLLOUT_KEY", _KEY)
    sapo = {"algorithm": "sapo", "steps": 2, "batch_size": 2, "group_size": 4, "max_new_tokens": 12}
    sapo |= {"learning_rate": 1e-3, "zero_signal": "keep", "checkpoint_every": 0, "importance_cap": 2.0}
    look = {"name": "tools", "options": {"tools": ["image_rotate"], "announce": False}, "max_turns": 2}
    recipe = {
        "name": "served",
        "output_dir": str(tmp_path / "run"),
        "threads": 1,
        "model": {"path": str(tiny.folder), "dtype": "float32"},
        "engine": {"kind": "server", "servers": [server.url for server in servers], "api_key_env": "ROLLOUT_KEY"},
        "environments": {"ground": look},
        "rewards": {"ground": {"rewards": [{"name": "format", "options": {"pattern": "json"}}]}},
        "stages": {"sapo": {**sapo, "data": [{"scenes": {"task": "ground", "size": 16}}]}},
    }
    result = run_recipe(parse_recipe(recipe))
    rows = [json.loads(line) for line in (result.folder / "stages/sapo/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1] and all(row["turns/mean"] >= 1 for row in rows)
    assert all(row["rollout_gap/mean"] < PARITY for row in rows), "the second step's weights are new to the servers"
    assert _KEY not in "".join(file.read_text() for file in result.folder.glob("*.json")), "no key in a manifest"


def test_updates_are_loaded_by_both_servers_with_adapters_merged(connect, tiny) -> None:
    engine, requests = connect(), [tiny.request(f"Look {place}.", [(64, 64)], n=1) for place in range(8)]
    config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
    tiny.policy = PackedPolicy(get_peft_model(tiny.model, config), tiny.facts)
    engine.update_weights(tiny.policy, 5)
    samples = engine.generate(requests, Sampling(max_new_tokens=8))
    assert {sample.weights_version for group in samples for sample in group} == {5}
    assert tiny.gap(requests, samples) < PARITY


def test_weights_are_broadcast_to_both_servers_without_a_file(connect, tiny, caplog) -> None:
    """Several buckets, as those of a large model; two updates, the second of merged adapters."""
    engine, requests = connect(broadcast="gloo"), [tiny.request(f"Look {n}.", [(64, 64)], n=1) for n in range(6)]
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr("posttrain.serving.weight_broadcast._BUCKET_BYTES", 1 << 16)
        for version in (6, 7):
            if version == 6:
                tiny.shake(version)
            else:
                config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
                tiny.policy = PackedPolicy(get_peft_model(tiny.model, config), tiny.facts)
            engine.update_weights(tiny.policy, version)
            samples = engine.generate(requests, Sampling(max_new_tokens=8, seed=version))
            assert {sample.weights_version for group in samples for sample in group} == {version}
            assert tiny.gap(requests, samples) < PARITY
    assert not list(engine._weights_dir.glob("*")) and "as files" not in caplog.text


def test_banned_tokens_are_never_sampled_from_a_head_that_craves_them(connect, tiny) -> None:
    engine, request = connect(), tiny.request("Locate the red circle.", [(64, 64)], n=16)
    tiny.crave(tiny.facts.video_token_id, request, nats=8.0)
    engine.update_weights(tiny.policy, 1)
    (samples,) = engine.generate([request], Sampling(max_new_tokens=6))
    assert not np.isin(np.concatenate([s.token_ids for s in samples]), tiny.facts.banned_token_ids).any()
    assert max(s.logprobs[0] for s in samples) < -6
    assert tiny.gap([request], [samples]) < PARITY


def test_what_a_server_refuses_is_said(connect, tiny) -> None:
    engine = connect()
    assert engine.capacity == Capacity(max_tokens=511, max_images=4)
    engine.update_weights(tiny.policy, 1)
    with pytest.raises(EngineError, match=r"At most 4 image"):
        engine.generate([tiny.request("Count.", [(32, 32)] * 5, n=1)], Sampling(max_new_tokens=2))
    with pytest.raises(EngineError, match="refuses the API key"):
        connect(api_key_env=None)


def test_a_server_killed_in_a_batch_and_restarted_with_other_weights(connect, tiny, servers, tmp_path: Path) -> None:
    engine = connect()
    tiny.shake(3)
    engine.update_weights(tiny.policy, 9)
    requests = [tiny.request(f"Look {place}.", [(64, 64)], n=1) for place in range(12)]
    stream = engine.stream(Sampling(max_new_tokens=0))
    servers[0].stop()  # so that its share is not done when it is killed
    for key, request in enumerate(requests):
        stream.add(key, request, max_new_tokens=200, seed=key)
    answers = stream.poll(0.5)
    servers[0].kill()
    assert len(answers) < len(requests)
    answers += drain(stream, within_s=300)
    assert gap_of(tiny, requests, answers) < PARITY

    other = tmp_path / "other"
    now = {name: weight.clone() for name, weight in tiny.model.state_dict().items()}
    tiny.shake(4)
    save_model(tiny.model, tiny.processor, other)
    tiny.model.load_state_dict(now)
    servers[0].start(other)
    servers[0].wait()
    servers[1].kill()  # now the restarted one alone answers
    answers = []
    for key, request in enumerate(requests):
        stream.add(key, request, max_new_tokens=6, seed=key)
    answers = drain(stream, within_s=300)
    assert {answer.sample.weights_version for answer in answers} == {9}
    assert gap_of(tiny, requests, answers) < PARITY  # it was given the present weights before it was asked


def test_without_any_server_there_is_an_error_in_time(connect, tiny, servers) -> None:
    """Runs last: it leaves none alive."""
    engine = connect(without_servers_s=10.0)
    engine.update_weights(tiny.policy, 1)
    stream = engine.stream(Sampling(max_new_tokens=0))
    for server in servers:
        server.stop()
    for key in range(4):
        stream.add(key, tiny.request(f"Look {key}.", n=1), max_new_tokens=400, seed=key)
    stream.poll(0.3)
    for server in servers:
        server.kill()
    begun = time.monotonic()
    with pytest.raises(EngineError, match="no vLLM server answers"):
        drain(stream, within_s=300)
    assert time.monotonic() - begun < 120
