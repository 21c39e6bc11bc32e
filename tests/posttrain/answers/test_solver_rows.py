"""Rows that a solver cannot play cost themselves alone, and mistakes are read without being learnt."""

import json
import logging
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from posttrain.answers import Answer, SolverAnswers, ZoomSolver, make_solver
from posttrain.answers.checking import row_problem, solver_problem
from posttrain.answers.one_turn import OneTurnAnswers
from posttrain.answers.rows import conversation
from posttrain.config import AnswersStage, DataSection
from posttrain.data import from_rows
from posttrain.environments import Done, Opening, Reply, ToolEnvironment
from posttrain.errors import ConfigError, DataError
from posttrain.recipe import parse_recipe
from posttrain.records import Example, Turn
from posttrain.rollout.engine import Sampling
from posttrain.rollout.episode import Limits
from posttrain.rollout.rolling_batch import TaskEnvironment

BOX = [250, 250, 375, 375]


def zoom_rows(*boxes: Any) -> Any:
    image = Image.new("RGB", (256, 256), "red")
    rows = [{"prompt": "<image>What colour?", "images": [image], "answer": "red", "bbox_2d": box} for box in boxes]
    return from_rows([{key: value for key, value in row.items() if value is not None} for row in rows])


def by_zooming(**options: Any) -> SolverAnswers:
    task = TaskEnvironment(make=lambda: ToolEnvironment(tools=["image_zoom_in_tool"]), limits=Limits(max_turns=4))
    return SolverAnswers(name="oracle", identity="1", solver=ZoomSolver(**options), environments={"default": task})


def played(solver: SolverAnswers, source: Any, seed: int = 0) -> list[Answer]:
    sampling = Sampling(max_new_tokens=8, seed=seed)
    return [
        answer
        for (answer,) in solver.answer([source[i] for i in range(len(source))], n=1, sampling=sampling, thinking=None)
    ]


