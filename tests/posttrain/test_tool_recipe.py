"""Thinking with images from a recipe: demonstrations, a cold start, tool RL, and what the run leaves behind."""

import json
import random
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from posttrain import SAPOConfig, SAPOTrainer
from posttrain.config import EnvironmentSection
from posttrain.data import SceneSource, SceneSpec
from posttrain.environments import ToolEnvironment
from posttrain.errors import ConfigError, DataError
from posttrain.pipeline import run_recipe
from posttrain.recipe import parse_recipe
from posttrain.rollout.batches import RolloutBatches

from .conftest import MachineDied, equal_weights, metrics_of, sapo_stage, sft_stage

ZOOM = {"name": "image_zoom_in_tool", "factor": 16, "crop_size": [64, 64]}
SCENES = [{"scenes": {"task": "zoom", "size": 2}}]


def tool_recipe(content: Callable[..., dict[str, Any]], folder: Path, **keys: Any) -> dict[str, Any]:
    """Two scenes, learnt by heart by a model of one layer, so that RL has calls to make."""
    muon = {"optimizer": "muon", "learning_rate": 1e-2, "checkpoint_every": 0, "batch_size": 4}
    stages = {
        "looks": {"algorithm": "answers", "data": SCENES, "min_reward": 1.0},
        "cold_start": sft_stage(steps=60, data=[{"stage": "looks"}], **muon),
        "tool_rl": sapo_stage(
            steps=2, max_new_tokens=90, data=SCENES, zero_signal="keep", record_trajectories=4, mini_batches=1
        ),
    }
    whole: dict[str, Any] = {
        "teachers": {"solver": {"solver": "zoom"}},
        "environments": {
            "zoom": {"name": "tools", "options": {"tools": [ZOOM], "announce": False, "overview": 4}, "max_turns": 3}
        },
        "rewards": {"zoom": {"rewards": [{"name": "exact_match"}], "truncated": "unscored"}},
        "evaluation": {"data": SCENES, "num_examples": 2, "max_new_tokens": 90, "temperatures": [0.0]},
    }
    return content(folder, stages, **{**whole, **keys})


def check_run(folder: Path) -> None:
    """What a run of the recipe has left: episodes with crops, in the data, in training, and in the report."""
    rows = [json.loads(line) for line in (folder / "stages/looks/data/answers.jsonl").read_text().splitlines()]
    assert len(rows) == 2 and all(len(row["images"]) == 2 for row in rows)
    steps = metrics_of(folder / "stages/tool_rl")
    assert all(step["tools/calls_mean"] > 0.5 and step["turns/mean"] > 1.2 for step in steps), "it learnt to look"
    assert all(step["environment_error_frac"] == 0 for step in steps)
    after = json.loads((folder / "stages/tool_rl/result.json").read_text())["after"]
    assert after["calls/zoom"] > 0.4 and "reward/zoom" in after
    lines = (folder / "stages/tool_rl/trajectories.jsonl").read_text().splitlines()
    episodes = [row for row in map(json.loads, lines) if len(row.get("turns", ())) > 1]
    assert episodes and all(
        len(row["images"]) > 1 for row in episodes if not any("error" in str(t) for t in row["turns"])
    )
    assert "image_zoom_in_tool" in (folder / "report.html").read_text()


def test_demonstrations_cold_start_and_tool_rl_run_from_a_recipe(
    tmp_path: Path, recipe_content: Callable[..., dict[str, Any]]
) -> None:
    run_recipe(parse_recipe(tool_recipe(recipe_content, tmp_path)))
    check_run(tmp_path)
    assert (tmp_path / "report.html").read_text().count("img_idx") > 0


