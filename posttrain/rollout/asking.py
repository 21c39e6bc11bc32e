"""Prompts that are rendered already, asked all at once for one turn each."""

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from posttrain.data import RenderedPrompt
from posttrain.records import Example, Trajectory
from posttrain.rollout.engine import Engine, Request, Sample, Sampling
from posttrain.rollout.episode import Decode, Episode


def ask(
    prompts: Sequence[tuple[Example, RenderedPrompt]],
    engine: Engine,
    sampling: Sampling,
    *,
    group_size: int,
    decode: Decode,
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[Trajectory]:
    """`group_size` unscored trajectories of every prompt, in the order of the prompts."""
    requests = [Request(token_ids=p.token_ids, images=p.images, pictures=p.pictures, n=group_size) for _, p in prompts]
    with autocast():
        answers = engine.generate(requests, sampling) if requests else []
    return [
        _trajectory(example, prompt, sample, decode)
        for (example, prompt), samples in zip(prompts, answers, strict=True)
        for sample in samples
    ]


def _trajectory(example: Example, prompt: RenderedPrompt, sample: Sample, decode: Decode) -> Trajectory:
    episode = Episode(example, decode)
    episode.begin(prompt)
    episode.said(sample)
    return episode.trajectory()
