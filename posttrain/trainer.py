"""The trainer, blind to the algorithm: batches of sequences -> packed rows -> one loss -> one step."""

import logging
import signal
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor

from posttrain.algorithms import Average, denominator_of, token_weights
from posttrain.batches import BatchSource, StepBatch
from posttrain.checkpoints import Checkpoint, load_optimizers, save_checkpoint, seed_everything
from posttrain.errors import Interrupted, PosttrainError
from posttrain.model import Budget, PackedPolicy, PackedRow, TokenSequence, blank_row, pack
from posttrain.model.loading import Processor
from posttrain.objectives import Objective, Tokens
from posttrain.optimizers import Schedule, make_optimizers, schedule_factor, set_learning_rate
from posttrain.progress import StepProgress
from posttrain.report import TrajectoryRecorder
from posttrain.runs import StageFolder
from posttrain.token_streams import StepStreams

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingSettings:
    """How a stage is trained, whatever its algorithm."""

    steps: int
    learning_rate: float
    learning_rates: Mapping[str, float]
    optimizer: Literal["adamw", "muon"]
    weight_decay: float
    betas: tuple[float, float]
    schedule: Schedule
    warmup_frac: float
    final_frac: float
    max_grad_norm: float
    budget: Budget
    checkpoint_every: int
    keep_checkpoints: int
    seed: int
    fingerprint: str
    """Of everything that decides the numbers; a checkpoint with another one is not resumed."""


