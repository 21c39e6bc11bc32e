"""An RL step from prompts to sequences: groups, signals, missing verdicts, mini-batches, streams, references."""

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from posttrain.algorithms import AdvantageKind
from posttrain.model import Budget
from posttrain.rewards import (
    Completion,
    RewardTable,
    Score,
    TaskRewards,
    WeightedReward,
    extract_answer,
    make_reward,
    make_table,
)

from posttrain.data import Mixture, SceneSource, SceneSpec, from_rows
from posttrain.errors import ConfigError, DataError
from posttrain.objectives import ADVANTAGES, OLD_LOGPROBS, ROLLOUT_LOGPROBS
from posttrain.pipeline import run_recipe
from posttrain.records import Status
from posttrain.rollout.batches import RolloutBatches, RolloutSettings
from posttrain.rollout.engine import Request, Sample, Sampling
from posttrain.rollout.rolling import Rollouts
from posttrain.rollout.transformers_engine import TransformersEngine

END = "<|im_end|>"


@dataclass
class ScriptedEngine:
    """Says random letters of random lengths from the call's seed; ends its answers unless `stop` says otherwise."""

    end: int
    stop: str = "end"
    seeds: list[int] = field(default_factory=list)
    prompts: list[Request] = field(default_factory=list)
    version: int = -1

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample]]:
        self.seeds.append(sampling.seed)
        self.prompts += requests
        random = np.random.default_rng(sampling.seed)
        return [[self._say(random, sampling) for _ in range(request.n)] for request in requests]

    def _say(self, random: np.random.Generator, sampling: Sampling) -> Sample:
        ids = random.integers(20, 90, size=int(random.integers(2, sampling.max_new_tokens)))
        if self.stop == "end":
            ids[-1] = self.end
        logprobs = random.normal(-3, 1, len(ids)).astype(np.float32)
        return Sample(token_ids=ids, logprobs=logprobs, stop=self.stop, weights_version=self.version)  # type: ignore[arg-type]

    def update_weights(self, policy: Any, version: int) -> None:
        self.version = version

    def rest(self) -> None: ...

    def close(self) -> None: ...


@dataclass
class Made:
    batches: RolloutBatches
    engine: ScriptedEngine
    loaded: Any


@pytest.fixture(scope="module")
def loaded(tiny_vl: Path, accelerator: Any) -> Any:
    from posttrain.config import ModelSection
    from posttrain.loaded import load

    return load(ModelSection(path=str(tiny_vl), dtype="float32"), tiny_vl, accelerator)


@pytest.fixture
def make(workshop: Any, loaded: Any) -> Callable[..., Made]:
    """(verdicts, ...) -> batches of two prompts, four answers each; verdicts are dealt to the answers in order."""

    def build(
        verdicts: Sequence[float | None] | None = None,
        *,
        tasks: Sequence[str] = ("count",),
        truncated: str = "score",
        stop: str = "end",
        max_length: int = 4096,
        rank: int = 0,
        world: int = 1,
        loaded: Any = loaded,
        engine: Any = None,
        sources: Any = None,
        table: Any = None,
        **settings: Any,
    ) -> Made:
        dealt: Iterator[float | None] = iter(verdicts or ())

        def deal(completions: Any, **columns: Any) -> list[float | None]:
            return [next(dealt, float(len(turns[0]["content"]))) for turns in completions]

        sources = sources or {task: SceneSource(SceneSpec(task=task, size=64)) for task in tasks}  # type: ignore[arg-type]
        engine = engine or ScriptedEngine(loaded.tokenizer.convert_tokens_to_ids(END), stop)
        renderer = workshop.renderer(loaded)
        renderer.max_length = max_length
        plain: dict[str, Any] = {"batch_size": 2, "group_size": 4, "mini_batches": 1, "max_new_tokens": 8}
        plain |= {"temperature": 1.0, "advantage": AdvantageKind.GRPO, "recompute_logprobs": False}
        plain |= {"zero_signal": "drop", "resample_limit": 2, "seed": 0}
        batches = RolloutBatches(
            mixture=Mixture(sources, dict.fromkeys(sources, 1.0)),
            rollouts=Rollouts(engine=engine, renderer=renderer, decode=loaded.decode),
            rewards=table or make_table({"default": deal}, truncated=truncated),  # type: ignore[arg-type]
            policy=loaded.policy,
            budget=Budget(tokens=10**6),
            settings=RolloutSettings(**{**plain, **settings}),
            rank=rank,
            world=world,
        )
        return Made(batches, engine, loaded)

    return build


