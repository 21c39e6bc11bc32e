"""An RL step: ask the policy, score what it said, compare within groups, and hand out the sequences to train on."""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import torch

from posttrain.algorithms import AdvantageKind, Average, distillation_advantages, distillation_metrics
from posttrain.batches import Annotate, StepBatch
from posttrain.data import Mixture
from posttrain.errors import DataError
from posttrain.model import Budget, PackedPolicy, TokenSequence
from posttrain.objectives import ADVANTAGES, OLD_LOGPROBS, REFERENCE_LOGPROBS, ROLLOUT_LOGPROBS
from posttrain.records import Example, Group, Status, Trajectory
from posttrain.rewards import RewardTable, Score, judge_metrics, shared_pool
from posttrain.rollout.clock import Clock
from posttrain.rollout.engine import Sampling
from posttrain.rollout.reward_line import RewardLine
from posttrain.rollout.rolling import Rollouts
from posttrain.rollout.rollout_metrics import rollout_metrics
from posttrain.rollout.scoring import (
    advantages_of,
    deviations,
    is_scored,
    is_thin,
    judged_since,
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
        rollouts: Rollouts,
        rewards: RewardTable | None,
        policy: PackedPolicy,
        budget: Budget,
        settings: RolloutSettings,
        reference_logprobs: ReferenceLogprobs | None = None,
        teacher_logprobs: TeacherLogprobs | None = None,
        annotate: Annotate | None = None,
        rank: int = 0,
        world: int = 1,
    ) -> None:
        self._mixture, self._rollouts, self._rewards = mixture, rollouts, rewards
        self._policy, self._budget, self._settings = policy, budget, settings
        self._reference_logprobs, self._teacher_logprobs = reference_logprobs, teacher_logprobs
        self._annotate = annotate
        self._rank, self._world = rank, world

    def batch(self, step: int) -> StepBatch:
        settings = self._settings
        clock = Clock()
        self._policy.eval()  # log-probabilities without dropout, whatever mode the step before left
        self._rollouts.engine.update_weights(self._policy, step)
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
        self._rollouts.engine.rest()
        _stop_if_no_episode_ran(seen)
        scales = deviations(seen, self._rewards, world=self._world)
        metrics = rollout_metrics(seen, scored=self._rewards is not None)
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

    def _roll(self, examples: Sequence[Example], *, seed: int, clock: Clock) -> list[Group]:
        """Groups of scored trajectories with their advantages; prompts that are too long are left out, and named.

        Raises DataError for an example of a task that has no rewards.
        """
        for example in examples:
            if self._rewards is not None and not self._rewards.serves(example.task):
                raise DataError(
                    f"{example.id} is of task '{example.task}', which has no rewards; rewards are given for: "
                    f"{', '.join(self._rewards.tasks)}"
                )
        settings, rewards = self._settings, self._rewards
        sampling = Sampling(max_new_tokens=settings.max_new_tokens, temperature=settings.temperature, seed=seed)
        line = RewardLine(partial(score, rewards=rewards)) if rewards else None
        finished = line.add if line else lambda place, group: None
        try:
            rolled = self._rollouts.roll(examples, group_size=settings.group_size, sampling=sampling, finished=finished)
        except BaseException:
            if line is not None:
                line.close()
            raise
        for error in rolled.too_long:
            _log.warning("dropped: %s", error)
        clock.lap("time/rollout_s", but={"time/environment_s": rolled.environment_s})
        clock.note("time/environment_busy_s", rolled.environment_busy_s)
        scores = line.scores() if line else {}
        clock.lap("time/reward_s")
        clock.note("time/reward_busy_s", line.busy_s if line else 0.0)
        return [self._group(group, scores.get(place)) for place, group in enumerate(rolled.groups) if group]

    def _group(self, members: Sequence[Trajectory], scores: Sequence[Score] | None) -> Group:
        """Its trajectories with their scores, and their advantages over each other."""
        example = members[0].example
        verdicts = scores or [_NO_REWARD] * len(members)
        rules = self._rewards.rewards_for(example.task) if self._rewards else None
        advantages = advantages_of(verdicts, rules, self._settings.advantage)
        return Group(
            example=example,
            trajectories=[
                replace(t, score=s, advantage=a) for t, s, a in zip(members, verdicts, advantages, strict=True)
            ],
        )

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

    def _deal(self, groups: Sequence[Group], metrics: dict[str, Average], clock: Clock) -> list[list[TokenSequence]]:
        """Whole groups into mini-batches like cards, task by task, so that each holds every task."""
        order = sorted(groups, key=lambda group: group.example.task)
        hands: list[int] = []
        tasks: list[str] = []
        sequences: list[TokenSequence] = []
        for place, group in enumerate(order):
            for trajectory in group.trajectories:
                if is_scored(trajectory) or (self._settings.without_score and trajectory.status is not Status.ERROR):
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


def _stop_if_no_episode_ran(groups: Sequence[Group]) -> None:
    trajectories = [t for group in groups for t in group.trajectories]
    if trajectories and all(t.status is Status.ERROR for t in trajectories):
        raise DataError(f"all {len(trajectories)} episodes of this step broke down; the first: {trajectories[0].error}")


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