def test_a_row_that_the_solver_cannot_play_is_dropped_counted_and_named(
    run: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    source = zoom_rows(BOX, BOX, None, [375, 375, 250, 250], [1500, 1500, 1600, 1600], BOX)
    with caplog.at_level(logging.WARNING):
        made = run(tmp_path, by_zooming(), sources={"rows": source}, batch_size=6)
    assert made.counts["kept"] == 3 and made.counts["broken"] == 3
    for place, why in ((2, "needs 'bbox_2d'"), (3, "has no area"), (4, "lies outside of the image")):
        said = [message for message in caplog.messages if message.startswith(f"rows[{place}] broke down: ")]
        assert len(said) == 1 and why in said[0], caplog.messages
    assert len(made.path.read_text().splitlines()) == 3


def test_a_row_that_its_environment_refuses_is_broken_too(tools: Any) -> None:
    class Picky:
        def validate(self, example: Example) -> None:
            if example.id == "rows[1]":
                raise DataError(f"{example.id}: wants a board")

        def start(self, example: Example) -> Opening:
            return Opening(messages=example.messages)

        def step(self, reply: Reply) -> Done:
            return Done()

        def close(self) -> None: ...

    task = TaskEnvironment(make=Picky)
    solver = SolverAnswers(name="s", identity="1", solver=lambda *_: "said", environments={"default": task})
    good, refused = played(solver, tools.sums(2))
    assert good.finished and refused.episode is not None and refused.episode.error == "rows[1]: wants a board"


def test_an_environment_that_cannot_be_made_breaks_its_episode_alone() -> None:
    made: list[int] = []

    def make() -> ToolEnvironment:
        made.append(1)
        if len(made) == 1:
            raise RuntimeError("no room")
        return ToolEnvironment(tools=["image_zoom_in_tool"])

    solver = SolverAnswers(
        name="s", identity="1", solver=ZoomSolver(), environments={"default": TaskEnvironment(make=make)}
    )
    broken, good = played(solver, zoom_rows(BOX, BOX))
    assert broken.episode is not None and broken.episode.error == "the environment failed: RuntimeError: no room"
    assert good.finished


def test_check_asks_a_solver_about_each_row() -> None:
    source = zoom_rows(BOX, None, [375, 375, 250, 250])
    assert solver_problem(source[0], "zoom", ZoomSolver()) is None
    assert "needs 'bbox_2d'" in (solver_problem(source[1], "zoom", ZoomSolver()) or "")
    assert "has no area" in (solver_problem(source[2], "zoom", ZoomSolver()) or "")

    def asks(example: Example, turns: Sequence[Turn], draw: random.Random) -> str:
        return f"box {example.reference['bbox_2d']}"

    assert solver_problem(source[0], "mine", asks) is None
    assert solver_problem(source[1], "mine", asks) == "rows[1]: solver 'mine' failed: KeyError: 'bbox_2d'"
    said = solver_problem(source[0], "mine", lambda *_: 3)  # type: ignore[arg-type, return-value]
    assert said == "rows[0]: solver 'mine' returned int, not text"


KINDS = ("image", "argument", "box", "tool", "json")
SAID = {
    "image": "img_idx",
    "argument": "bbox_2d",
    "box": "has no area",
    "tool": "did you mean 'image_zoom_in_tool'",
    "json": "JSON",
}


@pytest.mark.parametrize("kind", KINDS)
def test_each_kind_of_mistake_fails_and_is_mended(kind: str) -> None:
    (answer,) = played(by_zooming(fail_frac=1.0, fail_kinds=(kind,)), zoom_rows(BOX))
    assert answer.finished and answer.episode is not None
    failed, mended, last = answer.episode.turns
    assert failed.calls[0].error and not failed.images and SAID[kind] in json.dumps(failed.observation), failed
    assert not mended.calls[0].error and mended.calls[0].arguments["bbox_2d"] == BOX and last.text == "red"
    said = [m for m in conversation(answer.episode.example, answer.episode) if m["role"] == "assistant"]
    assert [message.get("weight") for message in said] == [0, None, None]


def test_several_kinds_of_mistakes_are_drawn_and_repeat_with_the_seed() -> None:
    source = zoom_rows(*[BOX] * 40)
    first, again, other = (
        [answer.text for answer in played(by_zooming(fail_frac=1.0, fail_kinds=KINDS), source, seed)]
        for seed in (0, 0, 1)
    )
    assert first == again != other and len(set(first)) == len(KINDS)


def test_the_default_draws_what_it_always_drew() -> None:
    """Seeded data sets stay as they are: one kind takes no number from the generator."""
    example = zoom_rows(BOX)[0]
    for seed in range(20):
        draw = random.Random(seed)
        text = ZoomSolver(fail_frac=0.5, loose=0.5)(example, (), draw)
        same = random.Random(seed)
        fails = same.random() < 0.5
        outward = [by if same.random() < 0.5 else 0 for by in (-125, -125, 125, 125)]
        call = json.loads(text.removeprefix("<tool_call>\n").removesuffix("\n</tool_call>"))
        box = [side + by for side, by in zip(BOX, outward, strict=True)]
        assert call["arguments"] == {"bbox_2d": box, "label": "", "img_idx": int(fails)}
        assert draw.random() == same.random()


def test_mistakes_that_are_none_are_refused() -> None:
    assert make_solver("zoom", {"fail_kinds": ["box", "json"]}) == ZoomSolver(fail_kinds=("box", "json"))
    for kinds in (["bix"], [], "box"):
        with pytest.raises(ConfigError, match="fail_kinds"):
            make_solver("zoom", {"fail_kinds": kinds})


def test_a_turn_with_one_failed_call_of_two_is_not_learnt() -> None:
    call = json.dumps({"name": "image_zoom_in_tool", "arguments": {"bbox_2d": BOX, "label": "", "img_idx": 0}})
    good, bad = (f"<tool_call>\n{text}\n</tool_call>" for text in (call, call.replace('"img_idx": 0', '"img_idx": 7')))
    turns = [good + bad, good + good, "red"]
    task = TaskEnvironment(make=lambda: ToolEnvironment(tools=["image_zoom_in_tool"]))
    solver = SolverAnswers(
        name="s",
        identity="1",
        solver=lambda example, before, draw: turns[len(before)],
        environments={"default": task},
    )
    (answer,) = played(solver, zoom_rows(BOX))
    assert answer.finished and answer.episode is not None
    assert [[bool(c.error) for c in turn.calls] for turn in answer.episode.turns] == [[False, True], [False] * 2, []]
    said = [m for m in conversation(answer.episode.example, answer.episode) if m["role"] == "assistant"]
    assert [message.get("weight") for message in said] == [0, None, None]


STAGE = AnswersStage(data=[DataSection(path="a.jsonl")])  # type: ignore[call-arg]


def test_a_server_answers_what_is_not_played_and_refuses_the_rest(tools: Any) -> None:
    teacher = tools.ScriptedTeacher(name="big")
    source = OneTurnAnswers(source=teacher, played=["look"])
    assert (source.name, source.identity) == ("big", "weights-1")
    plain, look = tools.sums(2, "plain"), tools.sums(2, "look")
    sampling = Sampling(max_new_tokens=8)
    assert len(source.answer([plain[0], plain[1]], n=1, sampling=sampling, thinking=None)) == 2
    with pytest.raises(DataError, match=r"rows\[0\] is of task 'look', which is played .* teacher 'big' is a server"):
        source.answer([plain[0], look[0]], n=1, sampling=sampling, thinking=None)
    assert len(teacher.calls) == 1, "nobody is asked a batch of which a row is refused"
    every = OneTurnAnswers(source=teacher, played=["default"])
    with pytest.raises(DataError, match="is of task 'plain', which is played"):
        every.answer([plain[0]], n=1, sampling=sampling, thinking=None)


def test_check_names_rows_that_a_server_would_have_to_play(tools: Any) -> None:
    routes = {"default": "big", "look": "oracle"}
    look, plain, count = (tools.sums(1, task)[0] for task in ("look", "plain", "count"))

    def problem(example: Example, played: list[str]) -> str | None:
        return row_problem(example, STAGE, routes, {"oracle": None}, {"big"}, played)

    assert problem(look, ["look"]) is None and problem(plain, ["look"]) is None
    assert "teacher 'big' is a server" in (problem(count, ["look", "count"]) or "")
    assert "teacher 'big' is a server" in (problem(plain, ["default"]) or "")


def test_a_recipe_whose_drawn_rows_a_server_would_have_to_play_is_refused_at_once() -> None:
    def recipe(played: str, task: str = "zoom") -> dict[str, Any]:
        stage = {"algorithm": "answers", "data": [{"scenes": {"task": task}}]}
        return {
            "name": "x",
            "model": {"path": "there"},
            "teachers": {"big": {"server": "http://127.0.0.1:9"}},
            "environments": {played: {"name": "tools"}},
            "stages": {"ask": stage},
        }

    for played in ("zoom", "default"):
        with pytest.raises(ConfigError, match=r"stages.ask.data.0: task 'zoom' is played .* teacher 'big' is a server"):
            parse_recipe(recipe(played))
    assert parse_recipe(recipe("zoom", "count")).environments, "only what the stage asks counts"
