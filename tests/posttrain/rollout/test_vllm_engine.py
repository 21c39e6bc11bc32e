"""vLLM in process against the trainer's log-probabilities, before and after weight updates. One engine for them all."""

import random
import sys
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from posttrain.model import Budget, Family, PackedPolicy

from posttrain.errors import EngineError
from posttrain.rollout.engine import Request, Sampling, Stream
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.rollout.vllm_engine import VllmEngine
from posttrain.rollout.vllm_prompts import full_logprobs, one_token_an_image

PARITY = 1e-5
"""Nats in float32, measured 2.4e-6."""


def test_runs_of_image_tokens_become_one_token() -> None:
    token_ids = np.array([1, 9, 9, 9, 2, 2, 9, 9, 3])
    assert one_token_an_image(token_ids, 9) == [1, 9, 2, 2, 9, 3]
    assert one_token_an_image(token_ids, None) == token_ids.tolist()


@pytest.mark.parametrize("temperature", [0.5, 1.0, 2.0])
def test_full_logprobs_gives_the_banned_tokens_their_mass_back(temperature: float) -> None:
    logits = np.random.default_rng(0).normal(size=12) * 3
    logits[[2, 5]] += 4  # most of the mass is banned

    def log_softmax(values: np.ndarray) -> np.ndarray:
        return values - np.logaddexp.reduce(values)

    biased = logits.copy()
    biased[[2, 5]] -= 100
    after, full = log_softmax(biased / temperature), log_softmax(logits / temperature)
    found = full_logprobs(after[[7]], after[[2, 5]][None], temperature)
    assert found == pytest.approx(full[[7]], abs=1e-6)
    assert after[7] - full[7] > 1


