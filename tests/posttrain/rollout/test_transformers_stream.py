"""Continuous batching: what a request is answered depends on nothing else in the stream, and nothing waits in vain."""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch
from posttrain.model import Family

from posttrain.errors import EngineError
from posttrain.rollout.engine import Answer, Request, Sample, Sampling, Stream, StreamingEngine
from posttrain.rollout.transformers_engine import TransformersEngine

PARITY = 1e-5
"""Nats in float32: two orders of summing the same products, measured 2e-6."""
GREEDY = Sampling(max_new_tokens=0, temperature=0)
SAMPLED = Sampling(max_new_tokens=0)


def drained(stream: Stream, answers: Sequence[Answer] = ()) -> dict[tuple[int, int], Sample]:
    """All samples, those of `answers` included, by key and index; each has come once."""
    found = list(answers)
    for _ in range(1000):
        if not stream.num_running:
            break
        found += stream.poll(0)
    assert stream.num_running == 0 and stream.poll(0) == []
    samples = {(answer.key, answer.index): answer.sample for answer in found}
    assert len(samples) == len(found)
    return samples


def alone(
    engine: TransformersEngine, sampling: Sampling, requests: Mapping[int, Request], limits: Mapping[int, int]
) -> dict[tuple[int, int], Sample]:
    """Each request in a stream of its own; its key is its seed."""
    samples: dict[tuple[int, int], Sample] = {}
    for key, request in requests.items():
        stream = engine.stream(sampling)
        stream.add(key, request, max_new_tokens=limits[key], seed=key)
        samples |= drained(stream)
    return samples


def assert_same(found: Mapping[tuple[int, int], Sample], expected: Mapping[tuple[int, int], Sample]) -> None:
    assert found.keys() == expected.keys()
    for place, sample in expected.items():
        assert found[place].token_ids.tolist() == sample.token_ids.tolist(), place
        assert np.abs(found[place].logprobs - sample.logprobs).max() < PARITY
        assert found[place].stop == sample.stop


@pytest.mark.parametrize("family", list(Family))
@pytest.mark.parametrize("sampling", [GREEDY, SAMPLED], ids=["greedy", "sampled"])
def test_requests_that_join_a_running_stream_are_answered_as_if_alone(
    load_tiny, family: Family, sampling: Sampling
) -> None:
    tiny = load_tiny(family)
    engine = TransformersEngine(tiny.policy, tiny.facts)
    several, single = tiny.mixed_requests(n=3), tiny.request("What is 12+30? And what is 7+8?", n=1)
    requests = dict(enumerate([*several, single]))
    limits = {0: 30, 1: 7, 2: 1, 3: 24}
    stream = engine.stream(sampling)
    assert isinstance(engine, StreamingEngine)
    answers = []
    for key in (3, 0, 1, 2):
        stream.add(key, requests[key], max_new_tokens=limits[key], seed=key)
        answers += stream.poll(0)
    samples = drained(stream, answers)
    assert len(samples) == stream_size(requests)
    assert_same(samples, alone(engine, sampling, requests, limits))
    assert all(len(sample.token_ids) <= limits[key] for (key, _), sample in samples.items())


def stream_size(requests: Mapping[int, Request]) -> int:
    return sum(request.n for request in requests.values())


@pytest.mark.parametrize(("seed", "max_batch_tokens"), [(0, 1 << 17), (1, 400), (2, 400), (3, 250), (4, 1)])
def test_any_order_of_coming_and_going_gives_the_same_samples(load_tiny, seed: int, max_batch_tokens: int) -> None:
    tiny = load_tiny(Family.QWEN3_VL)
    tiny.crave(tiny.facts.eos_token_ids[1], tiny.request("hi", n=1), nats=3.0)  # some end soon, some late
    draw = np.random.default_rng(seed)
    texts = ["hi", "Locate the red circle.", "What is 3+4? Say it twice, and then once more.", "How many?"]
    requests, limits = {}, {}
    for key in range(10):
        sizes = [(64, 64), (96, 64)][: draw.integers(3)]
        requests[key] = tiny.request(texts[draw.integers(4)], sizes, n=int(draw.choice([1, 1, 2, 5])))
        limits[key] = int(draw.integers(1, 24))
    engine = TransformersEngine(tiny.policy, tiny.facts, max_batch_tokens=max_batch_tokens)
    stream = engine.stream(SAMPLED)
    answers: list[Answer] = []
    for key in requests:
        stream.add(key, requests[key], max_new_tokens=limits[key], seed=key)
        for _ in range(draw.integers(0, 4)):
            answers += stream.poll(0)
    assert_same(drained(stream, answers), alone(engine, SAMPLED, requests, limits))