def test_tool_rl_that_dies_goes_on_to_the_same_weights(
    tmp_path: Path, recipe_content: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """With `repeatable`: who samples beside whom then does not depend on when tools answer."""

    def recipe(name: str) -> Any:
        content = tool_recipe(recipe_content, tmp_path / name, engine={"kind": "transformers", "repeatable": True})
        content["stages"]["tool_rl"] |= {"steps": 3, "group_size": 4, "checkpoint_every": 1}
        return parse_recipe(content)

    run_recipe(recipe("whole"))
    step, sleeps = ToolEnvironment.step, iter(lambda: 0.02 * random.random(), None)

    def slow(self: Any, reply: Any) -> Any:
        time.sleep(next(sleeps))  # answers come in another order than before
        return step(self, reply)

    batch = RolloutBatches.batch

    def dying(self: Any, number: int) -> Any:
        if number == 2:
            raise MachineDied
        return batch(self, number)

    monkeypatch.setattr(ToolEnvironment, "step", slow)
    with monkeypatch.context() as patch:
        patch.setattr(RolloutBatches, "batch", dying)
        with pytest.raises(MachineDied):
            run_recipe(recipe("cut"))
    assert not (tmp_path / "cut/stages/tool_rl/final").exists()
    run_recipe(recipe("cut"))
    stages = [tmp_path / name / "stages" / "tool_rl" for name in ("whole", "cut")]
    assert equal_weights(*(stage / "final" for stage in stages))
    whole, cut = (metrics_of(stage) for stage in stages)
    assert all(row["turns/mean"] > 1.2 for row in whole) and cut == whole


@pytest.mark.vllm
def test_the_same_recipe_runs_with_vllm(tmp_path: Path, recipe_content: Callable[..., dict[str, Any]]) -> None:
    pytest.importorskip("vllm")
    engine = {"kind": "vllm", "max_model_len": 512, "max_images": 4, "max_num_seqs": 8}
    run_recipe(parse_recipe(tool_recipe(recipe_content, tmp_path, engine=engine)))
    check_run(tmp_path)


def test_an_environment_that_never_works_stops_the_run_with_its_reason(
    tmp_path: Path, recipe_content: Callable[..., dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain.environments import ToolEnvironment

    def start(self: Any, example: Any) -> Any:
        raise RuntimeError("the tool server is not there")

    monkeypatch.setattr(ToolEnvironment, "start", start)
    content = tool_recipe(recipe_content, tmp_path)
    content["stages"] = {"tool_rl": content["stages"]["tool_rl"]}
    del content["evaluation"], content["teachers"]
    with pytest.raises(DataError, match="episodes of this step broke down; the first: .*the tool server is not there"):
        run_recipe(parse_recipe(content))


@pytest.mark.parametrize(
    ("keys", "sentence"),
    [
        ({"environments": {"zoom": {"name": "toools"}}}, "environments.zoom: there is no environment 'toools'"),
        (
            {"environments": {"zoom": {"name": "tools", "options": {"tools": ["image_zoom"]}}}},
            "there is no tool 'image_zoom'; did you mean 'image_zoom_in_tool'",
        ),
        (
            {"environments": {"zoom": {"name": "tools", "options": {"tools": []}, "timeout_s": 60}}},
            "timeout_s 60 would end .* turn_timeout_s 90",
        ),
        ({"engine": {"kind": "server"}}, "kind 'server' and 'servers'"),
        ({"engine": {"kind": "vllm", "tensor_parallel_size": 2}}, "engine.tensor_parallel_size"),
        ({"teachers": {"solver": {"solver": "zoom", "path": "x"}}}, "give exactly one of"),
    ],
)
def test_what_cannot_be_used_is_one_sentence(
    keys: dict[str, Any], sentence: str, tmp_path: Path, recipe_content: Callable[..., dict[str, Any]]
) -> None:
    with pytest.raises(ConfigError, match=sentence):
        run_recipe(parse_recipe(tool_recipe(recipe_content, tmp_path, **keys)))


def test_a_program_cannot_be_asked_for_logits(tmp_path: Path, recipe_content: Callable[..., dict[str, Any]]) -> None:
    content = tool_recipe(recipe_content, tmp_path)
    content["stages"]["tool_rl"]["distill_coefficient"] = 0.5
    with pytest.raises(ConfigError, match="teacher 'solver' is a program, which has no logits"):
        parse_recipe(content)


def test_the_order_of_rows_does_not_depend_on_the_folder_they_lie_in(tmp_path: Path) -> None:
    from posttrain.build import make_mixture
    from posttrain.config import DataSection

    rows = "".join(json.dumps({"prompt": f"{k}?", "answer": str(k)}) + "\n" for k in range(50))
    orders = []
    for folder in ("one", "another"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "rows.jsonl").write_text(rows)
        mixture = make_mixture([DataSection(path=str(tmp_path / folder / "rows.jsonl"))], seed=3)  # type: ignore[call-arg]
        orders.append([pick.row for pick in mixture.batch(0, 20)])
    assert orders[0] == orders[1]


def test_a_trainer_takes_an_environment_as_a_section_or_as_a_factory(tmp_path: Path, tiny_vl: Path) -> None:
    options = {"tools": [ZOOM], "announce": False, "overview": 4}
    given: dict[str, Any] = {
        "section": EnvironmentSection(name="tools", options=options, max_turns=2),  # type: ignore[call-arg]
        "factory": partial(ToolEnvironment, **options),
    }
    for name, environment in given.items():
        args = SAPOConfig(
            output_dir=str(tmp_path / name), steps=1, batch_size=2, group_size=2, max_new_tokens=8, zero_signal="keep"
        )
        trainer = SAPOTrainer(
            str(tiny_vl),
            "exact_match",
            SceneSource(SceneSpec(task="zoom", size=4)),
            args,
            environments={"zoom": environment},
            model_section={"dtype": "float32"},
        )
        trainer.train()
        assert metrics_of(tmp_path / name / "stages" / "sapo")[0]["turns/mean"] == 1.0
