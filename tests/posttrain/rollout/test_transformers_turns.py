"""A trajectory's next turn reads what its earlier turns have left: nothing of it is computed twice."""

from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pytest
from posttrain.model import Family

from posttrain.rollout.continuous import ContinuousStream
from posttrain.rollout.continuous_kept import KeptPasts, Past
from posttrain.rollout.engine import Request, Sample, Sampling
from posttrain.rollout.transformers_engine import TransformersEngine
from tests.posttrain.rollout.test_transformers_stream import PARITY, widths_of_forward_passes

SAMPLED = Sampling(max_new_tokens=0)


@dataclass
class Played:
    """A trajectory of three turns, each answered as soon as it has ended."""

    key: int
    shown: list[Request]
    limit: int
    turns: list[tuple[Request, Sample]] = field(default_factory=list)

    def request(self) -> Request:
        token_ids = [part for request, sample in self.turns[-1:] for part in (request.token_ids, sample.token_ids)]
        shown = self.shown[: len(self.turns) + 1]
        return Request(
            token_ids=np.concatenate([*token_ids, shown[-1].token_ids]),
            images=tuple(image for request in shown for image in request.images),
            may_go_on=True,
        )


def play(stream: Any, played: list[Played], room: int = 1 << 17) -> None:
    """Sees to it that keys and values of running samples and of kept turns fit in the room together."""
    for one in played:
        stream.add(one.key, one.request(), max_new_tokens=one.limit, seed=one.key)
    while stream.num_running:
        held, kept = num_held(stream)
        assert not kept or held + kept <= room
        for answer in stream.poll(0):
            one = played[answer.key]
            one.turns.append((one.request(), answer.sample))
            if len(one.turns) < len(one.shown):
                stream.add(one.key, one.request(), max_new_tokens=one.limit, seed=one.key + 100 * len(one.turns))


def num_held(stream: Any) -> tuple[int, int]:
    """Tokens of what runs, padded, and of what is kept."""
    if not isinstance(stream, ContinuousStream):
        return 0, 0
    held = sum(load.tokens for load in stream._loads().values())  # pyright: ignore[reportPrivateUsage]
    return held, stream._kept._num_tokens  # pyright: ignore[reportPrivateUsage]


def trajectories(tiny) -> list[Played]:
    """Of unequal turns; one with images in every turn, one in the second alone, one in the last, one without."""
    sizes = [[(96, 64)]] * 3, [[], [(64, 64), (64, 128)], []], [[], [], [(64, 64)]], [[]] * 3
    texts = "Locate the red circle.", "hi", "What is 3+4? Say it twice."
    if not tiny.facts.has_vision:
        sizes = tuple([[]] * 3 for _ in sizes)
    return [
        Played(
            key,
            [tiny.request(text * (key + 1), some, n=1) for text, some in zip(texts, sizes[key], strict=True)],
            3 + 4 * key,
        )
        for key in range(4)
    ]


@pytest.fixture(params=list(Family))
def tiny(request: pytest.FixtureRequest, load_tiny) -> Iterator:
    return load_tiny(request.param)


def test_later_turns_have_the_trainers_log_probabilities_and_the_samples_of_a_stream_that_forgets(tiny) -> None:
    engine = TransformersEngine(tiny.policy, tiny.facts)
    kept, forgot = trajectories(tiny), trajectories(tiny)
    play(engine.stream(SAMPLED), kept)
    play(Forgetful(engine.stream(SAMPLED)), forgot)
    for ours, theirs in zip(kept, forgot, strict=True):
        assert [s.token_ids.tolist() for _, s in ours.turns] == [s.token_ids.tolist() for _, s in theirs.turns]
    turns = [turn for one in kept for turn in one.turns]
    assert len(turns) == 12
    assert tiny.gap([request for request, _ in turns], [[sample] for _, sample in turns]) < PARITY


class Forgetful:
    """The stream, told that no request is gone on with."""

    def __init__(self, stream: ContinuousStream) -> None:
        self._stream = stream
        self.poll = stream.poll

    def add(self, key: int, request: Request, *, max_new_tokens: int, seed: int) -> None:
        self._stream.add(key, replace(request, may_go_on=False), max_new_tokens=max_new_tokens, seed=seed)

    @property
    def num_running(self) -> int:
        return self._stream.num_running


def test_a_later_turn_forwards_its_new_tokens_alone(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3_VL)
    (one,) = trajectories(tiny)[:1]
    widths = widths_of_forward_passes(tiny)
    play(TransformersEngine(tiny.policy, tiny.facts).stream(SAMPLED), [one])
    prefills = [tokens for _, tokens in widths if tokens > 1]
    first, *others = (len(request.token_ids) for request in one.shown)
    assert prefills == [first, *(1 + new for new in others)]  # the last token that was said is still to be forwarded


