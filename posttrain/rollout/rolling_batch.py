"""The loop of a batch of rollouts: samples go to environments, observations go back to the engine."""

import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from posttrain.data import RenderedPrompt, Renderer, TooLong, TooManyImages
from posttrain.environments.environment import Done, Observation, Opening
from posttrain.records import Example, Trajectory
from posttrain.rollout.earlier_thoughts import EarlierThoughts
from posttrain.rollout.engine import Capacity, Sample, Sampling, Stream
from posttrain.rollout.environment_failures import EnvironmentFailures
from posttrain.rollout.environment_jobs import Late, Outcome
from posttrain.rollout.environment_turns import BadAnswer, EpisodeEnvironment, shown_answer, shown_opening
from posttrain.rollout.environment_workers import EnvironmentWorkers
from posttrain.rollout.episode import Decode, Episode
from posttrain.rollout.rolling_records import Finished, Rolled, Running, TaskEnvironment

_POLL_S = 0.02
"""Seconds that a poll of an engine somewhere else may take before environments are looked at again."""


class RollingBatch:
    """Episodes of one batch, and who waits for whom: nobody for anybody else."""

    def __init__(
        self,
        *,
        stream: Stream,
        workers: EnvironmentWorkers,
        renderer: Renderer,
        decode: Decode,
        sampling: Sampling,
        group_size: int,
        finished: Finished,
        capacity: Capacity,
        thoughts: EarlierThoughts,
        repeatable: bool = False,
    ) -> None:
        self._stream, self._workers, self._renderer, self._decode = stream, workers, renderer, decode
        self._sampling, self._group_size, self._finished = sampling, group_size, finished
        self._thoughts, self._repeatable = thoughts, repeatable
        self._max_length = min(renderer.max_length, capacity.max_tokens or renderer.max_length)
        self._max_images = 1 << 30 if capacity.max_images is None else capacity.max_images
        self._runs: list[Running] = []
        self._members: list[list[Running]] = []
        self._too_long: dict[int, TooLong] = {}
        self._failures = EnvironmentFailures()
        self._asked: dict[int, list[Running]] = {}
        """Key of a request -> whom its samples belong to."""
        self._num_left = 0
        self._sampling_s = self._waiting_s = self._busy_s = 0.0

    def begin(self, example: Example, task: TaskEnvironment | None) -> None:
        """Takes in an example: its episodes start, or its prompt is asked."""
        place = len(self._members)
        self._members.append([])
        if task is None:
            try:
                prompt = self._renderer.render_prompt(example)
                self._check_fits(prompt, example)
            except TooLong as error:
                self._too_long[place] = error
                return
            group = [self._run(place, Episode(example, self._decode)) for _ in range(self._group_size)]
            for run in group:
                run.episode.begin(prompt)
            self._ask(group, seed=self._seed(place))
            return
        for _ in range(self._group_size):
            episode = Episode(
                example, self._decode, limits=task.limits, max_length=self._max_length, max_images=self._max_images
            )
            run = self._run(place, episode)
            run.task, run.environment = task, EpisodeEnvironment(task.make)
            self._work(
                run,
                partial(run.environment.start, example),
                partial(shown_opening, example=example, renderer=self._renderer),
            )

    def run(self) -> Rolled:
        """Until every trajectory has ended."""
        while self._num_left:
            began = time.perf_counter()
            outcomes = self._outcomes()
            self._waiting_s += time.perf_counter() - began
            for outcome in outcomes:
                self._answered(self._runs[outcome.key], outcome)
            if self._stream.num_running:
                began = time.perf_counter()
                answers = self._stream.poll(_POLL_S)
                self._sampling_s += time.perf_counter() - began
                for answer in answers:
                    self._said(self._asked[answer.key][answer.index], answer.sample)
        return Rolled(
            groups=[self._group(place) for place in range(len(self._members))],
            too_long=list(self._too_long.values()),
            sampling_s=self._sampling_s,
            environment_s=self._waiting_s,
            environment_busy_s=self._busy_s,
        )

    def _outcomes(self) -> list[Outcome]:
        """Of environments that have answered; waits where nothing is left to sample."""
        if not self._repeatable:
            return self._workers.ready(0.0 if self._stream.num_running else 1.0)
        outcomes: list[Outcome] = []
        while self._workers.num_pending:
            outcomes += self._workers.ready(1.0)
        return sorted(outcomes, key=lambda outcome: outcome.key)

    def leave(self) -> None:
        """Drops what is still under way, in a batch that failed, and says which environments did."""
        self._stream.close()
        for key in self._workers.abandon_all():
            self._runs[key].environment = None  # the workers close it, once nobody is in it
        for run in self._runs:
            self._close(run)
        self._failures.log(sum(run.task is not None for run in self._runs))

    def _run(self, place: int, episode: Episode) -> Running:
        run = Running(key=len(self._runs), place=place, episode=episode)
        self._runs.append(run)
        self._members[place].append(run)
        self._num_left += 1
        return run

    def _ask(self, runs: list[Running], *, seed: int) -> None:
        key = runs[0].key
        self._asked[key] = runs
        request = runs[0].episode.request(n=len(runs))
        self._stream.add(key, request, max_new_tokens=self._sampling.max_new_tokens, seed=seed)

    def _seed(self, *numbers: int) -> int:
        entropy = (self._sampling.seed % (1 << 64), *numbers)
        return int(np.random.SeedSequence(entropy).generate_state(1, np.uint64)[0] >> 1)

    def _said(self, run: Running, sample: Sample) -> None:
        text = run.episode.said(sample)
        if text is None:
            self._ended(run)
            return
        assert run.environment is not None
        num_images, example = run.episode.num_images_left, run.episode.example
        self._work(
            run,
            partial(run.environment.step, text),
            partial(shown_answer, num_images=num_images, example=example, renderer=self._renderer),
        )

    def _work(self, run: Running, ask: Callable[[], Any], show: Callable[[Any], Any]) -> None:
        assert run.task is not None and run.environment is not None
        self._workers.submit(run.key, ask, then=show, timeout_s=run.task.timeout_s, if_abandoned=run.environment.close)

    def _answered(self, run: Running, outcome: Outcome) -> None:
        self._busy_s += outcome.seconds
        episode = run.episode
        match outcome.error:
            case None:
                try:
                    self._take(run, outcome)
                except TooLong as error:
                    self._leave_out(run, error)
            case TooLong() as error:
                self._leave_out(run, error)
            case Late() | BadAnswer() as error:
                if isinstance(error, Late):
                    run.environment = None  # the thread that is still in it closes it
                self._failed(run, error, str(error))
            case error:
                self._failed(run, error, f"failed: {type(error).__name__}: {error}")
        if episode.has_ended:
            self._ended(run)
        else:
            number = run.key - self._members[run.place][0].key
            self._ask([run], seed=self._seed(run.place, number, episode.num_turns))

    def _failed(self, run: Running, error: BaseException, how: str) -> None:
        run.episode.failed(f"the environment {how}")
        self._failures.add(error)

    def _leave_out(self, run: Running, error: TooLong) -> None:
        self._too_long[run.place] = error
        run.episode.failed(str(error))

    def _check_fits(self, prompt: RenderedPrompt, example: Example) -> None:
        """Raises TooLong for a prompt that the engine cannot read; the renderer's own limit has been kept."""
        if len(prompt.token_ids) > self._max_length:
            raise TooLong(example.id, len(prompt.token_ids), self._max_length)
        if len(prompt.images) > self._max_images:
            raise TooManyImages(example.id, len(prompt.images), self._max_images)

    def _take(self, run: Running, outcome: Outcome) -> None:
        episode = run.episode
        match outcome.value:
            case Opening() as opening, RenderedPrompt() as prompt:
                self._check_fits(prompt, episode.example)
                episode.begin(prompt, opening)
            case Done() as verdict, score:
                episode.done(verdict, outcome.seconds, score)
            case Observation() as observation, shown:
                self._thoughts.look_at(episode.last_text, observation, episode.example.task)
                episode.observed(observation, shown, outcome.seconds)

    def _ended(self, run: Running) -> None:
        self._close(run)
        self._stream.forget(run.key)
        run.trajectory = run.episode.trajectory()
        self._num_left -= 1
        members = self._members[run.place]
        if all(member.trajectory is not None for member in members) and run.place not in self._too_long:
            self._finished(run.place, self._group(run.place))

    def _close(self, run: Running) -> None:
        if run.environment is not None:
            self._workers.aside(run.environment.close)
            run.environment = None

    def _group(self, place: int) -> list[Trajectory]:
        if place in self._too_long:
            return []
        return [run.trajectory for run in self._members[place] if run.trajectory is not None]
