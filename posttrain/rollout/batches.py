"""An RL step: ask the policy, score what it said, compare within groups, and hand out the sequences to train on."""

import logging
import math
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import torch

from posttrain.algorithms import AdvantageKind, Average, distillation_advantages, distillation_metrics
from posttrain.batches import Annotate, StepBatch
from posttrain.data import Mixture, RenderedPrompt, Renderer, TooLong
from posttrain.errors import DataError
from posttrain.model import Budget, PackedPolicy, TokenSequence
from posttrain.objectives import ADVANTAGES, OLD_LOGPROBS, REFERENCE_LOGPROBS, ROLLOUT_LOGPROBS
from posttrain.records import Example, Group, Status, Trajectory
from posttrain.rewards import RewardTable, Score, judge_metrics, shared_pool
from posttrain.rollout.engine import Engine, Request, Sample, Sampling
from posttrain.rollout.scoring import (
    advantages_of,
    completion_of,
    deviations,
    is_scored,
    is_thin,
    judged_since,
    last_user_text,
    over_batch,
    score,
    stop_if_all_failed,
)

_log = logging.getLogger(__name__)

_RESAMPLE_STRIDE = 1 << 20
"""Steps from here on in the data order are read by resampling, out of reach of the steps themselves."""

ReferenceLogprobs = Callable[[Sequence[TokenSequence]], list[torch.Tensor]]
TeacherLogprobs = Callable[[Sequence[str], Sequence[TokenSequence]], list[np.ndarray]]
"""(task of each, sequences) -> [trained tokens] log-probabilities of each, by the task's teacher."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RolloutSettings:
    """How a step of rollouts is made of prompts."""

    batch_size: int
    """Prompts over all ranks."""
    group_size: int
    mini_batches: int
    max_new_tokens: int
    temperature: float
    advantage: AdvantageKind
    recompute_logprobs: bool
    """True: a forward pass gives the trainer's own log-probabilities at the weights that sampled."""
    zero_signal: Literal["drop", "resample", "keep"]
    resample_limit: int
    seed: int
    without_score: bool = False
    """True: answers without a score, or a part in any comparison, are trained on too: a teacher judges every token."""
    teacher_advantage: float = 0.0
    """Times log p_teacher - log p_student of each sampled token is added to its advantage."""