@pytest.mark.parametrize("family", [family for family in Family if family is not Family.QWEN3])
def test_a_second_turn_with_an_image_of_its_own_has_the_trainers_log_probabilities(load_tiny, family: Family) -> None:
    tiny = load_tiny(family)
    engine = TransformersEngine(tiny.policy, tiny.facts)
    first = tiny.request("Locate the red circle.", [(96, 64)], n=1)
    crop = tiny.request("Look again, closer.", [(64, 128)], n=1)
    stream = engine.stream(SAMPLED)
    stream.add(0, first, max_new_tokens=12, seed=0)
    stream.add(1, tiny.request("hi", n=3), max_new_tokens=60, seed=1)
    answers: list[Answer] = []
    while not any(answer.key == 0 for answer in answers):
        answers += stream.poll(0)
    said = next(answer.sample.token_ids for answer in answers if answer.key == 0)
    second = Request(
        token_ids=np.concatenate([first.token_ids, said, crop.token_ids]), images=first.images + crop.images, n=2
    )
    stream.add(2, second, max_new_tokens=20, seed=2)
    samples = drained(stream, answers)
    assert tiny.gap([first, second], [[samples[0, 0]], [samples[2, 0], samples[2, 1]]]) < PARITY
    assert samples[2, 0].token_ids.tolist() != samples[2, 1].token_ids.tolist()


def test_a_sample_depends_on_its_seed_and_index_and_not_on_n_or_the_limit(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3)
    engine, request = TransformersEngine(tiny.policy, tiny.facts), tiny.request("hi", n=4)
    (few,), (many,) = ([drained_alone(engine, replace(request, n=n), limit, seed=7)] for n, limit in ((2, 40), (5, 8)))
    for index in range(2):
        assert few[index].token_ids[:8].tolist() == many[index].token_ids.tolist()
    assert len({tuple(sample.token_ids) for sample in many}) == 5
    other = drained_alone(engine, request, 8, seed=-7)
    assert {tuple(s.token_ids) for s in other}.isdisjoint(tuple(s.token_ids) for s in many)


def drained_alone(engine: TransformersEngine, request: Request, limit: int, seed: int) -> list[Sample]:
    stream = engine.stream(SAMPLED)
    stream.add(0, request, max_new_tokens=limit, seed=seed)
    samples = drained(stream)
    return [samples[0, index] for index in range(request.n)]


def test_what_does_not_fit_waits_and_the_keys_and_values_held_stay_within_the_limit(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3)
    requests = [tiny.request(f"What is {i}+{i}?", n=2) for i in range(8)]
    longest, limit = max(len(r.token_ids) for r in requests), 16
    room = 2 * longest + 5 * limit  # two prompts of two samples each, and a sample more
    widths = widths_of_forward_passes(tiny)
    stream = TransformersEngine(tiny.policy, tiny.facts, max_batch_tokens=room).stream(SAMPLED)
    for key, request in enumerate(requests):
        stream.add(key, request, max_new_tokens=limit, seed=key)
    assert stream.num_running == 16
    samples = drained(stream)
    assert len(samples) == 16
    decoded = [width for width, tokens in widths if tokens == 1]
    assert max(decoded) == 4
    assert all(width <= 2 for width, tokens in widths if tokens > 1)


def widths_of_forward_passes(tiny) -> list[tuple[int, int]]:
    """(rows, tokens) of every forward pass from now on."""
    widths: list[tuple[int, int]] = []
    text = tiny.model.model if tiny.facts.position_rows == 1 else tiny.model.model.language_model
    text.register_forward_hook(lambda module, args, out: widths.append(tuple(out[0].shape[:2])))
    return widths


