"""Held-out measurements: which metric a task gets, equal seeds, and ranks that share the rows."""

from pathlib import Path
from typing import Any

import pytest
import torch
from posttrain.model import Budget
from posttrain.rewards.table import make_table

from posttrain.data import SceneSource, SceneSpec, from_rows
from posttrain.evaluation import Evaluation
from posttrain.rollout.rolling import Rollouts
from posttrain.rollout.transformers_engine import TransformersEngine


@pytest.fixture(scope="module")
def loaded(tiny_vl: Path, accelerator: Any) -> Any:
    from posttrain.config import ModelSection
    from posttrain.loaded import load

    return load(ModelSection(path=str(tiny_vl), dtype="float32"), tiny_vl, accelerator)


def letters(completions: list[Any], **_: Any) -> list[float | None]:
    """None for an empty answer; otherwise the share of letters and digits."""
    texts = [turns[0]["content"] for turns in completions]
    return [sum(c.isalnum() for c in text) / len(text) if text else None for text in texts]


@pytest.fixture
def evaluation(workshop: Any, loaded: Any) -> Any:
    def make(**keys: Any) -> Evaluation:
        renderer = workshop.renderer(loaded)
        renderer.max_length = keys.pop("max_length", 4096)
        plain: dict[str, Any] = {
            "sources": {"a": SceneSource(SceneSpec(task="count", size=6)), "b": SceneSource(SceneSpec(task="arith"))},
            "renderer": renderer,
            "rollouts": Rollouts(
                engine=TransformersEngine(loaded.policy, loaded.facts), renderer=renderer, decode=loaded.decode
            ),
            "rewards": make_table({"count": letters}),
            "num_examples": 4,
            "temperatures": (0.0, 1.0),
            "max_new_tokens": 5,
            "batch_size": 3,
            "budget": Budget(tokens=10**6),
        }
        return Evaluation(**{**plain, **keys})

    return make


def test_tasks_with_rewards_are_answered_and_others_measured_by_their_likelihood(
    evaluation: Any, loaded: Any, workshop: Any
) -> None:
    measured, shown = evaluation().measure(loaded.policy, version=7)
    assert set(measured) - {"unscored/count", "unscored/count @ T=1"} == {
        "reward/count",
        "reward/count @ T=1",
        "nll/arith",
    }
    assert len(shown) == 4 and all(t.weights_version == 7 for t in shown), "the greedy answers"
    assert all(t.score is not None and t.score.is_scored for t in shown)
    source, renderer = SceneSource(SceneSpec(task="arith")), workshop.renderer(loaded)
    sequences = [s for i in range(4) for s in renderer.render_training(source[i])]
    wanted = -torch.cat(loaded.policy.logprobs(sequences, Budget(tokens=10**6))).mean()
    assert measured["nll/arith"] == pytest.approx(float(wanted), abs=1e-5)


def test_measuring_twice_gives_the_same_and_changes_nothing(evaluation: Any, loaded: Any) -> None:
    loaded.policy.train()
    before = {name: p.detach().clone() for name, p in loaded.policy.named_parameters()}
    first, second = evaluation().measure(loaded.policy)[0], evaluation().measure(loaded.policy)[0]
    assert first == second
    assert loaded.policy.training
    assert all(torch.equal(before[name], p) for name, p in loaded.policy.named_parameters())
    loaded.policy.eval()


def test_greedy_answers_do_not_depend_on_the_seed_and_sampled_ones_do(evaluation: Any, loaded: Any) -> None:
    first, second = (evaluation(seed=seed).measure(loaded.policy)[0] for seed in (0, 100))
    assert first["reward/count"] == second["reward/count"]
    assert first["reward/count @ T=1"] != second["reward/count @ T=1"]


def test_without_an_engine_every_task_is_measured_by_likelihood(evaluation: Any, loaded: Any) -> None:
    measured, shown = evaluation(rollouts=None).measure(loaded.policy)
    assert set(measured) == {"nll/count", "nll/arith"} and not shown


def test_answers_without_a_verdict_leave_the_mean_and_are_counted(evaluation: Any, loaded: Any) -> None:
    silent = make_table({"count": lambda completions, **_: [None] * len(completions)})
    measured, _ = evaluation(rewards=silent, temperatures=(0.0,)).measure(loaded.policy)
    assert "reward/count" not in measured and len(measured) == 2, measured


def test_rows_that_are_too_long_or_have_nothing_to_measure_are_left_out(evaluation: Any, loaded: Any) -> None:
    rows = from_rows([{"prompt": "no answer here"}, {"prompt": "long " * 300, "completion": "x"}])
    measured, shown = evaluation(sources={"rows": rows}, max_length=200).measure(loaded.policy)
    assert measured == {} and not shown
