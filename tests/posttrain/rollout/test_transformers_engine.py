"""The transformers engine against the trainer's log-probabilities and against transformers' own generate()."""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from posttrain.model import Family, PackedPolicy

from posttrain.errors import EngineError
from posttrain.rollout.engine import Request, Sample, Sampling
from posttrain.rollout.transformers_engine import TransformersEngine

PARITY = 1e-5
"""Nats in float32: two orders of summing the same products, measured 2e-6."""


def same(first: Sequence[Sequence[Sample]], second: Sequence[Sequence[Sample]]) -> bool:
    pairs = [(a, b) for g, h in zip(first, second, strict=True) for a, b in zip(g, h, strict=True)]
    return all(np.array_equal(a.token_ids, b.token_ids) for a, b in pairs)


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_log_probabilities_equal_the_trainers(load_tiny, family: Family, temperature: float) -> None:
    tiny = load_tiny(family)
    requests = tiny.mixed_requests()
    samples = TransformersEngine(tiny.policy, tiny.facts).generate(
        requests, Sampling(max_new_tokens=24, temperature=temperature, seed=3)
    )
    assert tiny.gap(requests, samples, temperature) < PARITY
    assert len({tuple(sample.token_ids) for group in samples for sample in group}) > 8


@pytest.mark.parametrize("family", [Family.QWEN3_VL, Family.QWEN2_5_VL, Family.QWEN3])
def test_greedy_equals_generate(load_tiny, family: Family) -> None:
    tiny = load_tiny(family)
    request = tiny.mixed_requests(n=1)[0]
    ((sample,),) = TransformersEngine(tiny.policy, tiny.facts).generate(
        [request], Sampling(max_new_tokens=24, temperature=0)
    )
    inputs = {"input_ids": torch.from_numpy(request.token_ids)[None]}
    inputs["attention_mask"] = torch.ones_like(inputs["input_ids"])
    if request.images:
        inputs["pixel_values"] = torch.cat([image.pixel_values_PD for image in request.images])
        inputs["image_grid_thw"] = torch.tensor([image.grid_thw for image in request.images])
        inputs["mm_token_type_ids"] = (inputs["input_ids"] == tiny.facts.image_token_id).int()
    expected = tiny.model.generate(
        **inputs, max_new_tokens=24, do_sample=False, suppress_tokens=list(tiny.facts.banned_token_ids) or None
    )
    assert sample.token_ids.tolist() == expected[0, len(request.token_ids) :].tolist()


def test_log_probabilities_of_a_lora_policy_equal_the_trainers(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3_VL)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], init_lora_weights=False, lora_dropout=0.5)
    tiny.policy = PackedPolicy(get_peft_model(tiny.model, config), tiny.facts)
    tiny.policy.train()
    requests = tiny.mixed_requests()
    samples = TransformersEngine(tiny.policy, tiny.facts).generate(requests, Sampling(max_new_tokens=16))
    assert tiny.gap(requests, samples) < PARITY  # dropout would be far off


def test_the_model_is_left_as_it_was(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3_VL)
    tiny.policy.train()
    tiny.model.model.visual.eval()
    tiny.model.gradient_checkpointing_enable()
    attention = tiny.model.config.text_config._attn_implementation
    state = torch.random.get_rng_state()
    TransformersEngine(tiny.policy, tiny.facts).generate(tiny.mixed_requests(), Sampling(max_new_tokens=4))
    assert tiny.model.model.language_model.training and not tiny.model.model.visual.training
    assert tiny.model.is_gradient_checkpointing
    assert tiny.model.config.text_config._attn_implementation == attention
    assert torch.equal(state, torch.random.get_rng_state())


def test_equal_seeds_repeat_and_others_differ(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3_VL)
    engine, requests = TransformersEngine(tiny.policy, tiny.facts), tiny.mixed_requests()
    first = engine.generate(requests, Sampling(max_new_tokens=16, seed=5))
    torch.manual_seed(123)
    assert same(first, engine.generate(requests, Sampling(max_new_tokens=16, seed=5)))
    assert not same(first, engine.generate(requests, Sampling(max_new_tokens=16, seed=6)))


@pytest.mark.parametrize("max_batch_tokens", [1, 150, 400])
def test_a_smaller_token_budget_gives_the_same_samples(load_tiny, max_batch_tokens: int) -> None:
    tiny = load_tiny(Family.QWEN3_VL)
    requests, sampling = tiny.mixed_requests(), Sampling(max_new_tokens=16, seed=5)
    whole = TransformersEngine(tiny.policy, tiny.facts).generate(requests, sampling)
    parts = TransformersEngine(tiny.policy, tiny.facts, max_batch_tokens=max_batch_tokens).generate(requests, sampling)
    assert same(whole, parts)
    assert tiny.gap(requests, parts) < PARITY


