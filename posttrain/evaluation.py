"""Held-out measurements: mean reward of fresh answers, or the likelihood of given ones where a task has no reward."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from accelerate.utils import gather_object

from posttrain.data import DataSource, Renderer, TooLong
from posttrain.model import Budget, PackedPolicy
from posttrain.records import Example, Status, Trajectory
from posttrain.rewards import RewardTable, Score
from posttrain.rollout.engine import Sampling
from posttrain.rollout.rolling import Rollouts
from posttrain.rollout.scoring import score


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluation:
    """What is measured, always on the same rows with the same seeds."""

    sources: Mapping[str, DataSource]
    renderer: Renderer
    rollouts: Rollouts | None
    """None where nothing is generated: then every task is measured by likelihood."""
    rewards: RewardTable | None
    num_examples: int
    temperatures: Sequence[float]
    max_new_tokens: int
    batch_size: int
    budget: Budget
    seed: int = 0
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    rank: int = 0
    world: int = 1
    """Ranks measure a share each, and all get the means over all of them."""

    def measure(self, policy: PackedPolicy, *, version: int = 0) -> tuple[dict[str, float], list[Trajectory]]:
        """({metric: mean}, the answers at the first temperature).

        Metrics are `reward/TASK` (greedy), `reward/TASK @ T=1`, `nll/TASK` in nats; of tasks with an environment
        `calls/TASK`, tool calls an episode; and, where there are any, `dropped_frac/TASK` and `unscored_frac/TASK`.
        """
        sums: dict[str, list[float]] = defaultdict(list)
        shown: list[Trajectory] = []
        was_training = policy.training
        policy.eval()
        if self.rollouts is not None:
            self.rollouts.engine.update_weights(policy, version)
        for source in self.sources.values():
            examples = [source[i] for i in range(self.rank, min(self.num_examples, len(source)), self.world)]
            rewarded = [e for e in examples if self._is_rewarded(e)]
            shown += self._answer(rewarded, sums)
            self._likelihood([e for e in examples if not self._is_rewarded(e)], policy, sums)
        if self.rollouts is not None:
            self.rollouts.engine.rest()
        policy.features.clear()
        policy.train(was_training)
        if self.world > 1:
            parts: Sequence[Mapping[str, list[float]]] = gather_object([dict(sums)])
            sums = defaultdict(list)
            for part in parts:
                for name, values in part.items():
                    sums[name] += values
        means = {name: sum(values) / len(values) for name, values in sorted(sums.items()) if values}
        return {name: mean for name, mean in means.items() if mean or "_frac/" not in name}, shown

    def _is_rewarded(self, example: Example) -> bool:
        return self.rollouts is not None and self.rewards is not None and self.rewards.serves(example.task)

    def _answer(self, examples: Sequence[Example], sums: dict[str, list[float]]) -> list[Trajectory]:
        """One trajectory of each example at each temperature; those at the first one are returned."""
        shown: list[Trajectory] = []
        for temperature in self.temperatures:
            for first in range(0, len(examples), self.batch_size):
                assert self.rollouts is not None and self.rewards is not None
                asked = examples[first : first + self.batch_size]
                seed = self.seed + 1 + first
                sampling = Sampling(max_new_tokens=self.max_new_tokens, temperature=temperature, seed=seed)
                rolled = self.rollouts.roll(asked, group_size=1, sampling=sampling)
                if temperature == self.temperatures[0]:
                    for example, group in zip(asked, rolled.groups, strict=True):
                        sums[f"dropped_frac/{example.task}"].append(float(not group))
                answered = [t for group in rolled.groups for t in group]
                sound = [t for t in answered if t.status is not Status.ERROR]
                for trajectory, verdict in zip(sound, score(sound, self.rewards), strict=True):
                    self._note(trajectory, verdict, temperature, sums)
                    if temperature == self.temperatures[0]:
                        shown.append(replace(trajectory, score=verdict))
                for broken in answered:
                    if broken.status is Status.ERROR:
                        self._note(broken, Score.unscored(broken.error), temperature, sums)
        return shown

    def _note(self, trajectory: Trajectory, verdict: Score, temperature: float, sums: dict[str, list[float]]) -> None:
        task = trajectory.example.task
        at = "" if temperature == 0 else f" @ T={temperature:g}"
        sums[f"unscored_frac/{task}{at}"].append(float(verdict.value is None))
        if verdict.value is not None:
            sums[f"reward/{task}{at}"].append(verdict.value)
        if trajectory.turns:
            sums[f"calls/{task}{at}"].append(float(sum(len(turn.calls) for turn in trajectory.turns)))

    def _likelihood(self, examples: Sequence[Example], policy: PackedPolicy, sums: dict[str, list[float]]) -> None:
        """Mean -log p of the assistant's tokens of each task."""
        for first in range(0, len(examples), self.batch_size):
            sequences, tasks = [], []
            for example in examples[first : first + self.batch_size]:
                if example.messages[-1]["role"] != "assistant":
                    continue
                try:
                    made = self.renderer.render_training(example)
                except TooLong:
                    continue
                sequences += made
                tasks += [example.task] * len(made)
            with self.autocast():
                found = policy.logprobs(sequences, self.budget)
            for task, logprobs in zip(tasks, found, strict=True):
                sums[f"nll/{task}"] += (-logprobs).tolist()