def test_a_missing_vllm_names_the_extra(load_tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = load_tiny(Family.QWEN3)
    monkeypatch.setitem(sys.modules, "vllm", None)
    with pytest.raises(EngineError, match=r"posttrain\[vllm\]"):
        VllmEngine(tiny.folder, tiny.facts)


@pytest.mark.skipif(torch.cuda.is_available(), reason="sleeping is for CUDA")
def test_sleep_is_refused_on_a_cpu(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3)
    with pytest.raises(EngineError, match="CUDA"):
        VllmEngine(tiny.folder, tiny.facts, enable_sleep=True)


def test_experts_cannot_be_updated_on_a_cpu(load_tiny, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny = load_tiny(Family.QWEN3_VL_MOE)
    engine = VllmEngine.__new__(VllmEngine)  # without starting vLLM: the refusal comes before it is asked
    monkeypatch.setattr(engine, "_on_cpu", True, raising=False)
    monkeypatch.setattr(engine, "facts", tiny.facts, raising=False)
    with pytest.raises(EngineError, match="experts"):
        engine.update_weights(tiny.policy, 1)


def drain(stream: Stream) -> dict[tuple[int, int], list[int]]:
    """(key, index) -> the tokens said, of all that is running."""
    answers = {}
    while stream.num_running:
        for answer in stream.poll(1.0):
            answers[answer.key, answer.index] = answer.sample.token_ids.tolist()
    return answers


@pytest.fixture(scope="module")
def engine(load_tiny) -> Iterator[VllmEngine]:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    tiny = load_tiny(Family.QWEN3_VL)
    made = VllmEngine(tiny.folder, tiny.facts, tiny.processor, dtype="float32", max_model_len=512, max_images=4)
    yield made
    made.close()


@pytest.fixture
def tiny(load_tiny, engine: VllmEngine):
    """The trainer's model, with the engine on the same weights whatever the test before did to it."""
    loaded = load_tiny(Family.QWEN3_VL)
    if engine.weights_version:
        engine.update_weights(loaded.policy, 0)
    return loaded


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.xdist_group("vllm")
class TestEngine:
    """Grouped so that one worker, and one engine, runs them all."""

    @pytest.mark.parametrize("temperature", [1.0, 0.7, 2.0])
    def test_log_probabilities_equal_the_trainers(self, engine: VllmEngine, tiny, temperature: float) -> None:
        requests = tiny.mixed_requests()
        samples = engine.generate(requests, Sampling(max_new_tokens=24, temperature=temperature, seed=3))
        assert tiny.gap(requests, samples, temperature) < PARITY
        assert len({tuple(sample.token_ids) for group in samples for sample in group}) > 8

    def test_greedy_equals_the_transformers_engine(self, engine: VllmEngine, tiny) -> None:
        requests, sampling = tiny.mixed_requests(n=2), Sampling(max_new_tokens=24, temperature=0)
        expected = TransformersEngine(tiny.policy, tiny.facts).generate(requests, sampling)
        samples = engine.generate(requests, sampling)
        for group, theirs in zip(samples, expected, strict=True):
            assert [s.token_ids.tolist() for s in group] == [s.token_ids.tolist() for s in theirs]
        assert tiny.gap(requests, samples) < PARITY

    def test_equal_seeds_repeat_and_others_differ(self, engine: VllmEngine, tiny) -> None:
        def texts(seed: int) -> list[list[int]]:
            groups = engine.generate(tiny.mixed_requests(), Sampling(max_new_tokens=16, seed=seed))
            return [sample.token_ids.tolist() for group in groups for sample in group]

        first = texts(5)
        torch.manual_seed(123)
        assert first == texts(5)
        assert first != texts(6)
        assert len({tuple(text) for text in first}) == len(first)

    def test_an_update_changes_samples_and_keeps_parity(self, engine: VllmEngine, tiny) -> None:
        requests, sampling = tiny.mixed_requests(), Sampling(max_new_tokens=16, seed=1)
        tiny.shake()
        assert tiny.gap(requests, engine.generate(requests, sampling)) > 0.1  # the old weights
        engine.update_weights(tiny.policy, 7)
        samples = engine.generate(requests, sampling)
        assert tiny.gap(requests, samples) < PARITY
        assert {sample.weights_version for group in samples for sample in group} == {7}

    def test_an_update_merges_adapters(self, engine: VllmEngine, tiny) -> None:
        requests, sampling = tiny.mixed_requests(), Sampling(max_new_tokens=16, seed=1)
        config = LoraConfig(r=4, target_modules=["q_proj", "down_proj"], init_lora_weights=False)
        tiny.policy = PackedPolicy(get_peft_model(tiny.model, config), tiny.facts)
        assert tiny.gap(requests, engine.generate(requests, sampling)) > 0.1
        engine.update_weights(tiny.policy, 1)
        assert tiny.gap(requests, engine.generate(requests, sampling)) < PARITY

    def test_banned_tokens_are_never_sampled_from_a_head_that_craves_them(self, engine: VllmEngine, tiny) -> None:
        request = tiny.request("Locate the red circle.", [(64, 64)], n=32)
        tiny.crave(tiny.facts.video_token_id, request, nats=8.0)
        engine.update_weights(tiny.policy, 1)
        (samples,) = engine.generate([request], Sampling(max_new_tokens=8))
        assert not np.isin(np.concatenate([s.token_ids for s in samples]), tiny.facts.banned_token_ids).any()
        assert max(s.logprobs[0] for s in samples) < -6
        assert tiny.gap([request], [samples]) < PARITY

    def test_a_sample_ends_with_the_end_of_turn_exactly_when_it_says_so(self, engine: VllmEngine, tiny) -> None:
        request = tiny.request("Locate the red circle.", [(64, 64)], n=32)
        tiny.crave(tiny.facts.eos_token_ids[1], request, nats=-2.0)
        engine.update_weights(tiny.policy, 1)
        (samples,) = engine.generate([request], Sampling(max_new_tokens=12))
        assert {sample.stop for sample in samples} == {"end", "length"}
        for sample in samples:
            ends = np.isin(sample.token_ids, tiny.facts.eos_token_ids)
            assert ends.any() == (sample.stop == "end") and not ends[:-1].any()
            assert len(sample.token_ids) == 12 or sample.stop == "end"

    def test_a_picture_of_another_size_than_the_trainers_is_named(self, engine: VllmEngine, tiny) -> None:
        request = tiny.request("Locate the red circle.", [(64, 64)])
        (picture,) = request.pictures
        with pytest.raises(EngineError, match="tokens where the trainer has"):
            engine.generate([replace(request, pictures=(picture.resize((96, 96)),))], Sampling(max_new_tokens=2))

    def test_a_prompt_without_its_pictures_is_refused(self, engine: VllmEngine, tiny) -> None:
        request = tiny.request("Locate the red circle.", [(64, 64)])
        with pytest.raises(EngineError, match="1 images but 0 pictures"):
            engine.generate([replace(request, pictures=())], Sampling(max_new_tokens=2))

    def test_a_prompt_that_leaves_no_room_is_refused(self, engine: VllmEngine) -> None:
        with pytest.raises(EngineError, match="max_model_len 512"):
            engine.generate([Request(token_ids=np.full(512, 40))], Sampling(max_new_tokens=2))

    def test_failures_of_vllm_are_engine_errors_with_their_cause(self, engine: VllmEngine) -> None:
        with pytest.raises(EngineError, match=r"vLLM cannot take a prompt: \w+") as failure:
            engine.generate([Request(token_ids=np.array([1 << 30]))], Sampling(max_new_tokens=2))
        assert failure.value.__cause__ is not None
        assert engine.stream(Sampling(max_new_tokens=2)).num_running == 0

    def test_an_episode_of_two_turns_with_an_image_each_has_the_trainers_log_probabilities(self, engine, tiny) -> None:
        stream = engine.stream(Sampling(max_new_tokens=0))
        sequence, logprobs = tiny.episode(stream, turns=2, max_new_tokens=10)
        stream.close()
        assert len(sequence.images) == 2 and sequence.num_trained == len(logprobs) > 4
        tiny.policy.eval()
        (ours,) = tiny.policy.logprobs([sequence], Budget(tokens=4096))
        assert np.abs(ours.numpy() - logprobs).max() < PARITY

    def test_requests_join_a_stream_that_is_at_others(self, engine: VllmEngine, tiny) -> None:
        """Each is answered as if it had been alone: samples depend on their seed, not on company."""
        requests, sampling = tiny.mixed_requests(n=2), Sampling(max_new_tokens=0)

        def alone(key: int) -> list[list[int]]:
            stream = engine.stream(sampling)
            stream.add(key, requests[key], max_new_tokens=6 + 6 * key, seed=key)
            return [said[1] for said in sorted(drain(stream).items())]

        stream = engine.stream(sampling)
        stream.add(0, requests[0], max_new_tokens=6, seed=0)
        answers = {}
        for key in (1, 2):
            for answer in stream.poll(0.0):
                answers[answer.key, answer.index] = answer.sample.token_ids.tolist()
            stream.add(key, requests[key], max_new_tokens=6 + 6 * key, seed=key)
        answers |= drain(stream)
        for key in range(3):
            assert [answers[key, index] for index in range(2)] == alone(key)
        assert stream.num_running == 0 and stream.poll(0.1) == []

    def test_prompts_that_vllm_cannot_read_in_one_go_are_sampled_as_if_alone(self, engine: VllmEngine, tiny) -> None:
        """vLLM's CPU build died of seeded requests whose prompts it read in parts."""
        requests = [tiny.request(f"{place} " + "word " * 80, n=1) for place in range(14)]
        assert sum(len(request.token_ids) for request in requests) > 5000  # it reads 4096 at once
        stream = engine.stream(Sampling(max_new_tokens=0))
        for key, request in enumerate(requests):
            stream.add(key, request, max_new_tokens=6, seed=key)
        answers = drain(stream)
        for key in (0, 13):
            stream.add(key, requests[key], max_new_tokens=6, seed=key)
            assert drain(stream)[key, 0] == answers[key, 0]

    def test_samples_come_one_by_one_as_they_end(self, engine: VllmEngine, tiny) -> None:
        stream = engine.stream(Sampling(max_new_tokens=0))
        stream.add(7, tiny.request("hi", n=3), max_new_tokens=40, seed=1)
        stream.add(8, tiny.request("you", n=1), max_new_tokens=2, seed=1)
        assert stream.num_running == 4
        first = []
        while not first:
            first = stream.poll(5.0)
        assert [answer.key for answer in first] == [8] and stream.num_running == 3
        stream.close()
        assert stream.num_running == 0 and stream.poll(0.1) == []

    def test_two_streams_get_their_own_answers(self, engine: VllmEngine, tiny) -> None:
        streams = [engine.stream(Sampling(max_new_tokens=0, temperature=t)) for t in (0.0, 1.0)]
        for stream in streams:
            stream.add(0, tiny.request("hi", n=2), max_new_tokens=8, seed=3)
        greedy, sampled = drain(streams[0]), drain(streams[1])
        assert greedy[0, 0] == greedy[0, 1] and sampled[0, 0] != sampled[0, 1]

    def test_weights_are_not_exchanged_under_a_running_stream(self, engine: VllmEngine, tiny) -> None:
        stream = engine.stream(Sampling(max_new_tokens=0))
        stream.add(0, tiny.request("hi", n=1), max_new_tokens=30, seed=0)
        with pytest.raises(EngineError, match="while it is at 1 samples: close the stream"):
            engine.update_weights(tiny.policy, 1)
        stream.close()
        engine.update_weights(tiny.policy, 0)

    def test_a_prompt_whose_two_images_run_together_is_refused(self, engine: VllmEngine, tiny) -> None:
        request = tiny.request("Which?", [(64, 64), (64, 64)])
        ids = request.token_ids
        marks = (tiny.facts.vision_start_token_id, tiny.facts.vision_end_token_id)
        with pytest.raises(EngineError, match="2 images and 1 places"):
            engine.generate([replace(request, token_ids=ids[~np.isin(ids, marks)])], Sampling(max_new_tokens=2))

    def test_generating_leaves_the_random_states_alone(self, engine: VllmEngine, tiny) -> None:
        before = random.getstate(), np.random.get_state()[1].tolist(), torch.random.get_rng_state()
        engine.generate(tiny.mixed_requests(), Sampling(max_new_tokens=4))
        assert before[0] == random.getstate() and before[1] == np.random.get_state()[1].tolist()
        assert torch.equal(before[2], torch.random.get_rng_state())

    def test_torch_keeps_its_number_of_threads(self, engine: VllmEngine) -> None:
        before = torch.get_num_threads()
        torch.set_num_threads(before + 1)
        changed = torch.get_num_threads()
        torch.set_num_threads(before)
        assert changed == before + 1
