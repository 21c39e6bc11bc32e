"""Environments of users before a run: what they raise is a sentence, they are closed, and each must meet rows."""

import asyncio
import json
import logging
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain import SAPOConfig, SAPOTrainer
from posttrain.check import check_recipe
from posttrain.environments import Done, Opening, Reply
from posttrain.errors import ConfigError, DataError
from posttrain.pipeline import run_recipe
from posttrain.played_tasks import check_tasks
from posttrain.recipe import parse_recipe
from posttrain.records import Example
from tests.waiting import HANG_S

LOG: list[str] = []
LOOPS: list[asyncio.AbstractEventLoop] = []
LET_GO = threading.Event()


class Room:
    """Fails where it is told to."""

    def __init__(self, *, mode: str = "") -> None:
        self._mode = mode
        if mode == "init":
            raise RuntimeError("no lights")
        LOG.append("made")

    def validate(self, example: Example) -> None:
        if self._mode == "validate":
            example.reference["board"]
        if self._mode == "picky" and "2" in example.id:
            raise DataError(f"{example.id}: wants a board")

    def start(self, example: Example) -> Any:
        LOG.append("started")
        if self._mode == "start":
            raise RuntimeError("no floor")
        if self._mode == "hang":
            LET_GO.wait(HANG_S)
        return None if self._mode == "nothing" else Opening(messages=example.messages)

    def step(self, reply: Reply) -> Done:
        return Done()

    def close(self) -> Any:
        LOG.append("closed")


class AsyncRoom(Room):
    async def start(self, example: Example) -> Opening:  # type: ignore[override]
        LOOPS.append(asyncio.get_running_loop())
        return super().start(example)

    async def close(self) -> None:
        assert asyncio.get_running_loop() is LOOPS[-1], "what start has made there must be closed there"
        super().close()


@pytest.fixture(autouse=True)
def _importable() -> Iterator[None]:
    """By the name under which a recipe finds it."""
    sys.modules[__name__] = sys.modules[Room.__module__]
    LOG.clear()
    LOOPS.clear()
    LET_GO.clear()
    yield
    LET_GO.set()


@pytest.fixture
def content(tiny_vl: Path, tmp_path: Path) -> Callable[..., dict[str, Any]]:
    def make(*, task: str = "look", kind: str = "Room", mode: str = "", rows: int = 3, **keys: Any) -> dict[str, Any]:
        file = tmp_path / "rows.jsonl"
        lines = [{"prompt": f"{i}+1?", "answer": str(i + 1)} for i in range(rows)]
        file.write_text("".join(json.dumps(line) + "\n" for line in lines))
        stage = {"algorithm": "sapo", "steps": 1, "batch_size": 1, "group_size": 2, "max_new_tokens": 4}
        return {
            "name": "rooms",
            "output_dir": str(tmp_path / "run"),
            "model": {"path": str(tiny_vl), "dtype": "float32"},
            "environments": {task: {"name": f"{__name__}:{kind}", "options": {"mode": mode}, **keys}},
            "rewards": {"default": {"rewards": [{"name": "exact_match"}]}},
            "stages": {"rl": {**stage, "data": [{"path": str(file), "task": "look"}]}},
        }

    return make


@pytest.mark.parametrize("kind", ["Room", "AsyncRoom"])
def test_environments_that_work_are_each_closed_where_they_were_started(content: Any, kind: str) -> None:
    assert check_recipe(parse_recipe(content(kind=kind))).problems == []
    assert LOG.count("started") == LOG.count("closed") == 3


@pytest.mark.parametrize(
    ("mode", "sentence"),
    [
        ("validate", "stages.rl: rows.jsonl:1: the environment failed: KeyError: 'board'"),
        ("start", "stages.rl: rows.jsonl:1: the environment failed: RuntimeError: no floor"),
        ("nothing", "stages.rl: rows.jsonl:1: the environment opened with NoneType, wanted an Opening"),
    ],
)
def test_what_an_environment_raises_is_one_sentence_of_its_source(content: Any, mode: str, sentence: str) -> None:
    assert check_recipe(parse_recipe(content(mode=mode))).problems == [sentence]
    assert LOG.count("started") == LOG.count("closed") <= 1


def test_an_environment_that_hangs_does_not_hang_the_check(content: Any) -> None:
    problems = check_recipe(parse_recipe(content(mode="hang", timeout_s=0.3))).problems
    assert problems == ["stages.rl: rows.jsonl:1: the environment gave no answer within 0.3 s"]


def test_a_row_that_an_environment_refuses_is_named_and_the_others_are_measured(content: Any) -> None:
    result = check_recipe(parse_recipe(content(mode="picky")))
    assert result.problems == ["stages.rl: rows.jsonl:2: wants a board"] and LOG.count("started") == 2


