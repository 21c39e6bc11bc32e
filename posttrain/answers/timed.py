"""An environment that has so long for each answer, and whose failures break its own episode alone."""

import logging
import threading
from collections.abc import Callable
from typing import Any

from posttrain.environments import Done, Environment, Observation, Opening, Reply, ScoringEnvironment
from posttrain.environments.deadlines import TimeUp, run_within
from posttrain.records import Example

_log = logging.getLogger(__name__)


class EpisodeBroken(Exception):
    """An episode cannot go on; the text says why."""


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

    def start(self, example: Example) -> Opening:
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
        """Waits for it, but not where the environment is still at work: then it is closed when it comes back."""
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
        try:
            return run_within(self._seconds, freeing, lambda value: value)
        except TimeUp as error:
            raise EpisodeBroken(f"the environment gave {error}") from error
        except (Exception, SystemExit) as error:  # whatever a user's environment raises belongs to its own episode
            raise EpisodeBroken(f"the environment failed: {type(error).__name__}: {error}") from error
