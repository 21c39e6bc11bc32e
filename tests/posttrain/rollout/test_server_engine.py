"""Samples from servers that answer, fail, hang, die, come back and forget: in time, right, or not at all."""

import logging
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from posttrain.model import Family
from posttrain.model.loading import named_weights

from posttrain.errors import ConfigError, EngineError
from posttrain.rollout.engine import Answer, Request, Sampling, Stream
from posttrain.rollout.server_engine import VllmServerEngine
from posttrain.rollout.vllm_prompts import vllm_seed
from tests.posttrain.rollout.fake_vllm import FakeVllm, said
from tests.posttrain.teachers import fake_server
from tests.posttrain.teachers.fake_server import edited, picture_in, status
from tests.waiting import GROWING_S, HANG_S, PATIENCE_S, comes_true

T1 = Sampling(max_new_tokens=4)


@pytest.fixture(scope="module")
def tiny(load_tiny):
    return load_tiny(Family.QWEN3_VL)


@pytest.fixture
def servers(tiny) -> Iterator[list[FakeVllm]]:
    made = [FakeVllm(tiny.facts) for _ in range(2)]
    yield made
    for server in made:
        server.stop()


@pytest.fixture
def server(servers: list[FakeVllm]) -> FakeVllm:
    return servers[0]


@pytest.fixture
def connect(tiny) -> Iterator[Callable[..., VllmServerEngine]]:
    """An engine on some of the fakes, that asks again soon and gives up late."""
    engines = []

    def make(*fakes: FakeVllm, **options: Any) -> VllmServerEngine:
        quick = {"timeout_s": 60.0, "retries": 3, "without_servers_s": 60.0, "probe_every_s": 0.1, "probe_s": 30.0}
        engines.append(VllmServerEngine([fake.url for fake in fakes], tiny.facts, **{**quick, **options}))
        return engines[-1]

    yield make
    for engine in engines:
        engine.close()


def prompt(*token_ids: int, n: int = 1) -> Request:
    return Request(token_ids=np.array(token_ids), n=n)


def drain(stream: Stream, within_s: float = PATIENCE_S) -> list[Answer]:
    answers, until = [], time.monotonic() + within_s
    while stream.num_running:
        assert time.monotonic() < until, f"{stream.num_running} samples never came"
        answers += stream.poll(0.2)
    return answers


def test_each_sample_is_drawn_by_its_own_seed_and_keeps_its_place(server, connect) -> None:
    engine = connect(server)
    samples = engine.generate([prompt(5, 6, n=3), prompt(7, n=2)], Sampling(max_new_tokens=4, seed=9))
    assert [len(group) for group in samples] == [3, 2]
    for place, group in enumerate(samples):
        for index, sample in enumerate(group):
            assert sample.token_ids.tolist() == said(vllm_seed(9, place) + index, 4)
            assert sample.stop == "length" and sample.weights_version == 0
            assert sample.logprobs.dtype == np.float32 and sample.logprobs == pytest.approx(-1.0)


def test_images_arrive_pixel_for_pixel(server, connect, tiny) -> None:
    request = tiny.request("Which?", [(96, 64), (64, 128)], n=2)
    connect(server).generate([request], T1)
    bodies = [body for path, body in server.asked if path == "/inference/v1/generate"]
    assert len(bodies) == 2
    for body in bodies:
        shown = [picture_in(part["url"]) for part in body["content_parts"]]
        assert [np.array(a).tolist() for a in shown] == [np.array(b).tolist() for b in request.pictures]
        assert body["token_ids"].count(tiny.facts.image_token_id) == 2
        assert set(map(int, body["sampling_params"]["logit_bias"])) == set(tiny.facts.banned_token_ids)


def test_greedy_samples_are_asked_for_once(server, connect) -> None:
    (group,) = connect(server).generate([prompt(5, n=4)], Sampling(max_new_tokens=3, temperature=0))
    assert len(group) == 4 and server.log.count("sample") == 1


def test_weights_are_uploaded_merged_and_every_sample_says_its_version(server, connect, tiny) -> None:
    engine = connect(server)
    model = get_peft_model(
        tiny.model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False), adapter_name="other"
    )
    engine.update_weights(model, 7)
    expected = dict(named_weights(model))
    assert server.loaded.keys() == expected.keys()
    assert all(torch.equal(server.loaded[name], weight) for name, weight in expected.items())
    assert server.log.count("upload") == 1
    assert engine.generate([prompt(5)], T1)[0][0].weights_version == 7
    model.unload()


