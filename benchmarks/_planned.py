"""Episodes whose turns are planned: what is said in each, how long its tools take, and an engine that says it.

An untrained policy calls no tools. So the engine samples as many tokens as the planned turn has, kept from ending it,
and then hands over the planned turn in their place, which holds a call that names its own latency.
"""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from _problem import Subject
from posttrain.model import ModelFacts
from torch import nn

from posttrain.rollout.engine import Answer, Request, Sample, Sampling, Stream
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.rollout.vllm_engine import VllmEngine

EPISODES = 16
MAX_CALLS = 3
MAX_LATENCY_MS = 500
MEDIAN_TOKENS, SPREAD, MOST_TOKENS = 40, 0.5, 144
"""Of a turn: log-normal."""
WORDS = "The glyph beside the red square is too small to be read from here, so I look once more. " * 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is said in the episodes of a run, and how long their tools take."""

    said: Sequence[Sequence[np.ndarray]]
    """[episodes][turns] token ids, the end-of-turn token included."""
    latencies_ms: Sequence[Sequence[int]]
    """[episodes][calls]"""

    @classmethod
    def draw(cls, subject: Subject, seed: int) -> "Plan":
        draw, tokenizer = random.Random(seed), subject.processor.tokenizer  # pyright: ignore
        end_id, words = subject.facts.eos_token_ids[0], tokenizer.encode(WORDS)

        def turn(text: str) -> np.ndarray:
            said = tokenizer.encode(text)
            length = round(draw.lognormvariate(np.log(MEDIAN_TOKENS), SPREAD))
            num_words = max(0, min(length, MOST_TOKENS) - len(said) - 1)
            return np.array([*words[:num_words], *said, end_id], dtype=np.int64)

        latencies_ms = [
            [draw.randint(0, MAX_LATENCY_MS) for _ in range(draw.randint(1, MAX_CALLS))] for _ in range(EPISODES)
        ]
        return cls(
            said=[[*(turn(call(ms)) for ms in row), turn("7")] for row in latencies_ms], latencies_ms=latencies_ms
        )

    @property
    def num_tokens(self) -> int:
        return sum(len(turn) for turns in self.said for turn in turns)


def call(ms: int) -> str:
    return f"<tool_call>\n{json.dumps({'name': 'look', 'arguments': {'ms': ms}})}\n</tool_call>"


class PlannedEngine:
    """Samples from an engine as many tokens as a turn has in the plan, and hands over the planned ones."""

    def __init__(self, sampled: VllmEngine | TransformersEngine) -> None:
        self.sampled = sampled
        self.prompts: Sequence[np.ndarray] = ()
        """Of each episode; no two are alike."""

    def begin(self, plan: Plan) -> None:
        self.plan = plan
        self.num_turns = [0] * EPISODES
        self.num_read = self.num_sampled = 0

    def episode_of(self, token_ids: np.ndarray) -> int:
        return next(i for i, prompt in enumerate(self.prompts) if np.array_equal(token_ids[: len(prompt)], prompt))

    def next_turn(self, token_ids: np.ndarray) -> np.ndarray:
        """What is said to a prompt."""
        episode = self.episode_of(token_ids)
        said = self.plan.said[episode][self.num_turns[episode]]
        self.num_turns[episode] += 1
        self.num_read += len(token_ids)
        return said

    def stream(self, sampling: Sampling) -> "PlannedStream":
        return PlannedStream(self, self.sampled.stream(sampling))

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample]]:
        """One answer to each."""
        stream = self.stream(sampling)
        for place, request in enumerate(requests):
            stream.add(place, request, max_new_tokens=sampling.max_new_tokens, seed=place)
        samples: dict[int, Sample] = {}
        while stream.num_running:
            samples |= {answer.key: answer.sample for answer in stream.poll(1.0)}
        return [[samples[place]] for place in range(len(requests))]

    def update_weights(self, policy: nn.Module, version: int) -> None: ...

    def rest(self) -> None: ...

    def close(self) -> None: ...


class PlannedStream:
    def __init__(self, engine: PlannedEngine, stream: Stream) -> None:
        self._engine, self._stream = engine, stream
        self._said: dict[int, np.ndarray] = {}

    def add(self, key: int, request: Request, *, max_new_tokens: int, seed: int) -> None:
        self._said[key] = self._engine.next_turn(request.token_ids)
        self._stream.add(key, request, max_new_tokens=len(self._said[key]), seed=seed)

    def forget(self, key: int) -> None:
        self._stream.forget(key)

    def poll(self, timeout_s: float) -> list[Answer]:
        return [replace(a, sample=self._planned(a)) for a in self._stream.poll(timeout_s)]

    def _planned(self, answer: Answer) -> Sample:
        said, sample = self._said[answer.key], answer.sample
        assert len(sample.token_ids) == len(said), f"sampled {len(sample.token_ids)} tokens, planned {len(said)}"
        self._engine.num_sampled += len(said)
        return replace(sample, token_ids=said, stop="end")

    @property
    def num_running(self) -> int:
        return self._stream.num_running

    def close(self) -> None:
        self._stream.close()


class EndlessFacts(ModelFacts):
    """Facts by which engines sample no end of a turn either: its limit ends it."""

    @property
    def banned_token_ids(self) -> tuple[int, ...]:
        return (*super().banned_token_ids, *self.eos_token_ids, self.pad_token_id)