def advantages(batch: Any) -> list[float]:
    return [float(s.streams[ADVANTAGES][0]) for hand in batch.mini_batches for s in hand]


def test_answers_are_compared_within_their_group(make: Callable[..., Made]) -> None:
    batch = make([0, 1, 0, 1, 5, 5, 5, 9]).batches.batch(0)
    half, std = 0.5, np.std([0, 1, 0, 1], ddof=1)
    first = [-half / (std + 1e-4), half / (std + 1e-4)] * 2
    second = [-1 / (2 + 1e-4)] * 3 + [3 / (2 + 1e-4)]
    assert advantages(batch) == pytest.approx([*first, *second], abs=1e-6)
    assert batch.metrics["reward"].value == pytest.approx(26 / 8)
    assert batch.metrics["reward/count"].value == batch.metrics["reward"].value
    assert batch.metrics["reward_std"].value == pytest.approx((std + 2) / 2)
    assert [t.advantage for t in batch.trajectories] == pytest.approx(advantages(batch))


def test_streams_stand_at_their_own_tokens(make: Callable[..., Made]) -> None:
    made = make()
    batch = made.batches.batch(3)
    again = ScriptedEngine(made.engine.end)
    again.update_weights(None, 3)
    said = again.generate(made.engine.prompts, Sampling(max_new_tokens=8, seed=made.engine.seeds[0]))
    samples = [(request, sample) for request, group in zip(made.engine.prompts, said, strict=True) for sample in group]
    (sequences,) = batch.mini_batches
    assert len(sequences) == 8
    for sequence, (request, sample), trajectory in zip(sequences, samples, batch.trajectories, strict=True):
        prompt = len(request.token_ids)
        assert sequence.token_ids.tolist() == [*request.token_ids.tolist(), *sample.token_ids.tolist()]
        assert sequence.prefix_length == prompt and sequence.images == request.images
        assert not sequence.mask[:prompt].any() and sequence.mask[prompt:].all()
        for name in (ROLLOUT_LOGPROBS, OLD_LOGPROBS):
            assert sequence.streams[name][prompt:] == pytest.approx(sample.logprobs)
        assert trajectory.weights_version == 3 and trajectory.status is Status.FINISHED
        assert trajectory.text == made.loaded.decode(sample.token_ids[:-1].tolist()) and END not in trajectory.text


def test_groups_without_a_signal_are_dropped_and_counted(make: Callable[..., Made]) -> None:
    batch = make([1, 1, 1, 1, 0, 0, 1, 1]).batches.batch(0)
    assert len(advantages(batch)) == 4 and batch.metrics["zero_signal_frac"].value == 0.5
    assert len(batch.trajectories) == 8, "the report shows them all the same"
    nothing = make([1] * 8).batches.batch(0)
    assert nothing.mini_batches == [[]] and nothing.metrics["zero_signal_frac"].value == 1.0


def test_groups_without_a_signal_are_kept_where_that_is_asked_for(make: Callable[..., Made]) -> None:
    batch = make([1, 1, 1, 1, 0, 0, 1, 1], zero_signal="keep").batches.batch(0)
    assert len(advantages(batch)) == 8 and advantages(batch)[:4] == [0.0] * 4


def test_groups_without_a_signal_are_replaced_by_other_prompts(make: Callable[..., Made]) -> None:
    made = make([1, 1, 1, 1, 0, 0, 1, 1, 0, 1, 0, 1], zero_signal="resample")
    batch = made.batches.batch(0)
    assert len(advantages(batch)) == 8
    assert batch.metrics["zero_signal_frac"].value == pytest.approx(1 / 3)
    assert len(made.engine.prompts) == 3 and len(set(made.engine.seeds)) == 2, "only one prompt is drawn again"
    assert len({r.token_ids.tobytes() + r.images[0].key.encode() for r in made.engine.prompts}) == 3


def test_resampling_ends_at_its_limit(make: Callable[..., Made]) -> None:
    made = make([1] * 100, zero_signal="resample", resample_limit=2)
    assert made.batches.batch(0).mini_batches == [[]]
    assert len(made.engine.prompts) == 6


