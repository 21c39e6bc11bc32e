"""A scripted solver as a source of answers: it plays each example in its environment, message by message."""

import hashlib
import logging
import random
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from posttrain.answers.solvers import Solver
from posttrain.answers.timed import EpisodeBroken, TimedEnvironment, timed
from posttrain.data import RenderedPrompt
from posttrain.environments import Done, Observation, parse_reply
from posttrain.errors import DataError, PosttrainError, TeacherError
from posttrain.records import Example, Status, Turn
from posttrain.rollout.engine import Sample, Sampling
from posttrain.rollout.episode import Episode
from posttrain.rollout.rolling_batch import TaskEnvironment
from posttrain.teachers.answer import Answer

_log = logging.getLogger(__name__)


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

        Raises DataError for an example of a task without an environment, TeacherError where the solver returns no text.
        Whatever else goes wrong ends that episode, with Status.ERROR, and is logged: a row that the solver or the
        environment cannot use, too, so that one bad row does not cost the others.
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
        said: list[str] = []
        episode = Episode(example, lambda _: said[-1], limits=task.limits)  # a program says texts, not tokens
        try:
            with timed(task) as environment:
                environment.validate(example)
                opening = environment.start(example)
                episode.begin(_shown(opening.images), opening)
                while not episode.has_ended:
                    said.append(self._turn(example, episode.trajectory().turns, draw))
                    episode.said(_SAID)
                    _step(episode, environment, said[-1])
        except (EpisodeBroken, DataError) as error:  # a DataError is the row's fault: the others are played
            episode.failed(str(error))
            if number == 0:
                _log.warning("%s broke down: %s", example.id, str(error).removeprefix(f"{example.id}: "))
        played = episode.trajectory()
        return Answer(text=played.text, finished=played.status is Status.FINISHED, episode=played)

    def _turn(self, example: Example, turns: Sequence[Turn], draw: random.Random) -> str:
        try:
            text = self.solver(example, turns, draw)
        except PosttrainError:
            raise
        except Exception as error:  # one row that a user's program did not think of
            raise EpisodeBroken(f"the solver failed: {type(error).__name__}: {error}") from error
        if not isinstance(text, str):
            raise TeacherError(f"solver '{self.name}' returned {type(text).__name__} for {example.id}, wanted text")
        return text


def _step(episode: Episode, environment: TimedEnvironment, text: str) -> None:
    began = time.perf_counter()
    answer = environment.step(parse_reply(text))
    seconds = time.perf_counter() - began
    match answer:
        case Done():
            episode.done(answer, seconds, environment.score())
        case Observation():
            num_shown = sum(len(turn.images) for turn in episode.trajectory().turns)
            fits = num_shown + len(answer.images) <= episode.limits.max_images
            episode.observed(answer, _shown(answer.images) if fits else None, seconds)


_NOTHING = np.zeros(0, dtype=np.int64)
_SAID = Sample(token_ids=_NOTHING, logprobs=np.zeros(0, dtype=np.float32), stop="end", weights_version=0)


def _shown(images: tuple[Image.Image, ...]) -> RenderedPrompt:
    return RenderedPrompt(token_ids=_NOTHING, images=(), pictures=images)
