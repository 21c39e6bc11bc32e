"""What a step trains on: mini-batches of sequences, made from the step number alone: a resumed run repeats them."""

import logging
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Protocol

from posttrain.algorithms import Average
from posttrain.data import Mixture, Renderer, TooLong
from posttrain.model import TokenSequence
from posttrain.records import Trajectory

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class StepBatch:
    """One step: an optimiser update for each mini-batch."""

    mini_batches: Sequence[Sequence[TokenSequence]]
    metrics: Mapping[str, Average] = field(default_factory=dict)
    trajectories: Sequence[Trajectory] = ()
    """For the report; each carries its score and advantage."""


class BatchSource(Protocol):
    """Where a trainer's steps come from: a data set, or the policy itself."""

    def batch(self, step: int) -> StepBatch:
        """This rank's share of step `step`, counted from 0; equal calls with equal weights give equal batches."""
        ...


class SupervisedBatches:
    """Rendered examples of a mixture; the next step's are rendered in a thread while this one trains."""

    def __init__(self, mixture: Mixture, renderer: Renderer, *, batch_size: int, rank: int = 0, world: int = 1) -> None:
        self._mixture, self._renderer = mixture, renderer
        self._batch_size, self._rank, self._world = batch_size, rank, world
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="render")
        self._ahead: tuple[int, Future[StepBatch]] | None = None

    def batch(self, step: int) -> StepBatch:
        ready = self._ahead[1].result() if self._ahead and self._ahead[0] == step else self._render(step)
        self._ahead = (step + 1, self._thread.submit(self._render, step + 1))
        return ready

    def _render(self, step: int) -> StepBatch:
        examples = self._mixture.examples(step, self._batch_size, self._rank, self._world)
        sequences: list[TokenSequence] = []
        dropped = 0
        for example in examples:
            try:
                sequences += self._renderer.render_training(example)
            except TooLong as error:
                dropped += 1
                _log.warning("dropped: %s", error)
        return StepBatch(
            mini_batches=[sequences],
            metrics={"dropped_frac": Average(total=float(dropped), count=float(len(examples)))},
        )
