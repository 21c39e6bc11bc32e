"""A real vLLM server on a tiny teacher says what the same teacher says in this process, images and tool turns too."""

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
import torch
from PIL import Image
from posttrain.model import Budget, PackedPolicy, TokenSequence, facts_of
from posttrain.model.loading import load_model, load_processor
from transformers import AutoConfig

from posttrain.data.images import to_patches
from posttrain.errors import TeacherError
from posttrain.records import Example
from posttrain.rollout.engine import Request, Sampling
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.teachers.server import ServerTeacher

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

CONTEXT, MOST, K = 512, 64, 16
NATS = 1e-4
"""float32 on both sides, other kernels; measured 2e-6."""
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
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # one process less to start: 39 s where it was 90 s
}


def serve(folder: Path, log: Path, *options: str) -> tuple[subprocess.Popen[bytes], str]:
    """A server that answers on a free port; its process group is its own."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    # As a module: the command `vllm serve` does not start where the package is called vllm-cpu.
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server", "--model", str(folder), "--dtype", "float32"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--max-model-len", str(CONTEXT), "--enforce-eager"]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [*command, *options],
            env={**os.environ, **_ENVIRONMENT},
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + _STARTS_WITHIN_S
    with httpx.Client(trust_env=False) as client:
        while time.monotonic() < deadline and process.poll() is None:
            try:
                if client.get(url + "/health").status_code == 200:
                    return process, url
            except httpx.TransportError:
                time.sleep(0.5)
    stop(process)
    pytest.fail(f"the server did not start:\n{log.read_text(errors='replace')[-3000:]}")


def stop(process: subprocess.Popen[bytes]) -> None:
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


@pytest.fixture(scope="module")
def processor(checkpoint):
    return load_processor(checkpoint("student"))


@pytest.fixture(scope="module")
def facts(checkpoint, processor):
    return facts_of(AutoConfig.from_pretrained(checkpoint("student")), processor.tokenizer)


@pytest.fixture(scope="module")
def url(checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    process, address = serve(
        checkpoint("teacher"),
        tmp_path_factory.mktemp("served") / "log",
        "--enable-scale-out",
        f"--max-logprobs={MOST}",
        "--served-model-name=big",
        "--max-num-batched-tokens=320",  # prompts are cut into chunks where several meet
    )
    yield address
    stop(process)


@pytest.fixture(scope="module")
def server(url: str, facts, processor) -> Iterator[ServerTeacher]:
    teacher = ServerTeacher("deep", url, facts=facts, processor=processor, timeout_s=300, retries=1)
    yield teacher
    teacher.close()


@pytest.fixture(scope="module")
def local(checkpoint, processor) -> PackedPolicy:
    model = load_model(checkpoint("teacher"), dtype=torch.float32)
    policy = PackedPolicy(model, facts_of(model.config, processor.tokenizer, model.generation_config))
    policy.requires_grad_(False).eval()
    return policy


def noise(width: int, height: int, seed: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def conversation(facts, processor, *parts: str | Image.Image, seed: int, said: int = 12) -> TokenSequence:
    """Texts and pictures in turn. What stands between "assistant\\n" and the next part is random tokens and trained."""
    rng = np.random.default_rng(seed)
    ids: list[int] = []
    trained: list[bool] = []
    images = []
    for part in parts:
        if isinstance(part, str):
            piece = processor.tokenizer.encode(part, add_special_tokens=False)
        else:
            images.append(to_patches(part, processor.image_processor))
            shown = [facts.image_token_id] * images[-1].num_tokens(facts.merge_size)
            piece = [facts.vision_start_token_id, *shown, facts.vision_end_token_id]
        ids += piece
        trained += [False] * len(piece)
        if isinstance(part, str) and part.endswith("assistant\n"):
            ids += rng.integers(0, 300, said).tolist()  # no tokenizer would give these for their text
            trained += [True] * said
    return TokenSequence(token_ids=np.array(ids), mask=np.array(trained), images=tuple(images))


def conversations(facts, processor) -> list[TokenSequence]:
    """Text; one image; two images; a tool that answers with images; a group of one prompt."""
    ask, turn = "<|im_start|>user\n", "<|im_end|>\n<|im_start|>assistant\n"
    back = "<|im_end|>\n<|im_start|>user\n<tool_response>\n"
    made = [
        conversation(facts, processor, f"{ask}hi{turn}", seed=0),
        conversation(facts, processor, ask, noise(64, 64, 1), f"Locate it.{turn}", seed=1),
        conversation(facts, processor, ask, noise(96, 64, 2), " and ", noise(64, 128, 3), f"Which?{turn}", seed=2),
        conversation(
            facts,
            processor,
            ask,
            noise(128, 128, 4),
            f"Read it.{turn}",
            back,
            noise(32, 48, 5),
            f"</tool_response>{turn}",
            back,
            noise(48, 48, 6),
            f"</tool_response>{turn}",
            seed=3,
        ),
        conversation(facts, processor, f"{ask}{'how many? ' * 40}{turn}", seed=4, said=60),
    ]
    group = [
        conversation(facts, processor, ask, noise(64, 64, 7), f"Count.{turn}", seed=10 + i, said=5 + 3 * i)
        for i in range(8)
    ]
    return made + group


def test_logprobs_equal_those_of_the_teacher_in_this_process(server, local, facts, processor) -> None:
    sequences = conversations(facts, processor)
    assert [len(sequence.images) for sequence in sequences[:5]] == [0, 1, 2, 3, 0]
    ours = local.logprobs(sequences, Budget(tokens=4096))
    for found, reference in zip(server.logprobs(sequences), ours, strict=True):
        assert np.abs(found - reference.numpy()).max() < NATS


def test_likeliest_tokens_and_tails_equal_those_of_the_teacher_in_this_process(server, local, facts, processor) -> None:
    sequences = conversations(facts, processor)
    references = local.top_logprobs(sequences, Budget(tokens=4096), facts.vocab_size)
    for found, (ids_NV, logprobs_NV, _, _) in zip(server.top_scores(sequences, K), references, strict=True):
        held = np.empty(logprobs_NV.shape, dtype=np.float32)
        np.put_along_axis(held, ids_NV.numpy().astype(np.int64), logprobs_NV.numpy(), axis=1)
        claimed = np.take_along_axis(held, found.token_ids_NK.astype(np.int64), axis=1)
        assert np.abs(claimed - found.logprobs_NK).max() < NATS  # each token has the number that it has here
        assert np.abs(logprobs_NV.numpy()[:, :K] - found.logprobs_NK).max() < NATS  # and they are the likeliest
        rest = np.logaddexp.reduce(logprobs_NV.numpy()[:, K:], axis=1)
        assert np.abs(rest - found.tail_N).max() < NATS
        assert (found.token_ids_NK == ids_NV.numpy()[:, :K]).mean() > 0.98  # equal but for ties


def test_the_servers_words_are_understood(server, url, facts, processor) -> None:
    text = conversation(facts, processor, "<|im_start|>assistant\n", seed=0)
    with pytest.raises(TeacherError, match=f"--max-logprobs {MOST + 1}, or lower top_k"):
        server.top_scores([text], MOST + 1)
    with pytest.raises(TeacherError, match="it serves 'big': correct served_model"):
        ServerTeacher("deep", url, facts=facts, processor=processor, model="small")


def test_the_longest_sequence_is_as_long_as_the_context_says(server, facts) -> None:
    ids = np.random.default_rng(0).integers(0, 300, CONTEXT)
    longest = TokenSequence(token_ids=ids[:-1], mask=np.arange(CONTEXT - 1) > 500)
    assert server.context == CONTEXT - 1
    assert len(server.logprobs([longest])[0]) == 10
    with pytest.raises(TeacherError, match=f"a sequence has {CONTEXT}"):
        server.logprobs([TokenSequence(token_ids=ids, mask=np.arange(CONTEXT) > 500)])


def test_an_image_that_the_server_resizes_is_never_scored(server, facts, processor) -> None:
    limits = processor.image_processor.size
    large = noise(288, 256, 0)  # cut as it is, though the checkpoint's limits want it smaller
    assert large.width * large.height > limits["longest_edge"]
    with pytest.raises(TeacherError, match="read .* tokens where the student has .*limits of pixels"):
        server.logprobs([conversation(facts, processor, large, "<|im_start|>assistant\n", seed=0)])


def test_its_tokenizer_is_the_students(server, processor, checkpoint) -> None:
    server.check_tokenizer(processor.tokenizer)
    other = load_processor(checkpoint("student")).tokenizer
    other.add_tokens(["<depth>"])
    with pytest.raises(TeacherError, match="'<depth>'"):
        server.check_tokenizer(other)


def test_answers_are_the_teachers_own(server, local, facts, processor) -> None:
    """Greedy ones equal those that the teacher gives in this process; sampled ones repeat with their seed."""
    picture = noise(64, 64, 1)
    content = [{"type": "image"}, {"type": "text", "text": "Locate the red circle."}]
    example = Example(id="a", task="t", messages=({"role": "user", "content": content},), images=(picture,))
    text = Example(id="b", task="t", messages=({"role": "user", "content": "hi"},))
    prompts = []
    for each in (example, text):
        prompt = processor.apply_chat_template([dict(each.messages[0])], tokenize=False, add_generation_prompt=True)
        read = processor(text=[prompt], images=list(each.images) or None, return_tensors="np")
        images = tuple(to_patches(image, processor.image_processor) for image in each.images)
        prompts.append(Request(token_ids=read["input_ids"][0], images=images, pictures=each.images))
    greedy = Sampling(max_new_tokens=8, temperature=0)
    samples = TransformersEngine(local, local.facts).generate(prompts, greedy)
    answers = server.answer([example, text], n=2, sampling=greedy, thinking=None)
    for group, (sample,) in zip(answers, samples, strict=True):
        said = processor.tokenizer.decode(sample.token_ids, skip_special_tokens=True)
        said = said.rstrip("\ufffd")  # bytes that begin a character and do not end it are left out there
        assert [answer.text for answer in group] == [said, said]
        assert {answer.finished for answer in group} == {sample.stop == "end"}
    warm = Sampling(max_new_tokens=8, temperature=1.0, seed=5)
    first, again = (server.answer([example, text], n=2, sampling=warm, thinking=None) for _ in range(2))
    alone = server.answer([text], n=2, sampling=warm, thinking=None)
    assert first == again and alone == first[1:]
    assert first[0][0] != first[0][1]
    long = Example(id="c", task="t", messages=({"role": "user", "content": "word " * CONTEXT},))
    assert server.answer([long], n=2, sampling=greedy, thinking=None) == [[]]


def test_a_template_without_a_switch_for_thinking_is_found_out(server, processor) -> None:
    message = {"role": "user", "content": "hi"}
    on, off = (
        processor.apply_chat_template([message], tokenize=False, add_generation_prompt=True, enable_thinking=mode)
        for mode in (True, False)
    )
    assert on == off
    example = Example(id="a", task="t", messages=(message,))
    with pytest.raises(TeacherError, match="does not read enable_thinking"):
        server.answer([example], n=1, sampling=Sampling(max_new_tokens=2), thinking=True)


def test_both_phases_run_from_a_recipe_with_the_served_teacher(url, checkpoint, tmp_path: Path):
    """Answers, their distribution, then the student's own answers; images in two of the three."""
    import json

    from posttrain.pipeline import run_recipe
    from posttrain.recipe import parse_recipe

    scenes = [{"scenes": {"task": "ground", "size": 20}}]
    sampled = {"batch_size": 2, "max_new_tokens": 6, "data": scenes}
    plain = {"steps": 2, "batch_size": 2, "top_k": K, "learning_rate": 1e-3, "record_trajectories": 0}
    content = {
        "name": "served",
        "output_dir": str(tmp_path / "run"),
        "threads": 1,
        "model": {"path": str(checkpoint("student")), "dtype": "float32"},
        "teachers": {"big": {"server": url, "cache": str(tmp_path / "scores"), "retries": 1}},
        "stages": {
            "off_policy": {"algorithm": "distill_off_policy", **plain, "data": scenes},
            "on_policy": {"algorithm": "distill_on_policy", **plain, **sampled, "group_size": 2},
        },
    }
    run_recipe(parse_recipe(content))
    for stage in ("off_policy", "on_policy"):
        lines = (tmp_path / "run" / "stages" / stage / "metrics.jsonl").read_text().splitlines()
        assert [json.loads(line)["divergence"] > 0 for line in lines] == [True, True]
    assert list((tmp_path / "scores").glob("*.safetensors"))
