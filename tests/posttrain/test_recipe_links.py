"""Stages that build on each other: what they start from, read and ask, and what is said where that cannot be."""

from pathlib import Path
from typing import Any

import pytest

from posttrain.errors import ConfigError
from posttrain.lineage import fingerprints, origins, with_answers
from posttrain.recipe import parse_recipe
from posttrain.runs import RunFolder

PROMPTS = [{"path": "prompts.jsonl"}]
SERVER = {"server": "http://127.0.0.1:8000"}
LOCAL = {"path": "/models/strong"}


def recipe(stages: dict[str, Any], teachers: dict[str, Any] | None = None, **keys: Any) -> Any:
    length = {"answers": {}}
    given = {name: {"data": PROMPTS, **length.get(s["algorithm"], {"steps": 1}), **s} for name, s in stages.items()}
    content = {"name": "test", "model": {"path": "/models/student"}, "teachers": teachers or {}, "stages": given}
    return parse_recipe({**content, **keys})


def test_a_stage_starts_from_the_one_before_from_a_named_one_or_from_a_model_of_its_own() -> None:
    made = recipe(
        {
            "first": {"algorithm": "sft"},
            "answers": {"algorithm": "answers"},
            "second": {"algorithm": "sft"},
            "branch": {"algorithm": "sft", "start": "first"},
            "student": {"algorithm": "sft", "model": {"tiny": "qwen3_vl", "tiny_size": "small"}},
            "last": {"algorithm": "sft"},
        },
        {"strong": LOCAL},
    )
    found = origins(made)
    assert {name: origin.parent for name, origin in found.items()} == {
        "first": None,
        "second": "first",
        "branch": "first",
        "student": None,
        "last": "student",
    }
    assert found["branch"].model.path == "/models/student" and found["last"].model.tiny_size == "small"


def test_a_stage_is_another_one_when_what_it_starts_from_reads_or_asks_is_another() -> None:
    stages = {
        "first": {"algorithm": "sft"},
        "answers": {"algorithm": "answers"},
        "distill": {"algorithm": "distill_off_policy", "data": [{"stage": "answers"}]},
        "aside": {"algorithm": "sft", "start": "first"},
    }
    before = fingerprints(recipe(stages, {"strong": LOCAL}))
    other = {**stages, "answers": {"algorithm": "answers", "temperature": 1.0}}
    after = fingerprints(recipe(other, {"strong": LOCAL}))
    assert {name for name in before if before[name] != after[name]} == {"answers", "distill"}
    moved = fingerprints(recipe(stages, {"strong": {**LOCAL, "device": "cuda:1"}}))
    assert moved == before
    stronger = fingerprints(recipe(stages, {"strong": {"path": "/models/stronger"}}))
    assert {name for name in before if before[name] != stronger[name]} == {"answers", "distill"}


def test_answers_of_a_stage_are_read_from_its_folder(tmp_path: Path) -> None:
    made = recipe(
        {"answers": {"algorithm": "answers"}, "sft": {"algorithm": "sft", "data": [{"stage": "answers", "ratio": 2}]}},
        {"strong": LOCAL},
    )
    (data,) = with_answers(made.stages["sft"], RunFolder(tmp_path)).data
    assert data.path == str(tmp_path / "stages" / "answers" / "data" / "answers.jsonl") and data.ratio == 2


ANSWERS = {"algorithm": "answers"}
OFF = {"algorithm": "distill_off_policy"}
ON = {"algorithm": "distill_on_policy"}


