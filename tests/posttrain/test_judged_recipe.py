"""A SAPO recipe whose batches mix rules, a judge, and a rule with a judge behind it, run end to end."""

import json
from collections import defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.config import Recipe
from posttrain.pipeline import run_recipe
from tests.rewards.judge_server import Asked, JudgeServerFake

STEPS, PROMPTS, GROUP = 2, 6, 4
TASKS = ("arith", "count", "repetition")


@pytest.fixture
def judge() -> Iterator[JudgeServerFake]:
    server = JudgeServerFake()
    yield server
    server.stop()


def says_what_it_thinks(asked: Asked) -> str:
    """Prose, which is no verdict, about every answer of an odd length; else a grade from 5 to 9, or "correct"."""
    what = "response" if "[begin response" in asked.text else "answer"
    said = asked.judged(what)
    if len(said) % 2:
        return "It is a matter of taste."
    return asked.verdict(helpfulness=5 + len(said) % 5) if what == "response" else asked.verdict(correct=True)


def content(judge: JudgeServerFake, busy_reward: str) -> dict[str, Any]:
    """Three tasks, one for each way to a score; nothing is tried twice."""
    server = {"url": judge.url, "retries": 0, "backoff_s": 0.0, "timeout_s": 120.0, "verdict_tries": 1}
    rubric = {"server": server, "axes": {"helpfulness": 1.0}}
    accuracy = {"name": "judge_accuracy", "server": server, "extract": "whole"}
    behind = {"rule": "exact_match", "judge": accuracy}
    return {
        "arith": {"rewards": [{"name": "judge_rubric", "label": "graded", "options": rubric}], "min_scored": 1},
        "count": {"rewards": [{"name": "rule_then_judge", "label": "right", "options": behind}], "min_scored": 1},
        "repetition": {"rewards": [{"name": busy_reward}, {"name": "repetition", "options": {"n": 1}}]},
    }


@pytest.fixture
def run(
    judge: JudgeServerFake, busy_reward: str, make_recipe: Callable[..., Recipe], tools: Any, tmp_path: Path
) -> Callable[[], tuple[list[dict[str, Any]], list[dict[str, Any]]]]:
    """Runs the recipe; gives the metrics of its steps, and all of its trajectories."""

    def go() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
        sources = [{"scenes": {"task": task, "size": 40}} for task in TASKS[:2]]
        stage = tools.sapo_stage(
            steps=STEPS,
            batch_size=PROMPTS,
            group_size=GROUP,
            zero_signal="keep",
            record_trajectories=PROMPTS * GROUP,
            data=[*sources, {"prompts": {"kind": "repetition", "size": 40}}],
        )
        recipe = make_recipe(tmp_path / "run", {"sapo": stage}, rewards=content(judge, busy_reward))
        folder = run_recipe(recipe).folder / "stages" / "sapo"
        lines = (folder / "trajectories.jsonl").read_text().splitlines()
        return tools.metrics_of(folder), [json.loads(line) for line in lines]

    return go


def test_three_tasks_and_a_judge_train_together_and_what_is_unscored_is_in_no_mean(
    judge: JudgeServerFake, run: Callable[[], Any]
) -> None:
    judge.say = says_what_it_thinks
    steps, trajectories = run()
    assert [row["step"] for row in steps] == list(range(STEPS)) and len(trajectories) == STEPS * PROMPTS * GROUP
    num_unscored = 0
    for row in steps:
        said = [t for t in trajectories if t["step"] == row["step"]]
        rewards: dict[str, list[float]] = defaultdict(list)
        for trajectory in said:
            if trajectory["reward"] is None:
                num_unscored += 1
                assert trajectory["advantage"] == 0.0 and "no verdict" in trajectory["reason"]
            else:
                rewards[trajectory["task"]].append(trajectory["reward"])
        for task in TASKS:
            assert row[f"reward/{task}"] == pytest.approx(sum(rewards[task]) / len(rewards[task]))
        everything = [value for values in rewards.values() for value in values]
        assert row["reward"] == pytest.approx(sum(everything) / len(everything))
        assert row["unscored_frac"] == pytest.approx(1 - len(everything) / len(said))
        assert {"part/graded/helpfulness", "part/right/asked", "part/repetition", "loss"} <= row.keys()
        assert row["judge/failed_frac"] == pytest.approx(row["judge/failed"] / row["judge/asked"])
    assert num_unscored > 0, "the judge talks about some answers without giving a verdict"
    assert num_unscored == sum(row["judge/failed"] for row in steps)
    assert len(judge.asked) == sum(row["judge/requests"] for row in steps), "each step counts what it asked itself"


def test_a_judge_that_is_away_leaves_the_tasks_that_have_rules(judge: JudgeServerFake, run: Callable[[], Any]) -> None:
    judge.stop()
    steps, trajectories = run()
    for row in steps:
        assert row["judge/failed_frac"] == 1.0 and row["thin_group_frac"] > 0.5
        assert "reward/arith" not in row and row["reward"] == pytest.approx(row["reward/repetition"])
    assert all(t["reward"] is None for t in trajectories if t["task"] == "arith")
    assert all(t["reward"] is not None for t in trajectories if t["task"] == "repetition")