def test_a_prompt_is_prefilled_once_and_its_images_seen_once(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3_VL)
    images, rows = [], []
    tiny.model.model.visual.register_forward_hook(
        lambda module, args, kwargs, out: images.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    tiny.model.model.language_model.register_forward_hook(lambda module, args, out: rows.append(len(out[0])))
    request = tiny.request("Locate the red circle.", [(64, 64)], n=2)
    longer = replace(request, token_ids=np.append(request.token_ids, request.token_ids[-1]))
    requests = [request, longer, replace(request, n=3)]
    samples = TransformersEngine(tiny.policy, tiny.facts).generate(requests, Sampling(max_new_tokens=8))
    assert images == [1]
    assert rows[:2] == [2, 7]
    assert tiny.gap(requests, samples) < PARITY


def test_banned_tokens_are_never_sampled_from_a_head_that_craves_them(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3_VL)
    request = tiny.request("Locate the red circle.", [(64, 64)], n=32)
    tiny.crave(tiny.facts.video_token_id, request, nats=8.0)
    engine = TransformersEngine(tiny.policy, tiny.facts)
    samples = engine.generate([request], Sampling(max_new_tokens=8))
    assert not np.isin(np.concatenate([s.token_ids for s in samples[0]]), tiny.facts.banned_token_ids).any()
    assert max(s.logprobs[0] for s in samples[0]) < -6  # of the full vocabulary, which the craved token dominates
    assert tiny.gap([request], samples) < PARITY


def test_ids_beyond_the_tokenizer_are_never_sampled(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3)
    engine = TransformersEngine(tiny.policy, tiny.facts, vocab_limit=100)
    ((*samples,),) = engine.generate([tiny.request("hi", n=16)], Sampling(max_new_tokens=8, temperature=3.0))
    assert max(int(s.token_ids.max()) for s in samples) < 100


def test_a_sample_ends_with_the_end_of_turn_exactly_when_it_says_so(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3_VL)
    request = tiny.request("Locate the red circle.", [(64, 64)], n=32)
    tiny.crave(tiny.facts.eos_token_ids[1], request, nats=1.0)
    (samples,) = TransformersEngine(tiny.policy, tiny.facts).generate([request], Sampling(max_new_tokens=12))
    assert {sample.stop for sample in samples} == {"end", "length"}
    for sample in samples:
        ends = np.isin(sample.token_ids, tiny.facts.eos_token_ids)
        assert ends.any() == (sample.stop == "end")
        assert not ends[:-1].any()
        assert len(sample.token_ids) == len(sample.logprobs)
        assert len(sample.token_ids) == 12 or sample.stop == "end"
    assert tiny.gap([request], [samples]) < PARITY


def test_samples_that_have_ended_leave_the_batch(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3_VL)
    requests = [tiny.request("Locate the red circle.", [(64, 64)], n=24), tiny.request("hi", n=8)]
    tiny.crave(tiny.facts.eos_token_ids[1], requests[0], nats=6.0)
    widths: list[int] = []
    tiny.model.model.language_model.register_forward_hook(lambda module, args, out: widths.append(len(out[0])))
    samples = TransformersEngine(tiny.policy, tiny.facts).generate(requests, Sampling(max_new_tokens=40))
    lengths = np.array([len(s.token_ids) for group in samples for s in group])
    assert (lengths == 1).sum() > 4
    assert widths[0] == 2  # the prefill
    for step, width in enumerate(widths[1:], start=1):
        alive = int((lengths > step).sum())
        assert alive <= width <= alive / 0.875 + 1
    assert tiny.gap(requests, samples) < PARITY


def test_the_version_follows_updates_and_another_model_is_refused(load_tiny) -> None:
    tiny, other = load_tiny(Family.QWEN3), load_tiny(Family.QWEN3)
    engine, request = TransformersEngine(tiny.policy, tiny.facts), tiny.request("hi", n=1)
    engine.update_weights(tiny.policy, 3)
    ((sample,),) = engine.generate([request], Sampling(max_new_tokens=2))
    assert sample.weights_version == 3
    with pytest.raises(EngineError, match="make a new engine"):
        engine.update_weights(other.policy, 4)


def test_no_requests_give_no_samples(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3)
    assert TransformersEngine(tiny.policy, tiny.facts).generate([], Sampling(max_new_tokens=2)) == []


def test_image_tokens_without_their_image_are_refused(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3_VL)
    request = tiny.request("Locate the red circle.", [(64, 64)])
    with pytest.raises(ValueError, match="16 image tokens"):
        TransformersEngine(tiny.policy, tiny.facts).generate(
            [Request(token_ids=request.token_ids)], Sampling(max_new_tokens=2)
        )
