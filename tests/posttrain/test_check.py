"""`posttrain check`: problems of rows, references and lengths are named before anything is trained."""

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from posttrain.rewards import Score
from typer.testing import CliRunner

from posttrain.check import check_recipe, estimate_table
from posttrain.errors import DataError
from posttrain.recipe import parse_recipe
from tests.waiting import PATIENCE_S


def write_rows(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def talk(question: str, answer: str, **more: Any) -> dict[str, Any]:
    messages = [{"role": "user", "content": question}, {"role": "assistant", "content": answer}]
    return {"messages": messages, **more}


@pytest.fixture
def picture(tmp_path: Path) -> str:
    Image.new("RGB", (64, 64), "red").save(tmp_path / "red.png")
    return "red.png"


@pytest.fixture
def content(tiny_vl: Path, tmp_path: Path, picture: str) -> Callable[..., dict[str, Any]]:
    def make(sft: list[dict[str, Any]], rl: list[dict[str, Any]] | None = None) -> dict[str, Any]:
        stages: dict[str, Any] = {
            "sft": {
                "algorithm": "sft",
                "steps": 10,
                "batch_size": 2,
                "max_length": 60,
                "data": [{"path": write_rows(tmp_path / "sft.jsonl", sft)}],
            }
        }
        if rl is not None:
            stages["rl"] = {
                "algorithm": "sapo",
                "epochs": 2,
                "batch_size": 2,
                "group_size": 4,
                "max_new_tokens": 10,
                "data": [{"path": write_rows(tmp_path / "rl.jsonl", rl), "task": "maths"}],
            }
        return {
            "name": "checked",
            "model": {"path": str(tiny_vl), "dtype": "float32"},
            "rewards": {"maths": {"rewards": [{"name": "math", "options": {"deadline_s": PATIENCE_S}}]}},
            "stages": stages,
        }

    return make


def test_good_data_is_ready_and_its_cost_is_estimated(content: Any, picture: str, tiny_vl: Path) -> None:
    rows = [talk("<image>What colour?", "red", images=[picture]), talk("1+1?", "2")]
    recipe = parse_recipe(content(rows, [{"prompt": "1+2?", "answer": "3"}, {"prompt": "half of 1?", "answer": "0.5"}]))
    result = check_recipe(recipe)
    assert not result.problems
    sft, rl = result.stages
    assert (sft.steps, sft.rows, sft.too_long) == (10, 2, 0) and (rl.steps, rl.rows) == (2, 2)
    assert sft.tokens == pytest.approx(10 * 2 * sft.mean_tokens)
    assert rl.tokens == pytest.approx(2 * 2 * (rl.mean_tokens + 4 * 10))
    from posttrain.model.loading import load_model

    parameters = sum(p.numel() for p in load_model(tiny_vl, dtype=torch.float32).parameters())
    assert sft.gibibytes == pytest.approx(4 * 4 * parameters / 2**30)  # weight, gradient, two moments; float32
    assert len(estimate_table(result.stages).rows) == 2


def test_each_problem_names_its_row_once(content: Any, picture: str) -> None:
    rows = [
        talk("<image>What?", "red", images=["gone.png"]),
        talk("<image>What?", "red"),
        {"question": "no layout"},
        talk("How long? " * 40, "too long"),
        talk("1+1?", "2"),
    ]
    maths = [{"prompt": "1+2?", "answer": "3"}, {"prompt": "x?", "answer": "none of these {"}, {"prompt": "y?"}]
    result = check_recipe(parse_recipe(content(rows, maths)))
    text = "\n".join(result.problems)
    assert "stages.sft: sft.jsonl:1: " in text and "gone.png" in text
    assert "stages.sft: sft.jsonl:2: " in text and "stages.sft: sft.jsonl:3: " in text
    assert "stages.rl: rl.jsonl:2: math: " in text and "stages.rl: rl.jsonl:3: math: " in text
    assert result.stages[0].too_long == 1 and result.stages[0].longest > 60
    assert "rl.jsonl:1:" not in text and "sft.jsonl:4" not in text, "a long row is dropped and counted, no problem"
    assert len(result.problems) == len(set(result.problems)) == 5, text


@dataclass(frozen=True)
class Generous:
    """Pays for anything."""

    def __call__(self, completion: Any, reference: Any) -> Score:
        return Score(value=1.0)

    def perfect_answer(self, reference: Any) -> str:
        return f"<answer>{reference['answer']}</answer>"


def test_a_wrong_answer_that_earns_full_marks_is_named_with_its_row(content: Any) -> None:
    recipe = content([talk("1+1?", "2")], [{"prompt": "1+2?", "answer": "3"}, {"prompt": "2+2?", "answer": "4"}])
    recipe["rewards"]["maths"] = {"rewards": [{"name": f"{Generous.__module__}:Generous"}]}
    sys.modules[Generous.__module__] = sys.modules[__name__]
    problems = check_recipe(parse_recipe(recipe)).problems
    assert "stages.rl: rl.jsonl:1: " in problems[0] and "the wrong answer '<answer>3739</answer>'" in problems[0]
    assert "earns full marks; right is '<answer>3</answer>'" in problems[0]
    assert any("rl.jsonl:2" in problem for problem in problems)


def test_groups_that_are_smaller_than_min_scored_are_refused(content: Any, tiny_vl: Path, tmp_path: Path) -> None:
    from posttrain.errors import ConfigError
    from posttrain.pipeline import run_recipe

    recipe = content([talk("1+1?", "2")], [{"prompt": "1+2?", "answer": "3"}])
    recipe["rewards"]["maths"]["min_scored"] = 5
    recipe |= {"stages": {"rl": recipe["stages"]["rl"]}, "output_dir": str(tmp_path / "run")}
    with pytest.raises(ConfigError, match="rewards.maths.min_scored is 5, and the groups of stage 'rl' have 4"):
        run_recipe(parse_recipe(recipe))


def test_a_missing_picture_of_an_rl_row_is_one_problem(content: Any) -> None:
    rl = [{"prompt": "<image>1+2?", "answer": "3", "images": ["gone.png"]}]
    result = check_recipe(parse_recipe(content([talk("1+1?", "2")], rl)))
    assert len(result.problems) == 1 and "gone.png" in result.problems[0]


def test_a_stage_in_which_every_row_is_too_long_is_a_problem(content: Any) -> None:
    result = check_recipe(parse_recipe(content([talk("How long? " * 40, "too long")] * 2)))
    assert result.problems == ["stages.sft: every row looked at exceeds max_length 60"]


def test_rows_of_a_task_without_rewards_and_a_stage_without_any_are_problems(content: Any) -> None:
    recipe = content([talk("1+1?", "2")], [{"prompt": "1+2?", "answer": "3", "task": "poems"}])
    assert check_recipe(parse_recipe(recipe)).problems == [
        "stages.rl: rl.jsonl:1 is of task 'poems', which has no rewards"
    ]
    assert check_recipe(parse_recipe({**recipe, "rewards": {}})).problems == [
        "stages.rl: sapo needs a 'rewards' section"
    ]


def test_many_problems_are_cut_and_counted(content: Any) -> None:
    result = check_recipe(parse_recipe(content([{"question": str(i)} for i in range(30)])))
    assert len(result.problems) == 21 and result.problems[-1] == "and 10 more"


def test_only_the_rows_that_are_asked_for_are_looked_at(content: Any) -> None:
    rows = [talk("1+1?", "2"), {"question": "no layout"}]
    recipe = parse_recipe(content(rows))
    assert not check_recipe(recipe, rows=1).problems and check_recipe(recipe, rows=2).problems


def test_problems_end_the_command_with_exit_code_1(content: Any, tmp_path: Path) -> None:
    import yaml

    from posttrain.cli import app

    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(content([talk("<image>What?", "red", images=["gone.png"])])))
    result = CliRunner().invoke(app, ["check", str(file)])
    assert result.exit_code == 1
    assert "problem stages.sft: sft.jsonl:1: " in result.output and "ready" not in result.output