def test_an_environment_that_cannot_be_made_is_a_sentence(content: Any) -> None:
    sentence = r"environments.look: '.*:Room' cannot be made: RuntimeError: no lights"
    for used in (check_recipe, run_recipe):
        with pytest.raises(ConfigError, match=sentence):
            used(parse_recipe(content(mode="init")))


def test_held_out_rows_are_asked_about_too(content: Any) -> None:
    recipe = content(mode="picky")
    recipe["evaluation"] = {"data": [{"path": recipe["stages"]["rl"]["data"][0]["path"], "task": "look"}]}
    assert "evaluation: rows.jsonl:2: wants a board" in check_recipe(parse_recipe(recipe)).problems


def test_a_stage_asks_about_its_first_rows_before_it_samples(content: Any, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="^rows.jsonl:2: wants a board$"):
        run_recipe(parse_recipe(content(mode="picky")))
    with pytest.raises(DataError, match="^rows.jsonl:1: the environment failed: KeyError: 'board'$"):
        run_recipe(parse_recipe(content(mode="validate") | {"output_dir": str(tmp_path / "other")}))
    assert "started" not in LOG


def test_a_python_trainer_asks_about_its_first_rows_when_it_is_made(tiny_vl: Path, tmp_path: Path) -> None:
    rows = [{"prompt": f"{i}+1?", "answer": str(i + 1), "id": f"row{i}"} for i in range(3)]
    given: dict[str, Any] = {"reward_funcs": "exact_match", "train_dataset": {"look": rows}}
    args = SAPOConfig(output_dir=str(tmp_path), steps=1, batch_size=1, group_size=2, max_new_tokens=4)
    section = {"dtype": "float32"}
    picky = {"name": f"{__name__}:Room", "mode": "picky"}
    with pytest.raises(DataError, match="wants a board"):
        SAPOTrainer(str(tiny_vl), args=args, model_section=section, environments={"look": picky}, **given)
    with pytest.raises(ConfigError, match="environments.lok: no row has the task 'lok'; did you mean 'look'"):
        SAPOTrainer(str(tiny_vl), args=args, model_section=section, environments={"lok": Room}, **given)
    SAPOTrainer(str(tiny_vl), args=args, model_section=section, environments={"look": Room, "default": Room}, **given)


def test_an_environment_whose_task_no_row_has_is_refused(content: Any) -> None:
    sentence = "environments.lok: no row has the task 'lok'; did you mean 'look'?"
    assert check_recipe(parse_recipe(content(task="lok"))).problems == [sentence]
    with pytest.raises(ConfigError, match=sentence.replace("?", r"\?")):
        run_recipe(parse_recipe(content(task="lok")))


def test_an_environment_for_every_other_task_needs_no_row_of_that_name(content: Any) -> None:
    assert check_recipe(parse_recipe(content(task="default"))).problems == []


def test_rows_may_say_their_task_themselves_and_held_out_ones_count(content: Any, tmp_path: Path) -> None:
    recipe = content(task="shape")
    (tmp_path / "rows.jsonl").write_text(
        json.dumps({"prompt": "a", "answer": "b"}) + "\n" + json.dumps({"prompt": "a", "answer": "b", "task": "shape"})
    )
    assert check_recipe(parse_recipe(recipe)).problems == []
    recipe = content(task="count")
    recipe["evaluation"] = {"data": [{"scenes": {"task": "count", "size": 2}}]}
    assert check_recipe(parse_recipe(recipe)).problems == []


def test_where_not_every_row_can_be_looked_at_it_is_a_warning(
    caplog: pytest.LogCaptureFixture,
) -> None:
    class Rows:
        """A source of a caller's own, and long."""

        def __len__(self) -> int:
            return 10**9

        def __getitem__(self, index: int) -> Example:
            return Example(id=str(index), task="look", messages=({"role": "user", "content": "?"},))

    def gone() -> Rows:
        raise DataError("no such file")

    with caplog.at_level(logging.WARNING):
        check_tasks(["lok", "default"], [Rows])
    assert "environments.lok: none of the rows that were looked at has the task 'lok'" in caplog.text
    caplog.clear()
    check_tasks(["look"], [Rows, Rows])
    check_tasks(["lok"], [Rows, gone])
    assert not caplog.text, "a file that is gone is named by the stage that wants it"


def test_nothing_is_opened_where_no_environment_has_a_task_of_its_own() -> None:
    def opened() -> Any:
        raise AssertionError("opened")

    check_tasks([], [opened])
    check_tasks(["default"], [opened])