def test_unscored_answers_leave_the_statistics_and_the_training(make: Callable[..., Made]) -> None:
    batch = make([None, 0, 0, 1, None, None, None, 1]).batches.batch(0)
    mean, std = 1 / 3, np.std([0, 0, 1], ddof=1)
    wanted = [(x - mean) / (std + 1e-4) for x in (0, 0, 1)]
    assert advantages(batch) == pytest.approx(wanted), "a group with one verdict has nothing to compare"
    assert batch.metrics["unscored_frac"].value == 0.5
    assert batch.metrics["reward"].value == pytest.approx(2 / 4)


def test_groups_with_too_few_scores_are_dropped_and_counted_apart(make: Callable[..., Made]) -> None:
    verdicts = iter([None, None, 0, 1, None, 0, 0, 1])
    rules = TaskRewards((WeightedReward(make_reward(lambda completions: [next(verdicts) for _ in completions])),))
    table = RewardTable({"default": replace(rules, min_scored=3)})
    batch = make(table=table).batches.batch(0)
    assert len(advantages(batch)) == 3 and len(batch.trajectories) == 8
    assert batch.metrics["thin_group_frac"].value == 0.5 and batch.metrics["zero_signal_frac"].value == 0.0
    thin = make([None, None, None, 1, 1, 1, 1, 1], zero_signal="keep").batches.batch(0)
    assert len(advantages(thin)) == 4, "kept is a group whose scores are equal, not one without scores"
    assert thin.metrics["thin_group_frac"].value == thin.metrics["zero_signal_frac"].value == 0.5


def test_thin_groups_are_replaced_by_other_prompts_too(make: Callable[..., Made]) -> None:
    made = make([None, None, None, 1, 0, 0, 1, 1, 0, 1, 0, 1], zero_signal="resample")
    assert len(advantages(made.batches.batch(0))) == 8 and len(made.engine.prompts) == 3


def test_rewards_that_are_normalised_one_by_one_make_the_published_advantages(make: Callable[..., Made]) -> None:
    """GDPO: (1, 0) and (0, 1) have equal sums; each reward is normalised in its group, then all of the batch."""
    values = np.array([[[1, 0], [0, 1], [0, 0], [0, 1]], [[1, 4], [0, 0], [1, 0], [1, 0]]], dtype=np.float64)
    dealt = {0: iter(values[..., 0].ravel()), 1: iter(values[..., 1].ravel())}

    def column(place: int) -> WeightedReward:
        reward = make_reward(lambda completions: [next(dealt[place]) for _ in completions])
        return WeightedReward(reward, (1.0, 0.5)[place], f"r{place}")

    rules = TaskRewards((column(0), column(1)), aggregation="normalise_then_sum")
    batch = make(table=RewardTable({"default": rules})).batches.batch(0)
    normal = (values - values.mean(1, keepdims=True)) / (values.std(1, ddof=1, keepdims=True) + 1e-4)
    sums = normal @ np.array([1.0, 0.5])
    wanted = (sums - sums.mean()) / (sums.std(ddof=1) + 1e-4)
    assert advantages(batch) == pytest.approx(wanted.ravel(), abs=1e-5)
    assert [t.advantage for t in batch.trajectories] == pytest.approx(wanted.ravel(), abs=1e-5)
    assert batch.metrics["reward"].value == pytest.approx((values @ np.array([1.0, 0.5])).mean())


def test_tasks_of_one_batch_are_compared_each_in_its_own_way(make: Callable[..., Made]) -> None:
    def lengths(completions: Any) -> list[float]:
        return [float(len(turns[0]["content"])) for turns in completions]

    one_by_one = TaskRewards((WeightedReward(make_reward(lengths)),), aggregation="normalise_then_sum")
    table = RewardTable({"count": one_by_one, "arith": TaskRewards((WeightedReward(make_reward(lengths)),))})
    batch = make(tasks=("count", "arith"), table=table, batch_size=4).batches.batch(0)
    by_task = {
        task: np.array([t.advantage for t in batch.trajectories if t.example.task == task])
        for task in ("count", "arith")
    }
    assert by_task["count"].std(ddof=1) == pytest.approx(1.0, abs=1e-3)
    plain = make(tasks=("count", "arith"), batch_size=4).batches.batch(0)
    grpo = np.array([t.advantage for t in plain.trajectories if t.example.task == "arith"])
    assert by_task["arith"] == pytest.approx(grpo), "a neighbour in the batch changes nothing"
    counted = np.array([t.advantage for t in plain.trajectories if t.example.task == "count"])
    assert by_task["count"] == pytest.approx(counted / (counted.std(ddof=1) + 1e-4), abs=1e-4)