def test_a_tiny_model_can_be_checked_without_a_folder() -> None:
    stage = {"algorithm": "sft", "steps": 1, "data": [{"scenes": {"task": "count"}}]}
    recipe = {"name": "x", "model": {"tiny": "qwen2_vl", "dtype": "float32"}, "stages": {"sft": stage}}
    assert not check_recipe(parse_recipe(recipe), rows=2).problems


def test_a_reference_far_behind_the_rows_that_are_looked_at_is_checked_all_the_same(content: Any) -> None:
    rl = [{"prompt": "1+2?", "answer": "3"}] * 99 + [{"prompt": "x?", "answer": "]["}]
    result = check_recipe(parse_recipe(content([talk("1+1?", "2")], rl)), rows=2)
    (problem,) = result.problems
    assert problem.startswith("stages.rl: rl.jsonl:100: math: ")
    assert [stage.references for stage in result.stages] == [0, 100]


def test_references_take_a_bounded_time_and_those_of_drawn_rows_are_not_all_scored(
    content: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("posttrain.check._REFERENCES_S", 0.0)
    recipe = content([talk("1+1?", "2")], [{"prompt": "1+2?", "answer": "3"}] * 99)
    assert [stage.references for stage in check_recipe(parse_recipe(recipe), rows=2).stages] == [0, 2]
    monkeypatch.undo()
    recipe["stages"]["rl"]["data"] = [{"scenes": {"task": "count", "size": 500}}]
    recipe["rewards"] = {"count": {"rewards": [{"name": "count"}]}}
    assert [stage.references for stage in check_recipe(parse_recipe(recipe), rows=2).stages] == [0, 2]


@pytest.fixture
def asking(content: Any, tiny_vl: Path, tmp_path: Path) -> Callable[..., list[str]]:
    """Problems of a recipe with one stage of answers."""

    def check(rows: list[dict[str, Any]], made: dict[str, Any], rewards: Any = None, **stage: Any) -> list[str]:
        recipe = content([talk("1+1?", "2")])
        data = [{"path": write_rows(tmp_path / "asked.jsonl", rows), "task": "maths"}]
        recipe["stages"] = {"ask": {"algorithm": "answers", "data": data, **stage}}
        recipe["teachers"] = made
        if rewards is not None:
            recipe["rewards"] = rewards
        return list(check_recipe(parse_recipe(recipe)).problems)

    return check


SUMS = [{"prompt": "1+2?", "answer": "3"}, {"prompt": "2+2?", "answer": "4"}]


def test_a_stage_of_answers_with_a_teacher_that_is_there_is_ready(asking: Any, tiny_vl: Path) -> None:
    assert asking(SUMS, {"big": {"path": str(tiny_vl)}}, min_reward=1.0) == []


def test_teachers_of_answers_that_are_not_there_are_problems(asking: Any, tiny_vl: Path, tmp_path: Path) -> None:
    import shutil

    (tmp_path / "empty").mkdir()
    copy = shutil.copytree(tiny_vl, tmp_path / "cut")
    weights = next(copy.glob("*.safetensors"))
    weights.write_bytes(weights.read_bytes()[:-9])
    shutil.copytree(tiny_vl, tmp_path / "mute", ignore=shutil.ignore_patterns("*.jinja"))
    away = {"server": "http://127.0.0.1:9", "retries": 0}
    for name, section, said in [
        ("gone", {"path": str(tmp_path / "empty")}, "is not a checkpoint"),
        ("cut", {"path": str(copy)}, "is damaged or cannot be read"),
        ("mute", {"path": str(tmp_path / "mute")}, "has no chat template"),
        ("away", away, "127.0.0.1:9"),
    ]:
        problem = "".join(asking(SUMS, {name: section}))
        assert problem.startswith(f"stages.ask: teacher '{name}'") and said in problem, problem


def test_a_solver_must_be_there_and_have_something_to_play_in(asking: Any) -> None:
    problems = asking(SUMS[:1], {"scripted": {"solver": "zoomm"}})
    assert len(problems) == 2 and problems[0] == (
        "stages.ask: asked.jsonl:1 is of task 'maths', which has no environment for solver 'scripted' to play in; add "
        "it to the recipe's 'environments'"
    )
    assert problems[1].startswith("stages.ask: teacher 'scripted': there is no solver 'zoomm'")


def test_only_the_teachers_that_are_asked_are_looked_at(asking: Any, tiny_vl: Path) -> None:
    teachers = {"big": {"path": str(tiny_vl)}, "away": {"server": "http://127.0.0.1:9", "retries": 0}}
    assert asking(SUMS, teachers, teachers={"default": "big"}) == []


def test_rows_that_no_teacher_answers_and_fields_that_no_row_can_hold_are_problems(asking: Any, tiny_vl: Path) -> None:
    rows = [*SUMS, {"prompt": "Why?", "answer": "so", "task": "poems"}, {"prompt": "3+3?", "answer": "6", "made_by": 1}]
    problems = asking(rows, {"big": {"path": str(tiny_vl)}}, teachers={"maths": "big"})
    assert problems == [
        "stages.ask: asked.jsonl:3 is of task 'poems', which no teacher answers; teachers are given for: maths"
    ], "and poems need no rewards, where nothing depends on them"


def test_a_min_reward_that_no_answer_can_reach_is_a_problem(asking: Any, tiny_vl: Path) -> None:
    teachers = {"big": {"path": str(tiny_vl)}}
    penalised = {"maths": {"rewards": [{"name": "math"}, {"name": "length", "weight": 0.5}]}}
    assert asking(SUMS, teachers, penalised, min_reward=1.0) == []
    (problem,) = asking(SUMS, teachers, penalised, min_reward=1.2)
    assert problem == (
        "stages.ask: min_reward 1.2 is more than a perfect answer of task 'maths' earns, 1: nothing would be kept"
    )
    own = {"maths": {"rewards": [{"name": f"{__name__}:five"}]}}
    sys.modules[__name__] = sys.modules[five.__module__]
    assert asking(SUMS, teachers, own, min_reward=4.0) == [], "a function may give anything"
    (problem,) = asking([{**SUMS[0], "task": "poems"}], teachers, penalised, min_reward=1.0)
    assert problem == "stages.ask: asked.jsonl:1 is of task 'poems', which has no rewards"


def five(completions: Any, **columns: Any) -> list[float]:
    return [5.0 for _ in completions]


def test_rows_with_which_no_episode_can_start_are_problems(content: Any, tmp_path: Path) -> None:
    rl = [{"prompt": "1+2?", "answer": "3"}, {"prompt": "1+3?", "answer": "4", "task": "played"}]
    recipe = content([talk("1+1?", "2")], rl)
    recipe["rewards"]["played"] = recipe["rewards"]["maths"]
    recipe["environments"] = {"played": {"name": f"{__name__}:Picky"}}
    sys.modules[__name__] = sys.modules[Picky.__module__]
    assert check_recipe(parse_recipe(recipe)).problems == ["stages.rl: rl.jsonl:2: wants a board"]


class Picky:
    """An environment that cannot start with any row."""

    def validate(self, example: Any) -> None:
        raise DataError(f"{example.id}: wants a board")

    def start(self, example: Any) -> Any: ...

    def step(self, reply: Any) -> Any: ...

    def close(self) -> None: ...
