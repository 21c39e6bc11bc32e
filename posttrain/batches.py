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


class Annotate(Protocol):
    """Adds to sequences what somebody else says of them, such as a teacher."""

    @property
    def overlaps(self) -> bool:
        """True where it leaves this process's devices alone: it may run in a thread while a step trains."""
        ...

    def annotate(
        self, tasks: Sequence[str], sequences: Sequence[TokenSequence]
    ) -> tuple[list[TokenSequence | None], Mapping[str, Average]]:
        """The sequences in their order, None for one that must be left out, and metrics of that."""
        ...


class SupervisedBatches:
    """Rendered examples of a mixture; the next step's are rendered in a thread while this one trains."""

    def __init__(
        self,
        mixture: Mixture,
        renderer: Renderer,
        *,
        batch_size: int,
        steps: int | None = None,
        annotate: Annotate | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        """steps: after which nothing more is made ahead."""
        self._mixture, self._renderer, self._annotate = mixture, renderer, annotate
        self._steps = steps
        self._batch_size, self._rank, self._world = batch_size, rank, world
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="render")
        self._ahead: tuple[int, Future[_Rendered]] | None = None

    def batch(self, step: int) -> StepBatch:
        ready = self._ahead[1].result() if self._ahead and self._ahead[0] == step else self._prepare(step)
        if self._steps is None or step + 1 < self._steps:
            self._ahead = (step + 1, self._thread.submit(self._prepare, step + 1))
        if self._annotate is not None and not self._annotate.overlaps:
            ready = _annotated(ready, self._annotate)
        return StepBatch(mini_batches=[[s for s in ready.sequences if s is not None]], metrics=ready.metrics)

    def _prepare(self, step: int) -> "_Rendered":
        rendered = self._render(step)
        if self._annotate is not None and self._annotate.overlaps:
            rendered = _annotated(rendered, self._annotate)
        return rendered

    def _render(self, step: int) -> "_Rendered":
        examples = self._mixture.examples(step, self._batch_size, self._rank, self._world)
        tasks: list[str] = []
        sequences: list[TokenSequence] = []
        dropped = 0
        for example in examples:
            try:
                made = self._renderer.render_training(example)
                sequences += made
                tasks += [example.task] * len(made)
            except TooLong as error:
                dropped += 1
                _log.warning("dropped: %s", error)
        dropped_frac = Average(total=float(dropped), count=float(len(examples)))
        return _Rendered(tasks=tasks, sequences=sequences, metrics={"dropped_frac": dropped_frac})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Rendered:
    tasks: Sequence[str]
    sequences: Sequence[TokenSequence | None]
    metrics: Mapping[str, Average]


def _annotated(rendered: _Rendered, annotate: Annotate) -> _Rendered:
    sequences, metrics = annotate.annotate(rendered.tasks, [s for s in rendered.sequences if s is not None])
    return _Rendered(tasks=rendered.tasks, sequences=sequences, metrics={**rendered.metrics, **metrics})
