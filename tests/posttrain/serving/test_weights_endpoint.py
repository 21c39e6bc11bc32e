"""The weights of a server over HTTP, without vLLM: an engine that notes what it is told."""

import asyncio
import os
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest

pytest.importorskip("starlette", reason="starlette comes with vLLM")

from starlette.applications import Starlette
from starlette.middleware import Middleware

from posttrain.serving.launch import WEIGHTS_DIR
from posttrain.serving.weights_endpoint import PREFIX, WeightsEndpoint


class NotingEngine:
    """As much of vLLM's engine as weights have to do with."""

    def __init__(self) -> None:
        self.label = "default"
        self.told: list[str] = []
        self.loaded: list[bytes] = []
        self.arguments: tuple[Any, ...] = ()
        self.fails = False
        images = SimpleNamespace(get_limit_per_prompt={"image": 4}.__getitem__)
        self.model_config = SimpleNamespace(
            model="/m", max_model_len=64, logprobs_mode="processed_logprobs", multimodal_config=images
        )
        parallel = SimpleNamespace(world_size=2, data_parallel_size=3)
        self.vllm_config = SimpleNamespace(device_config=SimpleNamespace(device_type="cpu"), parallel_config=parallel)

    async def get_weight_version(self) -> str:
        return self.label

    async def update_weight_version(self, label: str) -> None:
        self.told.append(label)
        self.label = label

    async def collective_rpc(self, method: str, args: tuple[Any, ...]) -> None:
        self.told.append(method)
        self.arguments = args
        if method == "load_posttrain_weights":
            self.loaded = [Path(path).read_bytes() for path in args[0]]
        if self.fails:
            raise RuntimeError("size mismatch\nwith a long story")

    async def pause_generation(self, mode: str) -> None:
        self.told.append("pause")

    async def resume_generation(self) -> None:
        self.told.append("resume")

    async def reset_encoder_cache(self) -> None: ...

    async def reset_mm_cache(self) -> None: ...

    async def reset_prefix_cache(self) -> None: ...


@pytest.fixture
def engine() -> NotingEngine:
    return NotingEngine()


@pytest.fixture
def ask(engine: NotingEngine, monkeypatch: pytest.MonkeyPatch):
    """(method, path, **options) -> response, from one server."""
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    app = Starlette(middleware=[Middleware(WeightsEndpoint)])
    app.state.engine_client, app.state.args = engine, SimpleNamespace(api_key=None)
    transport = httpx.ASGITransport(app=app)

    def send(method: str, path: str, **options: Any) -> httpx.Response:
        async def sent() -> httpx.Response:
            async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
                return await client.request(method, path, **options)

        return asyncio.run(sent())

    return send


def test_it_says_what_it_is(ask) -> None:
    status = ask("GET", PREFIX).json()
    assert status["label"] == "default" and status["max_model_len"] == 64 and status["max_images"] == 4
    assert status["workers"] == 6
    assert status["process"] == ask("GET", PREFIX).json()["process"]


def test_files_that_lack_are_named_uploaded_and_loaded_while_nothing_is_sampled(ask, engine) -> None:
    files = {"a.safetensors": 3, "b.safetensors": 2}
    missing = ask("POST", f"{PREFIX}/run-1-1", json={"files": files})
    assert missing.status_code == 409 and missing.json() == {"missing": list(files)} and not engine.told
    assert ask("PUT", f"{PREFIX}/run-1-1/a.safetensors", content=b"abc").status_code == 204
    assert ask("PUT", f"{PREFIX}/run-1-1/b.safetensors", content=b"d").status_code == 204
    assert ask("POST", f"{PREFIX}/run-1-1", json={"files": files}).json() == {"missing": ["b.safetensors"]}  # cut short
    ask("PUT", f"{PREFIX}/run-1-1/b.safetensors", content=b"de")
    assert ask("POST", f"{PREFIX}/run-1-1", json={"files": files}).json() == {"label": "run-1-1"}
    assert engine.loaded == [b"abc", b"de"]
    assert engine.told == ["pause", "half-loaded", "load_posttrain_weights", "run-1-1", "resume"]
    again = ask("POST", f"{PREFIX}/run-1-1", json={"files": files})
    assert again.status_code == 200 and len(engine.told) == 5  # it has them


def test_a_broadcast_is_joined_while_nothing_is_sampled(ask, engine) -> None:
    meeting = {"host": "127.0.0.1", "port": 1, "backend": "gloo", "world_size": 7, "timeout_s": 1.0}
    told = {"meeting": meeting, "first_rank": 1}
    assert ask("POST", f"{PREFIX}/run-1-1", json=told).json() == {"label": "run-1-1"}
    assert engine.told == ["pause", "half-loaded", "receive_posttrain_weights", "run-1-1", "resume"]
    assert engine.arguments == (meeting, 1)
    engine.fails = True
    assert ask("POST", f"{PREFIX}/run-2-2", json=told).status_code == 500
    assert engine.label == "half-loaded" and engine.told[-1] == "resume"


def test_the_shared_folder_is_read_and_left_alone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, request) -> None:
    monkeypatch.setenv(WEIGHTS_DIR, str(tmp_path))
    (tmp_path / "run-1-1").mkdir()
    (tmp_path / "run-1-1" / "a").write_bytes(b"abc")
    ask, engine = request.getfixturevalue("ask"), request.getfixturevalue("engine")
    assert ask("POST", f"{PREFIX}/run-1-1", json={"files": {"a": 3}}).status_code == 200
    assert engine.loaded == [b"abc"] and (tmp_path / "run-1-1" / "a").is_file()


def test_a_load_that_fails_leaves_a_label_that_nobody_asks_for(ask, engine) -> None:
    engine.fails = True
    ask("PUT", f"{PREFIX}/run-1-1/a", content=b"abc")
    failed = ask("POST", f"{PREFIX}/run-1-1", json={"files": {"a": 3}})
    assert failed.status_code == 500 and failed.json()["error"]["message"] == "RuntimeError: size mismatch"
    assert engine.label == "half-loaded" and engine.told[-1] == "resume"


@pytest.mark.parametrize("name", ["..", ".hidden", "%2e%2e%2fetc", "a%2f..%2fb"])
def test_names_never_leave_the_folder(ask, engine, name: str) -> None:
    assert ask("PUT", f"{PREFIX}/run/{name}", content=b"abc").status_code in (400, 404)
    assert ask("POST", f"{PREFIX}/run", json={"files": {"../../x": 3}}).status_code == 400
    assert not engine.told


def test_nothing_is_said_or_taken_without_the_key(ask, engine, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(os.environ, "VLLM_API_KEY", "s3cret")
    for method, path in (("GET", PREFIX), ("PUT", f"{PREFIX}/r/a"), ("POST", f"{PREFIX}/r")):
        assert ask(method, path).status_code == 401
        assert ask(method, path, headers={"Authorization": "Bearer wrong"}).status_code == 401
    assert ask("GET", PREFIX, headers={"Authorization": "Bearer s3cret"}).status_code == 200
    assert not engine.told


def test_other_addresses_are_vllms(ask) -> None:
    assert ask("GET", "/v1/models").status_code == 404  # of the empty application below
    assert ask("GET", "/v1/models").text == "Not Found"