def test_a_shared_folder_spares_the_upload_and_holds_one_update_at_a_time(
    servers, connect, tiny, tmp_path: Path
) -> None:
    for fake in servers:
        fake.shared = tmp_path
    engine = connect(*servers, weights_dir=tmp_path)
    engine.update_weights(tiny.policy, 1)
    engine.update_weights(tiny.policy, 2)
    assert [fake.log.count("upload") for fake in servers] == [0, 0]
    assert len(list(tmp_path.iterdir())) == 1
    engine.close()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "fault",
    [
        status(500),
        status(503),
        status(429),
        fake_server.cut,
        fake_server.half_json,
        fake_server.gone,
        edited(lambda right: right["choices"][0].update(finish_reason="abort")),
        edited(lambda right: right["choices"][0]["logprobs"]["content"].pop()),
        edited(lambda right: right["choices"][0]["logprobs"]["content"][0].update(top_logprobs=[])),
        edited(lambda right: right["choices"].clear()),
        edited(lambda right: right.clear()),
    ],
)
def test_what_fails_once_is_asked_again(server, connect, fault) -> None:
    engine = connect(server)
    server.faults = [fault]
    ((sample,),) = engine.generate([prompt(5)], T1)
    assert sample.token_ids.tolist() == said(vllm_seed(0, 0), 4)
    assert server.log.count("sample") == 2


def test_what_always_fails_is_an_error_that_names_the_server_and_its_words(server, connect) -> None:
    engine = connect(server, retries=2)
    server.faults = [status(500, "CUDA error: device-side assert")] * 3
    with pytest.raises(EngineError, match=f"failed 3 times.*{server.url} answered 500 .*device-side assert"):
        engine.generate([prompt(5)], T1)


def test_an_answer_that_takes_too_long_is_asked_for_again(server, connect) -> None:
    for timeout_s in GROWING_S:
        server.log.clear()
        server.faults = [fake_server.hanging]
        connect(server, timeout_s=timeout_s).generate([prompt(5)], T1)
        if server.log.count("sample") == 2:
            break
    assert server.log.count("sample") == 2


def test_a_prompt_that_the_server_read_differently_is_an_error_at_once(server, connect) -> None:
    engine = connect(server)
    server.faults = [edited(lambda right: right["usage"].update(prompt_tokens=3))]
    with pytest.raises(EngineError, match="read a prompt of 3 tokens where the trainer has 1"):
        engine.generate([prompt(5)], T1)


def test_a_refusal_is_an_error_at_once(server, connect) -> None:
    engine = connect(server)
    server.faults = [status(400, "At most 4 image(s) may be provided in one prompt.")]
    with pytest.raises(EngineError, match="400: At most 4 image"):
        engine.generate([prompt(5)], T1)
    assert server.log.count("sample") == 1


def test_a_server_without_stamps_is_too_old(server, connect) -> None:
    engine = connect(server)
    server.faults = [edited(lambda right: right["choices"][0].update(weight_versions=None))]
    with pytest.raises(EngineError, match="vLLM 0.32"):
        engine.generate([prompt(5)], T1)


def test_a_server_that_dies_in_a_batch_costs_no_sample(servers, connect, tiny) -> None:
    engine = connect(*servers)
    engine.update_weights(tiny.policy, 3)
    servers[0].faults = [fake_server.slow(0.5)] * 40
    stream = engine.stream(T1)
    for key in range(20):
        stream.add(key, prompt(5, key), max_new_tokens=4, seed=key)
    answers = stream.poll(0.2)
    servers[0].stop()
    answers += drain(stream)
    assert sorted(answer.key for answer in answers) == list(range(20))
    assert {answer.sample.weights_version for answer in answers} == {3}
    assert all(a.sample.token_ids.tolist() == said(vllm_seed(a.key), 4) for a in answers)


def test_no_server_is_an_error_in_time_and_not_a_hang(servers, connect) -> None:
    engine = connect(*servers, without_servers_s=1.0)
    stream = engine.stream(T1)
    for fake in servers:
        fake.faults = [fake_server.hanging] * 20
    for key in range(8):
        stream.add(key, prompt(5, key), max_new_tokens=4, seed=key)
    stream.poll(0.1)
    for fake in servers:
        fake.stop()
    begun = time.monotonic()
    with pytest.raises(EngineError, match=r"no vLLM server answers .*cannot be reached.*posttrain serve"):
        drain(stream)
    assert time.monotonic() - begun < 30
    stream.close()
    assert stream.num_running == 0


def test_a_server_that_hangs_is_left_before_the_request_times_out(servers, connect) -> None:
    engine = connect(*servers, timeout_s=HANG_S, probe_s=3.0)
    servers[0].faults = [fake_server.hanging]
    servers[0].is_healthy = False
    begun = time.monotonic()
    engine.generate([prompt(5)], T1)
    assert time.monotonic() - begun < 60
    assert [fake.log.count("sample") for fake in servers] == [1, 1]


