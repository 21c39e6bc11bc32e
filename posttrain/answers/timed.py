"""An environment that has so long for each answer, and whose failures break its own episode alone."""

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from posttrain.environments import Done, Environment, Observation, Opening, Reply, ScoringEnvironment
from posttrain.environments.deadlines import TimeUp, run_within
from posttrain.errors import DataError
from posttrain.records import Example
from posttrain.rollout.rolling_batch import TaskEnvironment

_log = logging.getLogger(__name__)


class EpisodeBroken(Exception):
    """An episode cannot go on; the text says why."""


@contextmanager
def timed(task: TaskEnvironment) -> Iterator["TimedEnvironment"]:
    """A new environment of a task, closed in the end where it was started.

    Raises EpisodeBroken where it cannot be made.
    """
    environment = TimedEnvironment(_within(task.timeout_s, task.make), task.timeout_s)
    try:
        yield environment
    finally:
        environment.close()


class TimedEnvironment:
    """Asks an environment's methods, plain ones and coroutines, the latter in one event loop: what `start` has made
    there lives on in `step`. Each raises EpisodeBroken where the environment raises, answers what is no answer, or does
    not answer within `seconds`.
    """

    def __init__(self, environment: Environment, seconds: float) -> None:
        self._environment, self._seconds = environment, seconds
        self._is_free = threading.Event()
        """Cleared while a method is at work; one that overran its time may be so for long."""
        self._is_free.set()
        self._has_started = False

    def validate(self, example: Example) -> None:
        """Raises DataError, too, where the environment does: for a row with which no episode can start."""
        problem = self._asked(lambda: _problem(self._environment, example))
        if problem is not None:
            raise problem

    def start(self, example: Example) -> Opening:
        self._has_started = True
        opening = self._asked(lambda: self._environment.start(example))
        if not isinstance(opening, Opening):
            raise EpisodeBroken(f"the environment opened with {type(opening).__name__}, wanted an Opening")
        return opening

    def step(self, reply: Reply) -> Observation | Done:
        answer = self._asked(lambda: self._environment.step(reply))
        if not isinstance(answer, Observation | Done):
            raise EpisodeBroken(f"the environment answered {type(answer).__name__}, wanted an Observation or Done")
        return answer

    def score(self) -> float | None:
        """None for an environment that does not judge."""
        return self._asked(self._environment.score) if isinstance(self._environment, ScoringEnvironment) else None

    def close(self) -> None:
        """Waits for it, but not where the environment is still at work: then it is closed when it comes back. One that
        was never started has nothing to close."""
        if not self._has_started:
            return
        if self._is_free.is_set():
            self._close()
        else:
            threading.Thread(target=self._close, name="posttrain-environment-close", daemon=True).start()

    def _close(self) -> None:
        self._is_free.wait()
        try:
            run_within(self._seconds, self._environment.close, lambda _: None)
        except (Exception, SystemExit) as error:  # the episode is over
            _log.warning("an environment failed to close: %s: %s", type(error).__name__, error)

    def _asked(self, work: Callable[[], Any]) -> Any:
        def freeing() -> Any:
            try:
                return work()
            finally:
                self._is_free.set()

        self._is_free.clear()
        return _within(self._seconds, freeing)


def _problem(environment: Environment, example: Example) -> DataError | None:
    try:
        environment.validate(example)
    except DataError as error:
        return error
    return None


def _within(seconds: float, work: Callable[[], Any]) -> Any:
    try:
        return run_within(seconds, work, lambda value: value)
    except TimeUp as error:
        raise EpisodeBroken(f"the environment gave {error}") from error
    except (Exception, SystemExit) as error:  # whatever a user's environment raises belongs to its own episode
        raise EpisodeBroken(f"the environment failed: {type(error).__name__}: {error}") from error