@pytest.mark.parametrize(
    ("stages", "teachers", "sentence"),
    [
        ({"d": OFF}, {}, "stages.d asks a teacher: add a 'teachers' section"),
        ({"d": OFF}, {"a": LOCAL, "b": LOCAL}, "say which of a, b in its 'teachers'"),
        (
            {"d": {**OFF, "teachers": {"math": "strnog"}}},
            {"strong": LOCAL},
            "stages.d.teachers.math: 'strnog' is no teacher of this recipe; did you mean 'strong'?",
        ),
        ({"d": OFF}, {"s": SERVER}, "teacher 's' is a server, which gives top-k scores: set top_k, such as 64"),
        ({"d": {**ON, "top_k": 8, "temperature": 2.0}}, {"s": SERVER}, "scores at temperature 1"),
        ({"d": {**ON, "top_k": 8, "support": "student"}}, {"s": SERVER}, "knows its own top k only"),
        ({"d": OFF}, {"s": {**LOCAL, "cache": "scores"}}, "teacher 's' is kept in a cache"),
        ({"a": ANSWERS}, {"s": {"student": True}}, "cannot answer in its own stead"),
        ({"d": OFF}, {"s": {**LOCAL, **SERVER}}, "give exactly one of 'path'"),
        ({"d": OFF}, {"s": {"stage": "d"}}, "teachers.s.stage: 'd' is no stage before 'd' that trains"),
        ({"d": {**OFF, "data": [{"stage": "a"}]}, "a": ANSWERS}, {"s": LOCAL}, "'a' is no earlier stage of answers"),
        ({"d": {"algorithm": "sft", "start": "x"}}, {}, "stages.d.start: 'x' is no earlier stage that trains"),
        ({"d": {"algorithm": "sft", "start": "x", "model": {"path": "y"}}}, {}, "not both"),
    ],
)
def test_what_cannot_be_is_said_in_a_sentence(stages: Any, teachers: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        recipe(stages, teachers)
    assert sentence in str(raised.value)


def test_held_out_rows_are_not_what_a_stage_keeps() -> None:
    with pytest.raises(ConfigError, match=r"evaluation.data.0.stage: what a stage keeps is for training"):
        recipe({"d": {"algorithm": "sft"}}, evaluation={"data": [{"stage": "answers"}]})


def test_an_rl_stage_may_have_a_teacher_beside_its_rewards_and_asks_none_unless_told() -> None:
    silent = recipe({"rl": {"algorithm": "sapo"}})
    assert silent.stages["rl"].distill_coefficient == 0.0
    taught = recipe({"rl": {"algorithm": "sapo", "distill_coefficient": 0.5}}, {"strong": LOCAL})
    assert taught.stages["rl"].beta == 1.0
    with pytest.raises(ConfigError, match=r"stages.rl asks a teacher"):
        recipe({"rl": {"algorithm": "sapo", "teacher_advantage": 0.5}})


@pytest.mark.parametrize(
    ("stage", "sentence"),
    [
        ({"algorithm": "sapo", "teacher_advantage": 1.0, "temperature": 0.5}, "compares"),
        ({"algorithm": "sapo", "teachers": {"default": "strong"}}, "no teacher is asked while distill_coefficient"),
        ({**OFF, "sft_coefficient": 0.1, "temperature": 2.0}, "sft_coefficient counts likelihoods at temperature 1"),
        ({**ON, "support": "student"}, "support: student chooses the tokens of top_k; set top_k"),
        ({**ANSWERS, "min_reward": 1.0}, "min_reward needs rewards: add a 'rewards' section"),
    ],
)
def test_keys_that_would_do_nothing_or_something_else_are_refused(stage: Any, sentence: str) -> None:
    with pytest.raises(ConfigError) as raised:
        recipe({"d": stage}, {"strong": LOCAL})
    assert sentence in str(raised.value)


def test_a_judge_that_moved_and_rewards_that_only_measure_change_no_fingerprint() -> None:
    stages = {"sft": {"algorithm": "sft"}, "sapo": {"algorithm": "sapo"}}

    def with_judge(url: str, model: str = "judge") -> dict[str, str]:
        reward = {"name": "judge_accuracy", "options": {"server": {"url": url, "model": model}}}
        return fingerprints(recipe(stages, rewards={"default": {"rewards": [reward]}}))

    before, moved = with_judge("http://127.0.0.1:8001"), with_judge("http://10.0.0.2:9")
    other = with_judge("http://127.0.0.1:8001", "another")
    assert before == moved
    assert before["sft"] == other["sft"] and before["sapo"] != other["sapo"]