def test_a_reward_that_raises_on_some_answers_is_counted(make: Callable[..., Made]) -> None:
    numbers = iter(range(8))

    def each(completion: Any) -> Score:
        number = next(numbers)
        return Score(value=1 / (number - 1) if number < 3 else float(number))

    batch = make(table=make_table({"default": Each(each)})).batches.batch(0)
    assert batch.metrics["reward_error_frac"].value == batch.metrics["unscored_frac"].value == 1 / 8
    (failed,) = [t.score for t in batch.trajectories if t.score is not None and t.score.value is None]
    assert failed.reason == "Each: ZeroDivisionError: division by zero"
    assert len(advantages(batch)) == 7
    assert make([0, 1] * 4).batches.batch(0).metrics["reward_error_frac"].value == 0.0


def test_a_reward_that_raises_on_every_answer_stops_the_run(make: Callable[..., Made]) -> None:
    def near(completions: Any) -> list[float]:
        raise KeyError("solution")

    message = "none of the 8 answers of this step has a score, because a reward fails: near: KeyError: 'solution'"
    with pytest.raises(DataError, match=message):
        make(table=make_table({"default": near})).batches.batch(0)
    silent = make([None] * 8).batches.batch(0)
    assert silent.mini_batches == [[]], "a reward without a verdict has not failed"


def test_a_reward_of_the_wrong_length_stops_the_run_at_once(make: Callable[..., Made]) -> None:
    with pytest.raises(ConfigError, match="reward function 'one' returned 1 values for (4|8) completions"):
        make(table=make_table({"default": one})).batches.batch(0)


def one(completions: Any) -> list[float]:
    return [1.0]


@dataclass(frozen=True)
class Each:
    """A user's reward object, one answer at a time."""

    function: Callable[[Completion], Score]

    def __call__(self, completion: Completion, reference: Any) -> Score:
        return self.function(completion)

    def perfect_answer(self, reference: Any) -> str | None:
        return None


def test_rewards_see_what_is_known_of_a_trajectory(make: Callable[..., Made]) -> None:
    seen: list[Completion] = []

    def note(completion: Completion) -> Score:
        seen.append(completion)
        return Score(value=float(len(seen)))

    batch = make(table=make_table({"default": Each(note)})).batches.batch(0)
    for completion, trajectory in zip(seen, batch.trajectories, strict=True):
        assert completion.text == trajectory.text and completion.prompt.startswith("How many")
        assert completion.images == trajectory.example.images and len(completion.images) == 1
        assert completion.token_ids == tuple(trajectory.token_ids[trajectory.prompt_length :])
        assert completion.answer == extract_answer(trajectory.text)
        assert (completion.num_turns, completion.tool_calls, completion.truncated) == (1, (), False)


def test_answers_cut_off_by_the_limit_are_counted_and_scored_as_the_table_says(make: Callable[..., Made]) -> None:
    batch = make([0, 1] * 4, stop="length").batches.batch(0)
    assert batch.metrics["truncated_frac"].value == 1.0 and len(advantages(batch)) == 8
    assert all(t.status is Status.TRUNCATED for t in batch.trajectories)
    unscored = make([0, 1] * 4, stop="length", truncated="unscored").batches.batch(0)
    assert unscored.mini_batches == [[]] and unscored.metrics["unscored_frac"].value == 1.0
    assert "reward" not in unscored.metrics


def test_every_mini_batch_holds_every_task_and_whole_groups(make: Callable[..., Made]) -> None:
    made = make(tasks=("count", "arith"), batch_size=8, mini_batches=2)
    batch = made.batches.batch(0)
    groups = {t.token_ids[: t.prompt_length].tobytes(): t.example.task for t in batch.trajectories}
    assert sorted(groups.values()) == sorted(["arith", "count"] * 4) or len(groups) < 8  # two scenes may ask the same
    for hand in batch.mini_batches:
        tasks = [groups[s.token_ids[: s.prefix_length].tobytes()] for s in hand]
        assert tasks.count("count") == tasks.count("arith") == 8
        assert len(hand) == 16
    assert batch.metrics["reward/arith"].count == batch.metrics["reward/count"].count == 16


