"""An engine that says what it is told, and environments that answer what they are told: for tests of the loop."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from posttrain.rewards import ToolCall

from posttrain.environments.environment import Done, Observation, Opening, Reply
from posttrain.records import Example
from posttrain.rollout.engine import Answer, Capacity, Request, Sample, Sampling
from tests.waiting import comes_true


@dataclass
class ScriptedStreams:
    """Says the next text of a trajectory's script each time; the script is chosen by the example's text in the prompt.

    Token log-probabilities are -1, -2, ... within a turn. `order` notes when what was asked.
    """

    tokenizer: Any
    scripts: dict[str, Sequence[str]]
    """A part of the prompt -> what is said turn by turn; one that ends in "..." is cut off."""
    seconds: float = 0.0
    """Of one poll."""
    dies_after: int | None = None
    """Polls."""
    requests: list[Request] = field(default_factory=list)
    seeds: list[int] = field(default_factory=list)
    version: int = 7
    _running: list[tuple[int, Request]] = field(default_factory=list)
    num_polls: int = 0
    is_closed: bool = False
    forgotten: list[int] = field(default_factory=list)
    capacity: Capacity = field(default_factory=Capacity)

    def stream(self, sampling: Sampling) -> "ScriptedStreams":
        self._running, self.is_closed = [], False
        return self

    @property
    def num_running(self) -> int:
        return sum(request.n for _, request in self._running)

    def add(self, key: int, request: Request, *, max_new_tokens: int, seed: int) -> None:
        self.requests.append(request)
        self.seeds.append(seed)
        self._running.append((key, request))

    def forget(self, key: int) -> None:
        self.forgotten.append(key)

    def poll(self, timeout_s: float) -> list[Answer]:
        self.num_polls += 1
        time.sleep(self.seconds)
        if self.dies_after is not None and self.num_polls > self.dies_after:
            from posttrain.errors import EngineError

            raise EngineError("the engine died")
        running, self._running = self._running, []
        return [
            Answer(key=key, index=index, sample=self._sample(request))
            for key, request in running
            for index in range(request.n)
        ]

    def _sample(self, request: Request) -> Sample:
        text = self.tokenizer.decode(request.token_ids.tolist(), skip_special_tokens=False)
        script = next(said for mark, said in self.scripts.items() if mark in text)
        turn = text.count("<|im_start|>assistant") - 1
        said = script[min(turn, len(script) - 1)]
        ended = not said.endswith("...")
        ids = self.tokenizer.encode(said, add_special_tokens=False)
        ids += self.tokenizer.encode("<|im_end|>", add_special_tokens=False) if ended else []
        return Sample(
            token_ids=np.array(ids, dtype=np.int64),
            logprobs=-np.arange(1, len(ids) + 1, dtype=np.float32),
            stop="end" if ended else "length",
            weights_version=self.version,
        )

    def close(self) -> None:
        self.is_closed = True

    def update_weights(self, policy: Any, version: int) -> None:
        self.version = version

    def rest(self) -> None: ...


@dataclass
class ScriptedEnvironment:
    """Answers each call with the next of its answers; a reply without a call ends the episode."""

    answers: Sequence[Any] = ()
    """Texts, images, exceptions, or functions of the reply."""
    seconds: float = 0.0
    """A step takes at least so long,"""
    until: Callable[[], bool] = lambda: True
    """and until this holds."""
    opening: Callable[[Example], Opening] | None = None
    log: list[str] = field(default_factory=list)
    num_steps: int = 0

    def validate(self, example: Example) -> None: ...

    def start(self, example: Example) -> Opening:
        self.log.append("start")
        if self.opening is not None:
            return self.opening(example)
        says_the_answer = example.messages[-1]["role"] == "assistant"
        asked = example.messages[:-1] if says_the_answer else example.messages
        return Opening(messages=asked, images=example.images)

    def step(self, reply: Reply) -> Any:
        time.sleep(self.seconds)
        assert comes_true(self.until)
        return self._answer(reply)

    def _answer(self, reply: Reply) -> Any:
        self.log.append(reply.text)
        if not reply.calls:
            return Done()
        answer = self.answers[min(self.num_steps, len(self.answers) - 1)]
        self.num_steps += 1
        if isinstance(answer, Exception):
            raise answer
        call = ToolCall(name=reply.calls[0].name, arguments=reply.calls[0].arguments, text=str(answer))
        if isinstance(answer, Image.Image):
            message = {"role": "tool", "content": [{"type": "image"}]}
            return Observation(messages=(message,), images=(answer,), calls=(call,))
        if callable(answer):
            return answer(reply)
        return Observation(messages=({"role": "tool", "content": answer},), calls=(call,))

    def close(self) -> None:
        self.log.append("close")


class AsyncEnvironment(ScriptedEnvironment):
    """The same, in coroutines."""

    async def start(self, example: Example) -> Opening:  # type: ignore[override]
        return super().start(example)

    async def step(self, reply: Reply) -> Any:  # type: ignore[override]
        await asyncio.sleep(self.seconds)
        while not self.until():
            await asyncio.sleep(0.01)
        return self._answer(reply)


def call(**arguments: Any) -> str:
    import json

    return f"<tool_call>\n{json.dumps({'name': 'look', 'arguments': arguments})}\n</tool_call>"
