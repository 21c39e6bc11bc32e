"""What `posttrain serve` starts, and what it refuses to start."""

import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import ConfigError, EngineError
from posttrain.serving import launch
from posttrain.serving.memory import memory_folder


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[list[str], dict[str, str]]]:
    """(arguments, environment) of what this process would have become."""
    found: list[tuple[list[str], dict[str, str]]] = []
    monkeypatch.setattr(launch, "find_spec", lambda name: object())
    monkeypatch.setattr(os, "execve", lambda path, arguments, environment: found.append((arguments, environment)))
    return found


def serve(**options: Any) -> None:
    launch.serve("/models/m", **options)


def option(arguments: list[str], name: str) -> str:
    return arguments[arguments.index(name) + 1]


def test_it_becomes_vllms_server_with_what_rollouts_rely_on(started) -> None:
    serve(port=8123, max_images=3, max_logprobs=32, extra=["--quantization", "fp8"])
    ((arguments, environment),) = started
    assert arguments[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    assert option(arguments, "--host") == "127.0.0.1" and option(arguments, "--port") == "8123"
    assert option(arguments, "--logprobs-mode") == "processed_logprobs"
    assert option(arguments, "--generation-config") == "vllm"
    assert json.loads(option(arguments, "--limit-mm-per-prompt")) == {"image": 3, "video": 0}
    assert "--enable-scale-out" in arguments and arguments[-2:] == ["--quantization", "fp8"]
    for name in ("--middleware", "--worker-extension-cls"):  # what vLLM is to import is there
        module, _, attribute = option(arguments, name).rpartition(".")
        path = Path(launch.__file__).parents[2] / Path(*module.split(".")).with_suffix(".py")
        assert f"class {attribute}" in path.read_text()
    assert environment["VLLM_NO_USAGE_STATS"] == "1" and launch.WEIGHTS_DIR not in environment


def test_the_key_goes_by_the_environment_alone(started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROLLOUT_KEY", "s3cret")
    serve(api_key_env="ROLLOUT_KEY", host="0.0.0.0")
    ((arguments, environment),) = started
    assert "s3cret" not in " ".join(arguments) and environment["VLLM_API_KEY"] == "s3cret"


def test_a_key_that_is_set_for_vllm_is_kept(started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VLLM_API_KEY", "s3cret")
    serve(host="0.0.0.0")
    assert started[0][1]["VLLM_API_KEY"] == "s3cret"


def test_limits_of_images_are_the_recipes(started, monkeypatch: pytest.MonkeyPatch, tiny_vl: Path) -> None:
    launch.serve(str(tiny_vl), max_pixels=64 * 64)
    size = json.loads(option(started[0][0], "--mm-processor-kwargs"))["size"]
    assert size["longest_edge"] == 64 * 64 and size["shortest_edge"] > 0


def test_a_shared_folder_has_to_be_there(started, tmp_path: Path) -> None:
    serve(weights_dir=tmp_path)
    assert started[0][1][launch.WEIGHTS_DIR] == str(tmp_path.resolve())
    with pytest.raises(ConfigError, match="is no folder"):
        serve(weights_dir=tmp_path / "missing")


def test_nobody_beyond_this_machine_without_a_key(started, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("VLLM_API_KEY", raising=False)
    with pytest.raises(ConfigError, match=r"others could replace the model's weights.*--api-key-env"):
        serve(host="0.0.0.0")
    with pytest.raises(ConfigError, match="NOT_SET, named as api_key_env, holds no key"):
        serve(host="0.0.0.0", api_key_env="NOT_SET")
    assert not started


@pytest.mark.parametrize("extra", [["--logprobs-mode", "raw_logits"], ["--generation-config=auto"]])
def test_settings_that_rollouts_rely_on_cannot_be_changed(started, extra: list[str]) -> None:
    with pytest.raises(ConfigError, match=f"{extra[0].partition('=')[0]} cannot be set"):
        serve(extra=extra)
    assert not started


def test_a_missing_vllm_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(launch, "find_spec", lambda name: None)
    with pytest.raises(EngineError, match=r"posttrain\[vllm\]"):
        serve()


def test_what_killed_processes_left_in_memory_is_removed_by_the_next() -> None:
    mine = memory_folder("test")
    dead = mine.with_name("posttrain-test-999999999-abc")
    dead.mkdir()
    again = memory_folder("test")
    assert mine.is_dir() and again.is_dir() and not dead.exists()
    mine.rmdir()
    again.rmdir()
