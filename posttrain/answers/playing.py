"""A scripted solver as a source of answers: it plays each example in its environment, message by message."""

import asyncio
import hashlib
import inspect
import random
from collections.abc import Awaitable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeVar

import numpy as np

from posttrain.answers.solvers import Solver
from posttrain.environments import Done, Environment, parse_reply
from posttrain.errors import DataError, TeacherError
from posttrain.records import Example, Status, Trajectory, Turn
from posttrain.rollout.engine import Sampling
from posttrain.rollout.rolling_batch import TaskEnvironment
from posttrain.teachers.answer import Answer

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class SolverAnswers:
    """Answers of a program. It is asked in turn, with a generator that depends on the example and the seed alone."""

    name: str
    identity: str
    solver: Solver
    environments: Mapping[str, TaskEnvironment]

    def answer(
        self, examples: Sequence[Example], *, n: int, sampling: Sampling, thinking: bool | None
    ) -> list[list[Answer]]:
        """As an `AnswerSource`; `thinking` and all of the sampling but its seed mean nothing to a program.

        Raises DataError for an example of a task without an environment, and where the solver cannot use the row.
        """
        return [[self._play(example, number, sampling.seed) for number in range(n)] for example in examples]

    def _play(self, example: Example, number: int, seed: int) -> Answer:
        task = self.environments.get(example.task) or self.environments.get("default")
        if task is None:
            raise DataError(
                f"{example.id} is of task '{example.task}', which has no environment for solver '{self.name}' to play "
                "in; add it to the recipe's 'environments'"
            )
        digest = hashlib.blake2b(f"{seed}/{example.id}/{number}".encode(), digest_size=8).digest()
        draw = random.Random(int.from_bytes(digest, "big"))
        environment = task.make()
        try:
            episode = self._episode(example, environment, draw, task.limits.max_turns)
        finally:
            _given(environment.close())
        return Answer(text=episode.text, finished=episode.status is Status.FINISHED, episode=episode)

    def _episode(self, example: Example, environment: Environment, draw: random.Random, max_turns: int) -> Trajectory:
        opening = _given(environment.start(example))
        turns: list[Turn] = []
        status = Status.TRUNCATED
        while len(turns) < max_turns:
            text = self.solver(example, turns, draw)
            if not isinstance(text, str):
                raise TeacherError(f"solver '{self.name}' returned {type(text).__name__} for {example.id}, wanted text")
            turn = Turn(start=0, end=0, text=text)
            answer = _given(environment.step(parse_reply(text)))
            turns.append(replace(turn, calls=answer.calls))
            if isinstance(answer, Done):
                status = Status.FINISHED
                break
            turns[-1] = replace(turns[-1], observation=answer.messages, images=answer.images)
        return Trajectory(
            example=example,
            token_ids=np.zeros(0, dtype=np.int64),
            mask=np.zeros(0, dtype=np.bool_),
            logprobs=np.zeros(0, dtype=np.float32),
            prompt_length=0,
            text="".join(turn.text for turn in turns),
            status=status,
            turns=tuple(turns),
            opening=opening.messages,
            opening_images=opening.images,
            tools=opening.tools,
        )


def _given(value: "T | Awaitable[T]") -> T:
    """The value itself, or what the coroutine returns."""
    if not inspect.isawaitable(value):
        return value

    async def wait() -> Any:
        return await value

    return asyncio.run(wait())