def test_a_server_that_comes_back_is_given_the_weights_before_it_is_asked(server, connect, tiny) -> None:
    engine = connect(server)
    engine.update_weights(tiny.policy, 2)
    server.log.clear()
    server.faults = [fake_server.hanging]
    stream = engine.stream(T1)
    stream.add(0, prompt(5), max_new_tokens=4, seed=0)
    assert comes_true(lambda: server.log.count("sample") == 1)
    server.restart(after_s=0.5)
    (answer,) = drain(stream)
    assert answer.sample.weights_version == 2
    assert server.log[0] == "sample" and server.log[-1] == "sample" and server.log.count("sample") == 2
    assert "load" in server.log[1:-1]


def test_samples_of_forgotten_weights_are_never_returned(server, connect, tiny) -> None:
    """A restart between two batches breaks no connection: only the stamp tells."""
    engine = connect(server)
    engine.update_weights(tiny.policy, 2)
    server.forget()
    ((sample,),) = engine.generate([prompt(5)], T1)
    assert sample.weights_version == 2 and server.label != "default"
    assert server.log.count("sample") == 2


def test_a_server_that_cannot_take_the_weights_is_left_for_one_that_can(servers, connect, tiny) -> None:
    engine = connect(*servers, without_servers_s=1.0)
    engine.update_weights(tiny.policy, 1)
    servers[0].forget()
    servers[0].load_faults = [(500, "size mismatch")] * 10_000  # restarted with another model
    servers[0].faults = [status(503)]
    stream = engine.stream(T1)
    for key in range(6):
        stream.add(key, prompt(9, key), max_new_tokens=4, seed=key)
    assert {answer.sample.weights_version for answer in drain(stream)} == {1}
    servers[1].stop()
    with pytest.raises(EngineError, match="size mismatch"):
        engine.generate([prompt(5)], T1)


@pytest.mark.parametrize("broadcast", [None, "gloo"])
def test_an_update_waits_for_a_server_that_is_restarted(server, connect, tiny, broadcast) -> None:
    engine = connect(server, broadcast=broadcast)
    engine.update_weights(tiny.policy, 1)
    server.stop()
    server.forget()
    threading.Timer(1.0, server.start).start()
    engine.update_weights(tiny.policy, 2)
    assert engine.generate([prompt(5)], T1)[0][0].weights_version == 2


def test_weights_that_no_server_takes_are_an_error(server, connect, tiny) -> None:
    engine = connect(server, without_servers_s=1.0)
    server.load_faults = [(500, "size mismatch")] * 10_000
    with pytest.raises(EngineError, match="size mismatch"):
        engine.update_weights(tiny.policy, 1)


def test_weights_of_an_earlier_run_are_replaced_but_never_sampled_from(server, connect, tiny) -> None:
    server.label = "abc-3-3"
    engine = connect(server)
    with pytest.raises(EngineError, match="weights of another run .'abc-3-3'"):
        engine.generate([prompt(5)], T1)
    engine.update_weights(tiny.policy, 1)
    assert engine.generate([prompt(5)], T1)[0][0].weights_version == 1


def test_two_runs_on_one_server_are_found_out(server, connect, tiny) -> None:
    first, second = connect(server, without_servers_s=1.0), connect(server)
    first.update_weights(tiny.policy, 1)
    second.update_weights(tiny.policy, 1)
    with pytest.raises(EngineError, match="another run too: give each run its own servers"):
        first.generate([prompt(5)], T1)


def test_servers_of_another_kind_are_refused_at_the_start(server, connect) -> None:
    server.logprobs_mode = "raw_logprobs"
    with pytest.raises(EngineError, match=r"'raw_logprobs'.*posttrain serve"):
        connect(server)
    server.has_weights_endpoint = False
    with pytest.raises(EngineError, match="cannot take weights: start it with `posttrain serve`"):
        connect(server)
    server.stop()
    with pytest.raises(EngineError, match="no vLLM server answers"):
        connect(server, without_servers_s=1.0)


def test_one_server_that_is_there_is_enough_to_start(servers, connect, tiny) -> None:
    servers[1].stop()
    engine = connect(*servers)
    engine.update_weights(tiny.policy, 1)
    servers[1].start()
    assert comes_true(lambda: servers[1].label == servers[0].label), "given as soon as it was there"


