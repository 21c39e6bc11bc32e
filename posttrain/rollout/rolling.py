"""Rolls out a batch of examples: every trajectory goes on as soon as its own environment has answered."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

from posttrain.data import Renderer
from posttrain.records import Example
from posttrain.rollout.earlier_thoughts import EarlierThoughts
from posttrain.rollout.engine import Engine, Sampling, capacity_of
from posttrain.rollout.environment_workers import EnvironmentWorkers
from posttrain.rollout.episode import Decode
from posttrain.rollout.rolling_batch import RollingBatch
from posttrain.rollout.rolling_records import Finished, Rolled, TaskEnvironment
from posttrain.rollout.whole_batches import stream_of

_DEFAULT = "default"


class Rollouts:
    """Asks the policy itself, turn by turn.

    environments: task -> what it is played in; "default" serves the others, and without it those are one turn each.
    """

    def __init__(
        self,
        *,
        engine: Engine,
        renderer: Renderer,
        decode: Decode,
        environments: Mapping[str, TaskEnvironment] | None = None,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
        repeatable: bool = False,
    ) -> None:
        """repeatable: wait for all environments before sampling goes on. Otherwise who samples beside whom depends on
        when environments answer, and with it how sums are rounded."""
        self.engine, self._renderer, self._decode = engine, renderer, decode
        self._environments, self._autocast = environments or {}, autocast
        self._repeatable = repeatable
        self._workers, self._thoughts = EnvironmentWorkers(), EarlierThoughts(renderer)

    def roll(
        self,
        examples: Sequence[Example],
        *,
        group_size: int,
        sampling: Sampling,
        finished: Finished = lambda place, group: None,
    ) -> Rolled:
        """`group_size` trajectories of every example. finished: called with the place of an example as soon as all of
        its trajectories are there.

        Raises EngineError when the engine dies. What an environment raises, also where it is made, ends its episode.
        """
        with self._autocast():
            batch = RollingBatch(
                stream=stream_of(self.engine, sampling),
                workers=self._workers,
                renderer=self._renderer,
                decode=self._decode,
                sampling=sampling,
                group_size=group_size,
                finished=finished,
                capacity=capacity_of(self.engine),
                thoughts=self._thoughts,
                repeatable=self._repeatable,
            )
            try:
                for example in examples:
                    batch.begin(example, self.environment_of(example.task))
                return batch.run()
            finally:
                batch.leave()

    def environment_of(self, task: str) -> TaskEnvironment | None:
        return self._environments.get(task) or self._environments.get(_DEFAULT)

    def close(self) -> None:
        self._workers.close()