@pytest.mark.parametrize("room", [0, 300, 600])
def test_where_there_is_no_room_turns_are_forgotten_and_the_samples_stay(load_tiny, room: int) -> None:
    tiny = load_tiny(Family.QWEN3_VL)
    engine = TransformersEngine(tiny.policy, tiny.facts)
    expected, found = trajectories(tiny), trajectories(tiny)
    play(engine.stream(SAMPLED), expected)
    widths = widths_of_forward_passes(tiny)
    play(TransformersEngine(tiny.policy, tiny.facts, max_batch_tokens=room).stream(SAMPLED), found, room)
    for one, other in zip(found, expected, strict=True):
        for (_, ours), (_, theirs) in zip(one.turns, other.turns, strict=True):
            assert ours.token_ids.tolist() == theirs.token_ids.tolist()
            assert np.abs(ours.logprobs - theirs.logprobs).max() < PARITY
    whole = sum(len(request.token_ids) for one in found for request, _ in one.turns)
    read = sum(rows * tokens for rows, tokens in widths if tokens > 1)
    assert read >= whole if room == 0 else read < whole


@pytest.mark.parametrize("where", ["image", "said", "start"])
def test_a_request_that_goes_on_otherwise_is_read_from_where_it_differs(load_tiny, where: str) -> None:
    tiny = load_tiny(Family.QWEN3_VL)
    stream = TransformersEngine(tiny.policy, tiny.facts).stream(SAMPLED)
    first, other = tiny.request("Locate it.", [(64, 64)], n=1), tiny.request("Locate me.", [(64, 64)], n=1)
    stream.add(0, replace(first, may_go_on=True), max_new_tokens=6, seed=0)
    said = drain(stream)
    token_ids, images = np.concatenate([first.token_ids, said.token_ids, first.token_ids]), first.images * 2
    if where == "image":
        images = tiny.request("other noise", [(64, 64)], n=1).images + first.images
        assert images[0].key != first.images[0].key and images[0].grid_thw == first.images[0].grid_thw
    elif where == "said":
        token_ids[len(first.token_ids) + 2] = 5 if token_ids[len(first.token_ids) + 2] != 5 else 6
    else:
        token_ids = other.token_ids
        images = other.images
    request = Request(token_ids=token_ids, images=images)
    widths = widths_of_forward_passes(tiny)
    stream.add(0, request, max_new_tokens=8, seed=1)
    sample = drain(stream)
    assert tiny.gap([request], [[sample]]) < PARITY
    differs = {"image": list(token_ids).index(tiny.facts.image_token_id), "said": len(first.token_ids) + 2}
    same = differs.get(where) or int(np.flatnonzero(first.token_ids != other.token_ids)[0])
    assert widths[0] == (1, len(token_ids) - same)


def drain(stream: ContinuousStream) -> Sample:
    answers = []
    while stream.num_running:
        answers += stream.poll(0)
    (answer,) = answers
    return answer.sample


def test_the_oldest_turns_are_forgotten_first() -> None:
    pasts = KeptPasts()
    for key in range(4):
        pasts.put(key, Past(token_ids=np.zeros(10, np.int64), image_keys=(), keys=[], values=[]))
    pasts.put(0, Past(token_ids=np.zeros(20, np.int64), image_keys=(), keys=[], values=[]))  # it has gone on
    pasts.shrink(35)
    assert [pasts.take(key) is not None for key in range(4)] == [True, False, False, True]


def test_a_trajectory_that_is_over_is_forgotten(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3)
    stream = TransformersEngine(tiny.policy, tiny.facts).stream(SAMPLED)
    stream.add(7, replace(tiny.request("hi", n=1), may_go_on=True), max_new_tokens=4, seed=0)
    drain(stream)
    assert num_held(stream)[1] > 0
    stream.forget(7)
    assert num_held(stream)[1] == 0


def test_a_closed_stream_holds_nothing(load_tiny) -> None:
    tiny = load_tiny(Family.QWEN3)
    stream = TransformersEngine(tiny.policy, tiny.facts).stream(SAMPLED)
    stream.add(0, replace(tiny.request("hi", n=1), may_go_on=True), max_new_tokens=4, seed=0)
    drain(stream)
    assert stream._kept._pasts  # pyright: ignore[reportPrivateUsage]
    stream.close()
    assert not stream._kept._pasts  # pyright: ignore[reportPrivateUsage]