def test_what_waits_is_prefilled_together_and_equal_prompts_once(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3_VL)
    images = []
    tiny.model.model.visual.register_forward_hook(
        lambda module, args, kwargs, out: images.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    widths = widths_of_forward_passes(tiny)
    first, second = tiny.request("Locate it.", [(64, 64)], n=1), tiny.request("Locate the red circle.", n=2)
    stream = TransformersEngine(tiny.policy, tiny.facts).stream(SAMPLED)
    for key, request in enumerate([first, second, first]):
        stream.add(key, request, max_new_tokens=30, seed=key)
    stream.poll(0)
    assert [width for width, tokens in widths if tokens > 1] == [2] and images == [1]
    assert {width for width, tokens in widths if tokens == 1} == {4}
    stream.add(3, first, max_new_tokens=4, seed=3)  # its prompt is still read by others
    stream.poll(0)
    assert [width for width, tokens in widths if tokens > 1] == [2] and images == [1]
    assert len(drained(stream)) == 4


def test_the_images_of_earlier_turns_do_not_pass_the_tower_again(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3_VL)
    images = []
    tiny.model.model.visual.register_forward_hook(
        lambda module, args, kwargs, out: images.append(len(kwargs["grid_thw"])), with_kwargs=True
    )
    first, crop = tiny.request("Locate it.", [(64, 64)], n=1), tiny.request("Closer.", [(96, 64)], n=1)
    second = Request(token_ids=np.concatenate([first.token_ids, crop.token_ids]), images=first.images + crop.images)
    stream = TransformersEngine(tiny.policy, tiny.facts).stream(SAMPLED)
    samples = {}
    for key, request in enumerate([first, second]):
        stream.add(key, request, max_new_tokens=6, seed=key)
        samples |= drained(stream)
    assert images == [1, 1]
    assert tiny.gap([first, second], [[samples[0, 0]], [samples[1, 0]]]) < PARITY


def test_banned_tokens_are_never_sampled_by_who_joins_late_either(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3_VL)
    request = tiny.request("Locate the red circle.", [(64, 64)], n=16)
    tiny.crave(tiny.facts.video_token_id, request, nats=8.0)
    stream = TransformersEngine(tiny.policy, tiny.facts).stream(SAMPLED)
    stream.add(0, tiny.request("hi", n=4), max_new_tokens=20, seed=0)
    answers = stream.poll(0)
    stream.add(1, request, max_new_tokens=8, seed=1)
    samples = drained(stream, answers)
    said = np.concatenate([sample.token_ids for sample in samples.values()])
    assert not np.isin(said, tiny.facts.banned_token_ids).any()
    assert max(samples[1, index].logprobs[0] for index in range(16)) < -6  # of the full vocabulary


def test_a_bad_prompt_is_refused_and_the_others_go_on(load_tiny) -> None:
    tiny, text = load_tiny(Family.QWEN3_VL), load_tiny(Family.QWEN3)
    request = tiny.request("Locate the red circle.", [(64, 64)], n=2)
    stream = TransformersEngine(tiny.policy, tiny.facts).stream(SAMPLED)
    stream.add(0, request, max_new_tokens=8, seed=0)
    answers = stream.poll(0)
    with pytest.raises(ValueError, match="has 16 image tokens, its 0 images have 0 merged patches"):
        stream.add(1, replace(request, images=()), max_new_tokens=8, seed=0)
    with pytest.raises(ValueError, match="no token"):
        stream.add(2, Request(token_ids=np.empty(0, np.int64)), max_new_tokens=8, seed=0)
    with pytest.raises(ValueError, match="room for 0 tokens"):
        stream.add(3, request, max_new_tokens=0, seed=0)
    assert stream.num_running == 2
    assert {key for key, _ in drained(stream, answers)} == {0}
    with pytest.raises(ValueError, match="has 1 images, but the model reads text alone"):
        TransformersEngine(text.policy, text.facts).stream(SAMPLED).add(
            0, replace(text.request("hi"), images=request.images), max_new_tokens=8, seed=0
        )


def test_a_step_that_breaks_off_drops_what_ran_and_the_stream_can_be_used_again(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3)
    tiny.policy.train()
    engine, request = TransformersEngine(tiny.policy, tiny.facts), tiny.request("hi", n=2)
    stream = engine.stream(SAMPLED)
    stream.add(0, request, max_new_tokens=30, seed=0)
    stream.poll(0)

    def out_of_memory(*args: object) -> None:
        raise torch.OutOfMemoryError("out of memory")

    hook = tiny.model.model.register_forward_hook(out_of_memory)
    with pytest.raises(torch.OutOfMemoryError):
        stream.poll(0)
    hook.remove()
    assert stream.num_running == 0 and tiny.model.training
    stream.add(0, request, max_new_tokens=30, seed=0)
    assert_same(drained(stream), alone(engine, SAMPLED, {0: request}, {0: 30}))


def test_a_closed_stream_has_dropped_everything_and_takes_nothing(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3)
    stream = TransformersEngine(tiny.policy, tiny.facts).stream(SAMPLED)
    stream.add(0, tiny.request("hi", n=2), max_new_tokens=30, seed=0)
    stream.poll(0)
    stream.add(1, tiny.request("What is 3+4?", n=1), max_new_tokens=30, seed=1)
    assert stream.num_running == 3
    stream.close()
    assert stream.num_running == 0 and stream.poll(0) == []
    with pytest.raises(EngineError, match="is closed"):
        stream.add(2, tiny.request("hi"), max_new_tokens=2, seed=0)


def test_between_polls_the_model_is_as_it_was(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3_VL)
    tiny.policy.train()
    tiny.model.model.visual.eval()
    attention = tiny.model.config.text_config._attn_implementation
    requests = tiny.mixed_requests(n=2)
    stream = TransformersEngine(tiny.policy, tiny.facts).stream(SAMPLED)
    answers: list[Answer] = []
    for key, request in enumerate(requests):
        stream.add(key, request, max_new_tokens=20, seed=key)
        answers += stream.poll(0)
        assert tiny.model.model.language_model.training and not tiny.model.model.visual.training
        assert tiny.model.config.text_config._attn_implementation == attention
        assert torch.is_grad_enabled()
        (sample,) = TransformersEngine(tiny.policy, tiny.facts).generate([requests[0]], Sampling(max_new_tokens=2))
        assert tiny.gap([requests[0]], [sample]) < PARITY  # the trainer's own forward pass, in between
        tiny.policy.train()
        tiny.model.model.visual.eval()
    samples = drained(stream, answers)
    assert tiny.gap(requests, [[samples[key, 0], samples[key, 1]] for key in range(3)]) < PARITY


def test_memory_goes_as_samples_end(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3)
    stream = TransformersEngine(tiny.policy, tiny.facts).stream(SAMPLED)
    for key in range(16):
        stream.add(key, tiny.request(f"{key}+{key}", n=1), max_new_tokens=12 if key else 40, seed=key)
    stream.poll(0)
    before = held_bytes(stream)
    while stream.num_running > 1:
        stream.poll(0)
    stream.poll(0)
    assert 0 < held_bytes(stream) < before / 4
    drained(stream)
    assert held_bytes(stream) == 0


def held_bytes(root: object) -> int:
    """Of keys and values that are reachable from the stream."""
    found: dict[int, int] = {}
    todo, seen = [root], set()
    while todo:
        thing = todo.pop()
        if id(thing) in seen:
            continue
        seen.add(id(thing))
        if isinstance(thing, torch.Tensor):
            if thing.ndim == 4:
                found[thing.data_ptr()] = thing.untyped_storage().nbytes()
        elif isinstance(thing, (list, tuple)):
            todo += thing
        elif isinstance(thing, dict):
            todo += thing.values()
        elif type(thing).__module__.startswith("posttrain.rollout.continuous"):
            todo += vars(thing).values() if hasattr(thing, "__dict__") else ()
    return sum(found.values())
