"""The episodes of a batch that their environments ended: counted, and the first one's traceback logged."""

import logging

from posttrain.rollout.environment_jobs import Late

_log = logging.getLogger(__name__)


class EnvironmentFailures:
    """Of one batch: one warning for all of them, because what breaks one environment tends to break them all."""

    def __init__(self) -> None:
        self._num = 0
        self._first: BaseException | None = None

    def add(self, error: BaseException) -> None:
        self._num += 1
        if self._first is None or (isinstance(self._first, Late) and not isinstance(error, Late)):
            self._first = error  # one that is late has no traceback: it is still at work

    def log(self, num_episodes: int) -> None:
        """num_episodes: of the batch, those that went well too. Says nothing where no environment failed."""
        if self._first is not None:
            _log.warning(
                "environments ended %d of %d episodes without a score; the first error:",
                self._num,
                num_episodes,
                exc_info=self._first,
            )
