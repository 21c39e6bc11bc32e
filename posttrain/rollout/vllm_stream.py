"""Requests that join a vLLM engine in this process while it answers others, and their samples one by one."""

import random
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from typing import Any

import numpy as np
import torch

from posttrain.errors import EngineError
from posttrain.model import ModelFacts
from posttrain.rollout.engine import Answer, Request, Sample, Sampling
from posttrain.rollout.vllm_prompts import (
    check_count,
    check_said,
    checked_prompt,
    full_logprobs,
    sampling_settings,
    vllm_seed,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Asked:
    """A sample that vLLM is at."""

    stream: "VllmStream"
    key: int
    indices: range
    """The samples of the request that this one stands for: several where all are the same."""


class RunningRequests:
    """All that one vLLM engine is asked at present, each sample a request of its own, and whose it is."""

    def __init__(self, vllm: Any, llm: Any, facts: ModelFacts, max_model_len: int) -> None:
        """vllm: the module. llm: its LLM, whose engine runs in this process."""
        self._vllm, self._engine = vllm, llm.llm_engine
        self._facts, self._max_model_len = facts, max_model_len
        self._asked: dict[str, _Asked] = {}
        self._ids = (f"posttrain-{number}" for number in count())
        self.weights_version = 0

    def __len__(self) -> int:
        return len(self._asked)

    def add(
        self, stream: "VllmStream", key: int, request: Request, sampling: Sampling, max_tokens: int, seed: int
    ) -> None:
        """Asks for every sample of the request; images are prepared once for all of them."""
        prompt: dict[str, Any] = {"prompt_token_ids": checked_prompt(request, self._facts, self._max_model_len)}
        if request.pictures:
            prompt["multi_modal_data"] = {"image": list(request.pictures)}
        # Greedy samples of one prompt are all the same.
        parts = [range(request.n)] if sampling.temperature == 0 else [range(i, i + 1) for i in range(request.n)]
        with side_effects_undone(), failures_named("vLLM cannot take a prompt"):
            (rendered,) = self._engine.renderer.render_cmpl([prompt])
            check_count(len(rendered["prompt_token_ids"]), request)
            for indices in parts:
                settings = sampling_settings(
                    self._facts, sampling, max_new_tokens=max_tokens, seed=seed + indices.start
                )
                params = self._vllm.SamplingParams(
                    **settings, flat_logprobs=True, output_kind=self._vllm.sampling_params.RequestOutputKind.FINAL_ONLY
                )
                name = next(self._ids)
                self._engine.add_request(name, rendered, params)
                self._asked[name] = _Asked(stream=stream, key=key, indices=indices)

    def step(self) -> None:
        """One token for every sample, or one round of reading prompts; what has ended goes to its stream."""
        for output in self._engine.step():
            asked = self._asked.get(output.request_id)
            if asked is None or not output.finished:
                continue
            del self._asked[output.request_id]
            (said,) = output.outputs
            sample = self._sample(said, asked.stream.sampling)
            asked.stream.ended.extend(Answer(key=asked.key, index=index, sample=sample) for index in asked.indices)

    def drop(self, stream: "VllmStream") -> None:
        names = [name for name, asked in self._asked.items() if asked.stream is stream]
        for name in names:
            del self._asked[name]
        with failures_named("vLLM did not drop its requests"):
            self._engine.abort_request(names)

    def num_running(self, stream: "VllmStream") -> int:
        return sum(len(asked.indices) for asked in self._asked.values() if asked.stream is stream)

    def _sample(self, said: Any, sampling: Sampling) -> Sample:
        if said.finish_reason not in ("stop", "length"):
            raise EngineError(f"vLLM gave up on a sample: {said.finish_reason}")
        token_ids = np.array(said.token_ids, dtype=np.int64)
        check_said(token_ids, self._facts)
        # For each token: the sampled one first, then the banned ones.
        table = np.array(said.logprobs.logprobs).reshape(len(token_ids), -1)
        return Sample(
            token_ids=token_ids,
            logprobs=full_logprobs(table[:, 0], table[:, 1:], sampling.temperature or 1.0),
            stop="end" if said.finish_reason == "stop" else "length",
            weights_version=self.weights_version,
        )


class VllmStream:
    """A `Stream` on vLLM in this process; several may be open. Made by `VllmEngine.stream`."""

    def __init__(self, running: RunningRequests, sampling: Sampling) -> None:
        self.sampling = sampling
        self.ended: list[Answer] = []
        """Ended, and not yet given out; filled by whichever stream steps the engine."""
        self._running = running

    def add(self, key: int, request: Request, *, max_new_tokens: int, seed: int) -> None:
        self._running.add(self, key, request, self.sampling, max_new_tokens, vllm_seed(seed))

    def forget(self, key: int) -> None:
        """vLLM's prefix cache keeps what is used."""

    def poll(self, timeout_s: float) -> list[Answer]:
        """Steps vLLM until a sample ends, or `timeout_s` is over; once at least."""
        until = time.monotonic() + timeout_s
        with side_effects_undone(), failures_named("vLLM failed while generating"):
            while not self.ended and self._running.num_running(self):
                self._running.step()
                if time.monotonic() >= until:
                    break
        ended, self.ended = self.ended, []
        return ended

    @property
    def num_running(self) -> int:
        return self._running.num_running(self) + len(self.ended)

    def close(self) -> None:
        self.ended = []
        self._running.drop(self)


@contextmanager
def failures_named(what: str) -> Iterator[None]:
    """vLLM's failures have no common class: whatever stops it here stops the engine."""
    try:
        yield
    except EngineError:
        raise
    except Exception as error:
        first_line = str(error).strip().partition("\n")[0]
        raise EngineError(f"{what}: {type(error).__name__}: {first_line}") from error


@contextmanager
def side_effects_undone() -> Iterator[None]:
    """vLLM seeds and draws from the global generators, and on a CPU replaces `torch.set_num_threads` by a warning."""
    python, numpy, set_num_threads = random.getstate(), np.random.get_state(), torch.set_num_threads
    with torch.random.fork_rng([torch.cuda.current_device()] if torch.cuda.is_available() else []):
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(numpy)
            torch.set_num_threads = set_num_threads