def test_the_key_is_sent_and_never_said(server, connect, monkeypatch: pytest.MonkeyPatch, caplog) -> None:
    server.key = "s3cret-s3cret"
    with pytest.raises(EngineError, match="refuses the API key .401.: name the variable"):
        connect(server)
    monkeypatch.setenv("ROLLOUT_KEY", "wr0ng-wr0ng")
    with pytest.raises(EngineError, match="ROLLOUT_KEY") as refused:
        connect(server, api_key_env="ROLLOUT_KEY")
    assert "wr0ng" not in str(refused.value)
    monkeypatch.setenv("ROLLOUT_KEY", "s3cret-s3cret")
    with caplog.at_level(logging.DEBUG):
        engine = connect(server, api_key_env="ROLLOUT_KEY", retries=0)
        server.faults = [status(500, "Bearer s3cret-s3cret is not to be repeated")]
        with pytest.raises(EngineError, match=r"Bearer \*\*\*"):
            engine.generate([prompt(5)], T1)
    assert "s3cret" not in caplog.text
    monkeypatch.delenv("ROLLOUT_KEY")
    with pytest.raises(ConfigError, match="ROLLOUT_KEY, named as api_key_env, holds no key"):
        connect(server, api_key_env="ROLLOUT_KEY")


def test_work_is_spread_and_a_conversation_stays_where_its_beginning_is_known(servers, connect) -> None:
    engine = connect(*servers)
    stream = engine.stream(T1)
    for fake in servers:
        fake.faults = [fake_server.meeting(4)] * 4  # so that all are under way together
    for key in range(8):
        stream.add(key, prompt(50 + key, 1), max_new_tokens=4, seed=key)
    answers = {answer.key: answer.sample for answer in drain(stream)}
    first = [{body["token_ids"][0] for _, body in fake.asked} for fake in servers]
    assert [len(prompts) for prompts in first] == [4, 4]
    for key, sample in answers.items():
        stream.add(key, prompt(50 + key, 1, *sample.token_ids.tolist(), 2), max_new_tokens=4, seed=key)
        drain(stream)
    assert [{body["token_ids"][0] for _, body in fake.asked} for fake in servers] == first


def test_no_more_is_under_way_than_allowed(servers, connect) -> None:
    engine = connect(*servers, concurrency=3)
    for fake in servers:
        fake.faults = [fake_server.meeting(3)] * 3 + [fake_server.slow(0.02)] * 27
    engine.generate([prompt(50 + place) for place in range(30)], T1)
    assert [fake.most_under_way for fake in servers] == [3, 3]


def test_a_stream_answers_while_others_join_and_drops_what_it_is_closed_on(server, connect) -> None:
    engine = connect(server)
    stream = engine.stream(T1)
    assert stream.poll(5.0) == []  # nothing is asked: nothing is waited for
    server.faults = [fake_server.hanging]
    stream.add(1, prompt(5), max_new_tokens=4, seed=1)
    assert comes_true(lambda: server.log.count("sample") == 1)
    stream.add(2, prompt(6, n=2), max_new_tokens=2, seed=2)
    first = stream.poll(0.9)
    while len(first) < 2:
        first += stream.poll(0.5)
    assert {answer.key for answer in first} == {2} and stream.num_running == 1
    stream.close()
    assert stream.num_running == 0 and stream.poll(0.1) == []


def test_prompts_that_cannot_be_asked_are_refused(server, connect, tiny) -> None:
    engine = connect(server)
    with pytest.raises(EngineError, match="max_model_len 200"):
        engine.generate([prompt(*[5] * 200)], T1)
    with pytest.raises(EngineError, match="1 images but 0 pictures"):
        engine.generate([replace(tiny.request("a", [(64, 64)]), pictures=())], T1)
    with pytest.raises(EngineError, match="temperature 0.01"):
        engine.generate([prompt(5)], Sampling(max_new_tokens=2, temperature=0.01))


@pytest.mark.parametrize(
    ("servers_given", "options", "complaint"),
    [
        ([], {}, "at least one address"),
        (["http://127.0.0.1:1", "http://127.0.0.1:1"], {}, "each once"),
        (["127.0.0.1:8000"], {}, "like http://host:8000"),
        (["http://user:secret@host:8000"], {}, "without a name, a password"),
        (["http://127.0.0.1:1"], {"concurrency": 0}, "concurrency"),
        (["http://127.0.0.1:1"], {"weights_dir": Path("/nowhere/at/all")}, "no folder"),
    ],
)
def test_arguments_that_cannot_be_right_are_refused(tiny, servers_given, options, complaint: str) -> None:
    with pytest.raises(ConfigError, match=complaint) as refused:
        VllmServerEngine(servers_given, tiny.facts, **options)
    assert "secret" not in str(refused.value)