class RolloutBatches:
    """A `BatchSource` that asks the policy itself."""

    def __init__(
        self,
        *,
        mixture: Mixture,
        renderer: Renderer,
        engine: Engine,
        rewards: RewardTable | None,
        policy: PackedPolicy,
        budget: Budget,
        settings: RolloutSettings,
        decode: Callable[[Sequence[int]], str],
        reference_logprobs: ReferenceLogprobs | None = None,
        teacher_logprobs: TeacherLogprobs | None = None,
        annotate: Annotate | None = None,
        rank: int = 0,
        world: int = 1,
        autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self._mixture, self._renderer, self._engine, self._rewards = mixture, renderer, engine, rewards
        self._policy, self._budget, self._settings, self._decode = policy, budget, settings, decode
        self._reference_logprobs, self._teacher_logprobs = reference_logprobs, teacher_logprobs
        self._annotate = annotate
        self._rank, self._world, self._autocast = rank, world, autocast

    def batch(self, step: int) -> StepBatch:
        settings = self._settings
        clock = _Clock()
        self._policy.eval()  # log-probabilities without dropout, whatever mode the step before left
        self._engine.update_weights(self._policy, step)
        clock.lap("time/weights_s")
        kept: list[Group] = []
        seen: list[Group] = []
        asked = 0
        jobs, timeouts = shared_pool().num_jobs, shared_pool().num_timeouts
        asked_before = judge_metrics()
        wanted = settings.batch_size // self._world
        rounds = 1 + (settings.resample_limit if settings.zero_signal == "resample" else 0)
        for attempt in range(rounds):
            if len(kept) >= wanted:
                break
            drawn = self._mixture.examples(
                step + attempt * _RESAMPLE_STRIDE, settings.batch_size, self._rank, self._world
            )
            examples = drawn[: wanted - len(kept)]
            groups = self._roll(examples, seed=_seed(settings.seed, step, attempt, self._rank), clock=clock)
            asked += len(examples)
            seen += groups
            kept += [g for g in groups if self._is_kept(g)]
        self._engine.rest()
        scales = deviations(seen, self._rewards, world=self._world)
        metrics = _metrics(seen, scored=self._rewards is not None)
        if self._rewards is not None:
            stop_if_all_failed([t for group in seen for t in group.trajectories])
            kept, seen = ([over_batch(g, self._rewards, scales) for g in groups] for groups in (kept, seen))
            thin = [is_thin(g, self._rewards) for g in seen]
            silent = [not has_signal(g) for g in seen]
            metrics["thin_group_frac"] = _frac(sum(thin), len(seen))
            metrics["zero_signal_frac"] = _frac(sum(s and not t for s, t in zip(silent, thin, strict=True)), len(seen))
            if shared_pool().num_jobs > jobs:
                metrics["reward_timeout_frac"] = _frac(
                    shared_pool().num_timeouts - timeouts, shared_pool().num_jobs - jobs
                )
            metrics |= judged_since(asked_before)
        metrics["dropped_frac"] = _frac(asked - len(seen), asked)
        hands = self._deal(kept, metrics, clock)
        return StepBatch(
            mini_batches=hands,
            metrics=metrics | clock.laps,
            trajectories=[t for group in seen for t in group.trajectories],
        )

    def _roll(self, examples: Sequence[Example], *, seed: int, clock: "_Clock") -> list[Group]:
        """Groups of scored trajectories with their advantages; prompts that are too long are left out, and named.

        Raises DataError for an example of a task that has no rewards.
        """
        prompts: list[tuple[Example, RenderedPrompt]] = []
        for example in examples:
            if self._rewards is not None and not self._rewards.serves(example.task):
                raise DataError(
                    f"{example.id} is of task '{example.task}', which has no rewards; rewards are given for: "
                    f"{', '.join(self._rewards.tasks)}"
                )
            try:
                prompts.append((example, self._renderer.render_prompt(example)))
            except TooLong as error:
                _log.warning("dropped: %s", error)
        clock.lap("time/render_s")
        trajectories = ask(
            prompts,
            self._engine,
            Sampling(max_new_tokens=self._settings.max_new_tokens, temperature=self._settings.temperature, seed=seed),
            group_size=self._settings.group_size,
            decode=self._decode,
            autocast=self._autocast,
        )
        clock.lap("time/rollout_s")
        scores = score(trajectories, self._rewards) if self._rewards else [_NO_REWARD] * len(trajectories)
        clock.lap("time/reward_s")
        groups = []
        for place in range(0, len(trajectories), self._settings.group_size):
            members = trajectories[place : place + self._settings.group_size]
            verdicts = scores[place : place + self._settings.group_size]
            example = members[0].example
            rules = self._rewards.rewards_for(example.task) if self._rewards else None
            advantages = advantages_of(verdicts, rules, self._settings.advantage)
            groups.append(
                Group(
                    example=example,
                    trajectories=[
                        replace(t, score=s, advantage=a) for t, s, a in zip(members, verdicts, advantages, strict=True)
                    ],
                )
            )
        return groups

    def _sequence(self, trajectory: Trajectory) -> TokenSequence:
        n = len(trajectory.token_ids)
        return TokenSequence(
            token_ids=trajectory.token_ids,
            mask=trajectory.mask,
            images=trajectory.images,
            prefix_length=trajectory.prompt_length,
            streams={
                ADVANTAGES: np.full(n, trajectory.advantage, dtype=np.float32),
                ROLLOUT_LOGPROBS: trajectory.logprobs,
                OLD_LOGPROBS: trajectory.logprobs,
            },
        )

    def _with_logprobs(
        self, tasks: Sequence[str], sequences: list[TokenSequence]
    ) -> tuple[list[TokenSequence], dict[str, Average]]:
        """Adds what forward passes at the present weights say, where it is wanted; and how far off the teacher is."""
        metrics: dict[str, Average] = {}
        settings = self._settings
        if settings.recompute_logprobs:
            found = self._policy.logprobs(sequences, self._budget, temperature=settings.temperature)
            sequences = [_with_stream(s, OLD_LOGPROBS, x.numpy()) for s, x in zip(sequences, found, strict=True)]
        if self._reference_logprobs is not None:
            found = self._reference_logprobs(sequences)
            sequences = [_with_stream(s, REFERENCE_LOGPROBS, x.numpy()) for s, x in zip(sequences, found, strict=True)]
        if self._teacher_logprobs is not None:
            heard = self._teacher_logprobs(tasks, sequences)
            for place, (sequence, said) in enumerate(zip(sequences, heard, strict=True)):
                sequences[place], apart = _taught(sequence, said, settings.teacher_advantage)
                metrics = {name: value.merge(metrics[name]) if metrics else value for name, value in apart.items()}
        return sequences, metrics

    def _deal(self, groups: Sequence[Group], metrics: dict[str, Average], clock: "_Clock") -> list[list[TokenSequence]]:
        """Whole groups into mini-batches like cards, task by task, so that each holds every task."""
        order = sorted(groups, key=lambda group: group.example.task)
        hands: list[int] = []
        tasks: list[str] = []
        sequences: list[TokenSequence] = []
        for place, group in enumerate(order):
            for trajectory in group.trajectories:
                if self._settings.without_score or is_scored(trajectory):
                    hands.append(place % self._settings.mini_batches)
                    tasks.append(group.example.task)
                    sequences.append(self._sequence(trajectory))
        sequences, apart = self._with_logprobs(tasks, sequences)
        metrics |= apart
        clock.lap("time/score_s")
        annotated: Sequence[TokenSequence | None] = sequences
        if self._annotate is not None:
            annotated, noted = self._annotate.annotate(tasks, sequences)
            metrics |= noted
            clock.lap("time/teacher_s")
        dealt: list[list[TokenSequence]] = [[] for _ in range(self._settings.mini_batches)]
        for hand, sequence in zip(hands, annotated, strict=True):
            if sequence is not None:
                dealt[hand].append(sequence)
        return dealt

    def _is_kept(self, group: Group) -> bool:
        """A teacher has something to say of every group; a comparison, only of one with scores, and unequal ones."""
        settings = self._settings
        if self._rewards is None or settings.without_score or settings.teacher_advantage > 0:
            return True
        return not is_thin(group, self._rewards) and (settings.zero_signal == "keep" or has_signal(group))


def ask(
    prompts: Sequence[tuple[Example, RenderedPrompt]],
    engine: Engine,
    sampling: Sampling,
    *,
    group_size: int,
    decode: Callable[[Sequence[int]], str],
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext,
) -> list[Trajectory]:
    """`group_size` unscored trajectories of every prompt, in the order of the prompts."""
    requests = [Request(token_ids=p.token_ids, images=p.images, pictures=p.pictures, n=group_size) for _, p in prompts]
    with autocast():
        answers = engine.generate(requests, sampling) if requests else []
    return [
        _trajectory(example, prompt, sample, decode)
        for (example, prompt), samples in zip(prompts, answers, strict=True)
        for sample in samples
    ]


def _trajectory(
    example: Example, prompt: RenderedPrompt, sample: Sample, decode: Callable[[Sequence[int]], str]
) -> Trajectory:
    before, said = len(prompt.token_ids), len(sample.token_ids)
    mask = np.zeros(before + said, dtype=np.bool_)
    mask[before:] = True
    logprobs = np.zeros(before + said, dtype=np.float32)
    logprobs[before:] = sample.logprobs
    ended = sample.stop == "end"
    return Trajectory(
        example=example,
        token_ids=np.concatenate([prompt.token_ids, sample.token_ids]),
        mask=mask,
        logprobs=logprobs,
        prompt_length=before,
        images=prompt.images,
        text=decode(sample.token_ids[: said - 1 if ended else said].tolist()),
        status=Status.FINISHED if ended else Status.TRUNCATED,
        weights_version=sample.weights_version,
    )


def has_signal(group: Group) -> bool:
    """True where its members' rewards differ."""
    return any(t.advantage != 0.0 for t in group.trajectories)


def _with_stream(sequence: TokenSequence, name: str, values: np.ndarray) -> TokenSequence:
    stream = np.zeros(sequence.num_tokens, dtype=np.float32)
    stream[sequence.mask] = values
    return replace(sequence, streams={**sequence.streams, name: stream})


def _taught(
    sequence: TokenSequence, teacher_logprobs: np.ndarray, coefficient: float
) -> tuple[TokenSequence, Mapping[str, Average]]:
    """The sequence with the teacher's verdict on each sampled token in its advantages, and their distance."""
    own = {name: torch.from_numpy(sequence.streams[name][sequence.mask]) for name in (ADVANTAGES, OLD_LOGPROBS)}
    said = {"teacher_logprobs_T": torch.from_numpy(teacher_logprobs), "student_logprobs_T": own[OLD_LOGPROBS]}
    advantages_T = own[ADVANTAGES] + distillation_advantages(**said, coefficient=coefficient)
    return _with_stream(sequence, ADVANTAGES, advantages_T.numpy()), distillation_metrics(**said)


def _frac(part: int, whole: int) -> Average:
    return Average(total=float(part), count=float(whole))


_NO_REWARD = Score.unscored("no reward is asked")


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> 1)


