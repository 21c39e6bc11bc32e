"""Sixteen episodes with slow tools: nobody waits for anybody else's, against TRL's own loop and lock step.

An episode has an image and one to three tool calls, each of which takes 0 to 0.5 s. Four schedules play the same plan on
the same engine, in turns: ours (`Rollouts`); TRL's `GRPOTrainer._generate` with its `_tool_call_loop`, with a plain tool
and with an `async def` one; and lock step with gathered tools: all generate, all tools of that turn run at once, and
then all who go on generate. An untrained policy calls no tools, so what is said is taken from the plan: the engine
really samples as many tokens as the planned turn has (log-normal, about 40; it is kept from ending a turn), and the
planned tokens are handed over in their place, which hold a call that names its own latency. Everything else is each
side's own: rendering, parsing, running the tools, joining tokens. In TRL only `_generate_single_turn` is replaced, by
the same engine; where a turn of TRL and of lock step asks for answers of different lengths, that is asked by a stream
which is read until all are there, as the engines' own `generate` does. Every run is checked: tokens sampled, tokens
read, calls and seconds slept must be the plan's. float32; the quick-start's tiny Qwen3-VL.
"""

import asyncio
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import _trl
import numpy as np
from _harness import arguments, finish, interleave, settle, show
from _problem import Draw, Subject, load_subject
from PIL import Image
from posttrain.model import PackedPolicy
from posttrain.model.tiny import TinySize

from posttrain.data import RenderedPrompt, Renderer
from posttrain.environments.tool_environment import ToolEnvironment
from posttrain.environments.tools import tool_from_function
from posttrain.records import Example, Status
from posttrain.rollout.engine import Answer, Request, Sample, Sampling, Stream
from posttrain.rollout.environment_turns import opened, stepped
from posttrain.rollout.episode import Episode, Limits
from posttrain.rollout.rolling import Rollouts
from posttrain.rollout.rolling_batch import TaskEnvironment
from posttrain.rollout.transformers_engine import TransformersEngine
from posttrain.rollout.vllm_engine import VllmEngine

EPISODES = 16
MAX_CALLS = 3
MAX_LATENCY_MS = 500
MEDIAN_TOKENS, SPREAD, MOST_TOKENS = 40, 0.5, 144
MAX_LENGTH = 2048
SIDE = 64
"""Pixels of an episode's image; 16 tokens."""
PLANS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is said in all episodes of a run."""

    said: Sequence[Sequence[np.ndarray]]
    """[episodes][turns] token ids, the end of the turn included."""
    latencies_ms: Sequence[Sequence[int]]
    """[episodes][calls]"""

    @classmethod
    def draw(cls, subject: Subject, seed: int) -> "Plan":
        draw, tokenizer = Draw(subject.facts, seed), subject.tokenizer
        said, latencies_ms = [], []
        for _ in range(EPISODES):
            latencies_ms.append([draw.random.randint(0, MAX_LATENCY_MS) for _ in range(draw.random.randint(1, MAX_CALLS))])
            ends = [*(_written_call(ms) for ms in latencies_ms[-1]), "7"]
            said.append([_turn(tokenizer.encode(end), draw) for end in ends])
        return cls(said=said, latencies_ms=latencies_ms)

    @property
    def num_calls(self) -> int:
        return sum(len(calls) for calls in self.latencies_ms)

    @property
    def num_tokens(self) -> int:
        return sum(len(turn) for turns in self.said for turn in turns)

    @property
    def seconds(self) -> list[float]:
        """Of each episode's tools."""
        return [sum(calls) / 1000 for calls in self.latencies_ms]


def _written_call(ms: int) -> str:
    return f"<tool_call>\n{json.dumps({'name': 'look', 'arguments': {'ms': ms}})}\n</tool_call>"


def _turn(end: Sequence[int], draw: Draw) -> np.ndarray:
    """Random words, `end`, and the end-of-turn token: of a log-normal length, or as long as these need."""
    length = draw.length(MEDIAN_TOKENS, SPREAD, len(end) + 1, MOST_TOKENS)
    words = draw.text(length - len(end) - 1)
    return np.array([*words, *end, draw.facts.eos_token_ids[0]], dtype=np.int64)