def test_a_step_is_made_from_its_number_alone(make: Callable[..., Made]) -> None:
    first, second = make().batches, make().batches
    second.batch(0)

    def tokens(batch: Any) -> list[bytes]:
        return [s.token_ids.tobytes() for hand in batch.mini_batches for s in hand]

    assert tokens(first.batch(5)) == tokens(second.batch(5))
    assert tokens(first.batch(5)) != tokens(first.batch(6))
    assert tokens(first.batch(5)) != tokens(make(seed=1).batches.batch(5))


def test_ranks_share_the_prompts_of_a_step(make: Callable[..., Made]) -> None:
    whole = {t.example.id for t in make(batch_size=4).batches.batch(2).trajectories}
    shares = [
        {t.example.id for t in make(batch_size=4, rank=rank, world=2).batches.batch(2).trajectories} for rank in (0, 1)
    ]
    assert len(shares[0]) == len(shares[1]) == 2 and shares[0] | shares[1] == whole


def test_prompts_that_are_too_long_are_counted_and_named(
    make: Callable[..., Made], caplog: pytest.LogCaptureFixture
) -> None:
    short, long = {"prompt": "1+1?"}, {"prompt": "1+1? " * 200}
    sources = {"rows": from_rows([short, long])}
    with caplog.at_level(logging.WARNING):
        batch = make(sources=sources, max_length=100).batches.batch(0)
    assert batch.metrics["dropped_frac"].value == 0.5 and len(batch.trajectories) == 4
    assert "dropped: rows[1]: has " in caplog.text and "more than the limit of 100" in caplog.text
    all_long = make(sources={"rows": from_rows([long, long])}, max_length=100).batches.batch(0)
    assert all_long.mini_batches == [[]] and all_long.metrics["dropped_frac"].value == 1.0


def test_a_row_of_a_task_without_rewards_is_named(make: Callable[..., Made]) -> None:
    table = make_table({"maths": lambda completions, **_: [0.0] * len(completions)})
    with pytest.raises(DataError, match="is of task 'count', which has no rewards; rewards are given for: maths"):
        make(table=table).batches.batch(0)


def test_recomputed_logprobs_are_the_transformers_engines_own(make: Callable[..., Made], loaded: Any) -> None:
    engine = TransformersEngine(loaded.policy, loaded.facts)
    for temperature in (1.0, 0.7):
        made = make(tasks=("count", "arith"), engine=engine, recompute_logprobs=True, temperature=temperature)
        (sequences,) = made.batches.batch(1).mini_batches
        assert len(sequences) == 8
        for s in sequences:
            gap = np.abs(s.streams[OLD_LOGPROBS] - s.streams[ROLLOUT_LOGPROBS])
            assert gap.max() < 2e-5  # float32, two different orders of summation
            assert s.streams[OLD_LOGPROBS][s.mask].max() < 0 and not s.streams[OLD_LOGPROBS][~s.mask].any()


def test_recomputed_logprobs_know_no_dropout_whatever_mode_the_policy_was_left_in(
    make: Callable[..., Made], workshop: Any
) -> None:
    lora = workshop.load(lora={"rank": 2, "alpha": 4, "dropout": 0.5})
    with torch.no_grad():
        for name, p in lora.policy.named_parameters():
            if "lora_B" in name:
                p.fill_(0.1)
    made = make(loaded=lora, recompute_logprobs=True)
    found = []
    for training in (True, False):
        lora.policy.train(training)
        (sequences,) = made.batches.batch(0).mini_batches
        found.append(np.concatenate([s.streams[OLD_LOGPROBS] for s in sequences]))
    assert np.array_equal(*found)


@pytest.mark.parametrize("lora", [None, {"rank": 2, "alpha": 4}], ids=["full", "lora"])
def test_kl_to_the_reference_starts_at_zero_and_then_grows(
    lora: Any, make_recipe: Callable[..., Any], tools: Any, tiny_vl: Path, tmp_path: Path
) -> None:
    stage = tools.sapo_stage(steps=2, mini_batches=1, kl_coefficient=0.5, learning_rate=1e-2, warmup_frac=0.0)
    model = {"path": str(tiny_vl), "dtype": "float32", "lora": lora}
    run_recipe(make_recipe(tmp_path, {"sapo": stage}, model=model))
    first, second = (row["kl_reference"] for row in tools.metrics_of(tmp_path / "stages/sapo"))
    assert first == pytest.approx(0.0, abs=1e-9)
    assert second > 1e-5
