"""Scores groups on a thread of its own while other groups are still being sampled."""

import queue
import threading
import time
from collections.abc import Callable, Sequence

from posttrain.records import Status, Trajectory
from posttrain.rewards import Score

Scoring = Callable[[Sequence[Trajectory]], list[Score]]


class RewardLine:
    """One call at a time: what has ended while it scored is its next batch, so that judges are asked many at once.

    What the scoring raises is raised by `scores`.
    """

    def __init__(self, scoring: Scoring) -> None:
        self._scoring = scoring
        self._waiting: queue.SimpleQueue[tuple[int, Sequence[Trajectory]] | None] = queue.SimpleQueue()
        self._scores: dict[int, list[Score]] = {}
        self._error: BaseException | None = None
        self._is_closed = False
        self.busy_s = 0.0
        """Spent scoring so far."""
        self._thread = threading.Thread(target=self._work, name="posttrain-rewards", daemon=True)
        self._thread.start()

    def add(self, place: int, group: Sequence[Trajectory]) -> None:
        self._waiting.put((place, group))

    def scores(self) -> dict[int, list[Score]]:
        """Scores of every group by its place, in the order of its trajectories. Waits for them, and ends the line."""
        self._waiting.put(None)
        self._thread.join()
        if self._error is not None:
            raise self._error
        return self._scores

    def close(self) -> None:
        """Leaves what is not scored yet."""
        self._is_closed = True
        self._waiting.put(None)

    def _work(self) -> None:
        is_open = True
        while is_open:
            groups = [self._waiting.get()]
            while not self._waiting.empty():
                groups.append(self._waiting.get())
            is_open = None not in groups
            if self._is_closed:
                return
            began = time.perf_counter()
            try:
                self._score([group for group in groups if group is not None])
            except BaseException as error:  # for the thread that waits
                self._error = error
                return
            self.busy_s += time.perf_counter() - began

    def _score(self, groups: Sequence[tuple[int, Sequence[Trajectory]]]) -> None:
        """Episodes whose environment failed have no score, and no reward is asked about them."""
        sound = [t for _, group in groups for t in group if t.status is not Status.ERROR]
        found = iter(self._scoring(sound) if sound else [])
        for place, group in groups:
            self._scores[place] = [Score.unscored(t.error) if t.status is Status.ERROR else next(found) for t in group]