class Trainer:
    """Trains a policy on a source of batches towards an objective, and writes what happens into the stage's folder."""

    def __init__(
        self,
        *,
        policy: PackedPolicy,
        processor: Processor,
        objective: Objective,
        batches: BatchSource,
        settings: TrainingSettings,
        folder: StageFolder,
        accelerator: Accelerator,
        recorder: TrajectoryRecorder | None = None,
        resume_from: Checkpoint | None = None,
        title: str = "train",
    ) -> None:
        self.policy, self.processor, self.objective, self.batches = policy, processor, objective, batches
        self.settings, self.folder, self.accelerator, self.recorder = settings, folder, accelerator, recorder
        self.title = title
        optimizers = make_optimizers(
            policy.model,
            policy.facts,
            kind=settings.optimizer,
            learning_rate=settings.learning_rate,
            learning_rates=settings.learning_rates,
            weight_decay=settings.weight_decay,
            betas=settings.betas,
        )
        policy.always_run_vision = accelerator.num_processes > 1 and policy.facts.has_vision
        self.wrapped, *prepared = accelerator.prepare(policy, *optimizers)
        self.optimizers: Sequence[Any] = prepared
        self._raw_optimizers = optimizers
        self._trained = [p for p in policy.parameters() if p.requires_grad]
        self._blank = blank_row(policy.facts)
        policy.aligned_passes = self._max_over_ranks
        self._interrupted = False
        self.step = 0
        if resume_from is not None:
            load_optimizers(resume_from, policy.model, optimizers, accelerator)
            self.step = resume_from.step

    def train(self) -> None:
        """Runs to the last step. Ctrl-C or SIGTERM saves a checkpoint after the step and raises Interrupted."""
        settings = self.settings
        if self.accelerator.is_main_process:
            self.folder.forget_after(self.step)
        with self._catching_signals(), StepProgress(self.title, settings.steps, self.step, self._is_quiet) as progress:
            while self.step < settings.steps:
                seed_everything(hash((settings.seed, self.step, self.accelerator.process_index)) & 0x7FFFFFFF)
                row = self.train_step()
                progress.advance(row)
                self.step += 1
                every = settings.checkpoint_every
                self._interrupted = bool(self._max_over_ranks(int(self._interrupted)))  # all stop after the same step
                if self._interrupted or (every and self.step % every == 0 and self.step < settings.steps):
                    self.save()
                if self._interrupted:
                    raise Interrupted(
                        f"stopped after step {self.step} of {settings.steps}; all is saved in {self.folder.path}: "
                        "run the same command to go on"
                    )

    def train_step(self) -> Mapping[str, float]:
        """One batch and its updates; writes and returns the step's metrics."""
        started = time.perf_counter()
        with self._saving_what_was_trained():
            batch = self.batches.batch(self.step)
        made = time.perf_counter()
        self.policy.train()
        merged: dict[str, Average] = dict(batch.metrics)
        histograms: dict[str, Tensor] = {}
        streams = StepStreams() if self.recorder is not None and batch.trajectories else None
        count = len(batch.mini_batches)
        for place, sequences in enumerate(batch.mini_batches):
            progress = (self.step + place / count) / self.settings.steps
            with self._saving_what_was_trained() if place == 0 else nullcontext():
                update = self._update(sequences, progress=progress, histograms=histograms, streams=streams)
            for name, value in update.items():
                merged[name] = merged[name].merge(value) if name in merged else value
        self.policy.features.clear()
        ended = time.perf_counter()
        merged["time/batch_s"] = Average(total=made - started, count=1.0)
        merged["time/train_s"] = Average(total=ended - made, count=1.0)
        row = self._reduced(merged)
        row["tokens_per_s"] = row.pop("packed_tokens", 0.0) * self._updates(batch) / max(ended - made, 1e-9)
        self._write(row, histograms, batch, streams)
        return row

    @contextmanager
    def _saving_what_was_trained(self) -> Iterator[None]:
        """Where a step cannot begin (a server is down, a row is bad), the steps before it are saved."""
        try:
            yield
        except PosttrainError:
            if self.step and self.accelerator.num_processes == 1:  # other ranks would wait for this one in vain
                self.save()
                _log.warning("saved before step %d: run the same command to go on from there", self.step)
            raise

    def save(self) -> None:
        """A checkpoint of the present state, before step `self.step`."""
        save_checkpoint(
            self.folder.checkpoints,
            step=self.step,
            fingerprint=self.settings.fingerprint,
            model=self.policy.model,  # pyright: ignore[reportArgumentType]
            wrapped=self.wrapped,
            processor=self.processor,
            optimizers=self._raw_optimizers,
            accelerator=self.accelerator,
            keep=self.settings.keep_checkpoints,
        )

    def _update(
        self,
        sequences: Sequence[TokenSequence],
        *,
        progress: float,
        histograms: dict[str, Tensor],
        streams: StepStreams | None,
    ) -> dict[str, Average]:
        """One optimiser step. A mini-batch without a trained token on any rank changes nothing, and says so."""
        objective, settings, device = self.objective, self.settings, self.accelerator.device
        lengths_S = torch.tensor([s.num_trained for s in sequences], dtype=torch.int64)
        own = denominator_of(lengths_S, objective.reduction, constant_length=objective.constant_length)
        denominator = self._sum_over_ranks(own)
        if denominator == 0:
            return {"empty_updates": Average(total=1.0, count=1.0)}
        rows = pack(sequences, self.policy.facts, settings.budget)
        passes = self._max_over_ranks(len(rows))
        merged: dict[str, Average] = {"empty_updates": Average(total=0.0, count=1.0)}
        loss_sum = 0.0
        for place in range(passes):
            idle = place >= len(rows)  # another rank has more rows: take part in its collectives with a zero
            row = (self._blank if idle else rows[place]).to(device)
            output = self._backward(row, denominator, idle=idle, last=place == passes - 1)
            if idle:
                continue
            tokens = Tokens.of(row)
            with torch.no_grad():
                for name, value in objective.metrics(output, tokens).items():
                    merged[name] = merged[name].merge(value) if name in merged else value
                for name, counts in objective.histograms(output, tokens).items():
                    histograms[name] = histograms.get(name, torch.zeros_like(counts)) + counts
                if streams is not None:
                    streams.add(sequences, row, objective.shades(output, tokens))
            loss_sum += float(output.loss.detach())
        norm = self._step(
            schedule_factor(
                progress, settings.schedule, warmup_frac=settings.warmup_frac, final_frac=settings.final_frac
            )
        )
        skipped = not np.isfinite(norm)
        world = self.accelerator.num_processes
        return merged | {
            # The loss's value was scaled by the ranks for the mean of gradients; summed over them it is the step's.
            "loss": Average(total=loss_sum, count=1.0),
            "grad_norm": Average(total=0.0 if skipped else norm, count=0.0 if skipped else 1.0),
            "skipped_updates": Average(total=float(skipped), count=1.0),
            "learning_rate": Average(total=self._raw_optimizers[0].param_groups[0]["lr"], count=1.0),
            "packed_tokens": Average(total=float(sum(r.num_tokens for r in rows)) * world, count=1.0),
            "rows": Average(total=float(len(rows)), count=1.0),
        }

    def _backward(self, row: PackedRow, denominator: float, *, idle: bool, last: bool) -> Any:
        objective = self.objective
        weights_T = token_weights(row.lengths_S, row.sequence_index_T, objective.reduction, denominator=denominator) * (
            0.0 if idle else float(self.accelerator.num_processes)
        )  # data parallelism averages gradients over ranks

        def token_loss(logprobs_T: Tensor, span: slice) -> Tensor:
            if idle:
                return weights_T[span] * logprobs_T
            return weights_T[span] * objective.token_losses(logprobs_T, Tokens.of(row, span))

        matching = None if idle else objective.matching(row, weights_T)
        with self._synchronising(last):
            output = self.wrapped(
                row,
                token_loss,
                temperature=objective.temperature,
                separable=objective.separable or idle,
                matching=matching,
            )
            self.accelerator.backward(output.loss)
        return output

    def _step(self, factor: float) -> float:
        """Clips, steps and clears; returns the gradient norm before that. A norm that is not finite changes nothing."""
        set_learning_rate(self._raw_optimizers, factor)
        norm = self.accelerator.clip_grad_norm_(self._trained, self.settings.max_grad_norm)
        value = float(norm) if norm is not None else 0.0
        for optimizer in self.optimizers:
            if np.isfinite(value):
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        if not np.isfinite(value):
            _log.warning("step %d: the gradient is %s; this update is skipped", self.step, value)
        return value

    @contextmanager
    def _synchronising(self, last: bool) -> Iterator[None]:
        """Gradients are exchanged once an update, on its last micro-batch."""
        self.accelerator.gradient_state._set_sync_gradients(last)
        if last:
            yield
        else:
            with self.accelerator.no_sync(self.wrapped):
                yield

    def _sum_over_ranks(self, value: float) -> float:
        if self.accelerator.num_processes == 1:
            return value
        return float(sum(gather_object([value])))

    def _max_over_ranks(self, value: int) -> int:
        if self.accelerator.num_processes == 1:
            return value
        return int(max(gather_object([value])))

    def _reduced(self, metrics: Mapping[str, Average]) -> dict[str, float]:
        """Means over micro-batches, mini-batches and ranks."""
        everywhere: Sequence[Mapping[str, Average]] = (
            [metrics] if self.accelerator.num_processes == 1 else gather_object([dict(metrics)])
        )
        merged: dict[str, Average] = {}
        for part in everywhere:
            for name, value in part.items():
                merged[name] = merged[name].merge(value) if name in merged else value
        return {name: value.value for name, value in sorted(merged.items()) if value.count}

    def _updates(self, batch: StepBatch) -> int:
        return sum(1 for sequences in batch.mini_batches if sequences)

    def _write(
        self,
        row: dict[str, float],
        histograms: Mapping[str, Tensor],
        batch: StepBatch,
        streams: StepStreams | None,
    ) -> None:
        if not self.accelerator.is_main_process:
            return
        self.folder.append(self.folder.metrics, {"step": self.step, "time": time.time(), **row})
        for name, counts in histograms.items():
            edges = np.linspace(0, 1, len(counts) + 1).round(4).tolist()
            line = {"step": self.step, "name": name, "edges": edges, "counts": counts.tolist()}
            self.folder.append(self.folder.histograms, line)
        if self.recorder is not None and batch.trajectories:
            known = streams.of(batch.trajectories) if streams is not None else None
            self.recorder.record(self.step, batch.trajectories, streams=known)
        if self.accelerator.trackers:
            self.accelerator.log({f"{self.title}/{name}": value for name, value in row.items()}, step=self.step)

    @property
    def _is_quiet(self) -> bool:
        return not self.accelerator.is_main_process

    @contextmanager
    def _catching_signals(self) -> Iterator[None]:
        """The first Ctrl-C or SIGTERM ends the step in hand; a second Ctrl-C stops at once."""

        def stop(number: int, frame: Any) -> None:
            if self._interrupted:
                raise KeyboardInterrupt
            self._interrupted = True
            _log.warning("stopping after this step; press Ctrl-C again to stop at once and lose it")

        previous: dict[int, Callable[..., Any] | int | None] = defaultdict(lambda: None)
        try:
            for number in (signal.SIGINT, signal.SIGTERM):
                previous[number] = signal.signal(number, stop)
        except ValueError:  # not the main thread: whoever is, handles signals
            previous.clear()
        try:
            yield
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)