class _Clock:
    """Seconds between laps, summed by name."""

    def __init__(self) -> None:
        self._last = time.perf_counter()
        self._seconds: dict[str, float] = defaultdict(float)

    def lap(self, name: str) -> None:
        now = time.perf_counter()
        self._seconds[name] += now - self._last
        self._last = now

    @property
    def laps(self) -> dict[str, Average]:
        return {name: Average(total=seconds, count=1.0) for name, seconds in self._seconds.items()}


def _metrics(groups: Sequence[Group], *, scored: bool) -> dict[str, Average]:
    """Means over trajectories: rewards by task and part, lengths, and what was truncated or unscored."""
    values: dict[str, list[float]] = defaultdict(list)
    for group in groups:
        rewards = [t.score.value for t in group.trajectories if t.score is not None and t.score.value is not None]
        if len(rewards) > 1:
            values["reward_std"].append(float(np.std(rewards, ddof=1)))
        for t in group.trajectories:
            values["length/mean"].append(float(t.mask.sum()))
            values["truncated_frac"].append(float(t.status is Status.TRUNCATED))
            if scored:
                values["unscored_frac"].append(float(not is_scored(t)))
                values["reward_error_frac"].append(float(t.score is not None and t.score.error))
            if t.score is None or t.score.value is None:
                continue
            values["reward"].append(t.score.value)
            values[f"reward/{t.example.task}"].append(t.score.value)
            for part, value in t.score.parts.items():
                if math.isfinite(value):
                    values[f"part/{part}"].append(value)
    return {name: Average(total=float(sum(v)), count=float(len(v))) for name, v in values.items()}


__all__ = ["RolloutBatches", "RolloutSettings", "ask", "completion_of", "last_user_text", "score"]
