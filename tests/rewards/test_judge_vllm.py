"""A real vLLM server as the judge, on a tiny random model: it has nothing to say, and every way of asking works."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

import httpx
import pytest
from PIL import Image
from posttrain.rewards import Completion, JudgeAccuracy, JudgePairwise, JudgeProcess, JudgeReward, JudgeRubric, ToolCall

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

_STARTS_WITHIN_S = 900
_ENVIRONMENT = {
    "VLLM_LOGGING_LEVEL": "ERROR",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "HF_HUB_OFFLINE": "1",
    "OMP_NUM_THREADS": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
    "VLLM_CPU_OMP_THREADS_BIND": "nobind",
    "TORCHDYNAMO_DISABLE": "1",  # no search for compilers
}


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    from posttrain.model.families import Family
    from posttrain.model.tiny import TinySize, build_tiny, default_corpus

    folder = tmp_path_factory.mktemp("judge")
    build_tiny(Family.QWEN3_VL, folder / "tiny", size=TinySize(layers=1, vision_layers=1), corpus=default_corpus(100))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # As a module: the command `vllm serve` does not start where the package is called vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder / "tiny")]
    command += ["--served-model-name=judge", "--dtype=float32", "--enforce-eager", "--max-model-len=4096"]
    command += ["--host=127.0.0.1", f"--port={port}"]
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(
            command, env={**os.environ, **_ENVIRONMENT}, stdout=log, stderr=log, start_new_session=True
        )
    try:
        address, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _STARTS_WITHIN_S
        while not _is_up(address):
            if process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"the judge did not start:\n{(folder / 'log').read_text(errors='replace')[-3000:]}")
            time.sleep(0.5)
        yield address
    finally:
        _stop(process)


def _is_up(address: str) -> bool:
    try:
        return httpx.get(f"{address}/health", trust_env=False).status_code == 200
    except httpx.TransportError:
        return False


def _stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


SAID = [Completion(text=f"<answer>{i}</answer>", prompt="What is 2+3?") for i in range(3)]


@pytest.mark.parametrize("kind", [JudgeAccuracy, JudgeRubric, JudgeProcess, JudgePairwise])
def test_every_reward_reaches_the_server_and_babble_is_unscored(url: str, kind: type[JudgeReward]) -> None:
    server = {"url": url, "retries": 0, "max_reply_tokens": 16, "verdict_tries": 2, "timeout_s": 300.0}
    reward = kind(server=server)  # pyright: ignore[reportCallIssue]
    scores = reward.score_batch(SAID, [{"answer": "5"}] * 3)
    assert [score.value for score in scores] == [None] * 3
    assert all("no verdict in 2 tries" in score.reason for score in scores)
    assert reward.metrics()["judge/tokens"] > 100 and reward.metrics()["judge/retries"] == 0


def test_images_and_tool_turns_are_taken(url: str) -> None:
    image = Image.new("RGB", (64, 64), "red")
    reward = JudgeProcess(
        server={"url": url, "retries": 0, "max_reply_tokens": 8, "verdict_tries": 1, "timeout_s": 300.0}, images=True
    )
    said = Completion(text="I zoom.</tool_call>5", tool_calls=(ToolCall(name="zoom"),), images=(image,))
    assert "no verdict in 1 try" in reward(said, {"answer": "5"}).reason


def test_a_constrained_reply_has_the_form_and_lacks_only_the_id(url: str) -> None:
    """The server writes the schema for a model that knows nothing; what it cannot write is the code of this request."""
    server = {"url": url, "retries": 0, "max_reply_tokens": 200, "verdict_tries": 3, "timeout_s": 300.0}
    score = JudgeAccuracy(server={**server, "structured": True})(SAID[0], {"answer": "5"})
    assert score.value is None and "refused" not in score.reason
    assert any(why in score.reason for why in ("another id", "cut off", "one JSON object alone")), score.reason


def test_a_served_model_of_another_name_is_named(url: str) -> None:
    score = JudgeAccuracy(server={"url": url, "model": "other", "retries": 0})(SAID[0], {"answer": "5"})
    assert score.value is None and "refused with 404" in score.reason and "other" in score.reason
