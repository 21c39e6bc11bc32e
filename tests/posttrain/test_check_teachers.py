"""`posttrain check` asks each teacher once and not for long, and whether it can be told to think."""

import contextlib
import json
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from posttrain.check import check_recipe, estimate_table
from posttrain.check_teachers import TeacherCheck
from posttrain.recipe import parse_recipe


@contextlib.contextmanager
def closing_server() -> Iterator[tuple[str, list[int]]]:
    """Its address, and an entry for each connection, which it closes at once: a server that is starting, or broken."""
    listener = socket.create_server(("127.0.0.1", 0))
    asked: list[int] = []

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            asked.append(1)
            connection.close()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}", asked
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def recipe_of(tiny: Path, folder: Path, teacher: dict[str, Any], **answers: Any) -> Any:
    file = folder / "rows.jsonl"
    file.write_text(json.dumps({"prompt": "1+1?", "completion": "2"}) + "\n")
    data = [{"path": str(file)}]
    return parse_recipe(
        {
            "name": "taught",
            "model": {"path": str(tiny), "dtype": "float32"},
            "teachers": {"big": teacher},
            "stages": {
                "ask": {"algorithm": "answers", "data": data, **answers},
                "off_policy": {"algorithm": "distill_off_policy", "epochs": 1, "top_k": 8, "data": [{"stage": "ask"}]},
                "on_policy": {"algorithm": "distill_on_policy", "steps": 3, "top_k": 8, "data": data},
            },
        }
    )


def test_a_server_that_is_down_is_asked_once_and_named_once(tiny_text: Path, tmp_path: Path) -> None:
    with closing_server() as (address, asked):
        problems = check_recipe(recipe_of(tiny_text, tmp_path, {"server": address, "retries": 5})).problems
    (problem,) = problems
    assert problem.startswith(f"stages.ask: teacher 'big' at {address} ") and len(asked) == 1


def test_a_server_is_given_a_short_time(tiny_text: Path, tmp_path: Path, accelerator: Any) -> None:
    for given, taken in ((600.0, 20.0), (3.0, 3.0)):
        recipe = recipe_of(tiny_text, tmp_path, {"server": "http://127.0.0.1:9", "timeout_s": given})
        (section,) = TeacherCheck(recipe, accelerator)._teachers.values()
        assert (section.timeout_s, section.retries) == (taken, 0)


def test_the_table_does_not_count_what_is_not_there_yet(tiny_text: Path, tmp_path: Path) -> None:
    result = check_recipe(recipe_of(tiny_text, tmp_path, {"path": str(tiny_text)}))
    assert result.problems == []
    ask, off_policy, on_policy = result.stages
    assert (ask.steps, ask.rows) == (1, 1) and (on_policy.steps, on_policy.rows) == (3, 1)
    unknown = (off_policy.steps, off_policy.rows, off_policy.tokens, off_policy.mean_tokens, off_policy.longest)
    assert unknown == (None,) * 5
    table = estimate_table(result.stages)
    cells = {column.header: list(column.cells)[1] for column in table.columns}
    assert [cells[name] for name in ("steps", "rows", "a row", "longest", "tokens")] == ["-"] * 5


@pytest.mark.parametrize("thinking", ["on", "off", "mixed"])
def test_a_template_that_cannot_be_told_to_think_is_a_problem(
    tiny_vl: Path, tiny_text: Path, tmp_path: Path, thinking: str
) -> None:
    """Qwen3's template reads enable_thinking, Qwen3-VL's does not."""
    sentence = (
        "stages.ask: teacher 'big' is asked the same with thinking on and off: its chat template does not read "
        "enable_thinking; set thinking to 'template'"
    )
    assert sentence in check_recipe(recipe_of(tiny_vl, tmp_path, {"path": str(tiny_vl)}, thinking=thinking)).problems
    assert check_recipe(recipe_of(tiny_text, tmp_path, {"path": str(tiny_text)}, thinking=thinking)).problems == []


def test_a_stage_that_teaches_is_asked_whether_it_can_be_told_to_think(tiny_vl: Path, tmp_path: Path) -> None:
    content = recipe_of(tiny_vl, tmp_path, {"path": str(tiny_vl)}).model_dump(mode="json")
    data = content["stages"]["ask"]["data"]
    content["teachers"] = {"own": {"stage": "sft"}}
    content["stages"] = {
        "sft": {"algorithm": "sft", "steps": 1, "data": data},
        "ask": {"algorithm": "answers", "thinking": "off", "data": data},
    }
    (problem,) = check_recipe(parse_recipe(content)).problems
    assert problem.startswith("stages.ask: teacher 'own' is asked the same with thinking on and off")
