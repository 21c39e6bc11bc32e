"""`posttrain rewards test`: odd rows, files that are not there, and what a warm-up may ask."""

import errno
import json
import sys
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from posttrain import cli
from posttrain.completion_rows import read_completions
from posttrain.errors import DataError


def run(file: Path, *options: str) -> Any:
    return CliRunner().invoke(cli.app, ["rewards", "test", str(file), *options])


def test_half_of_a_surrogate_pair_is_shown_and_scored(tmp_path: Path) -> None:
    file = tmp_path / "said.jsonl"
    file.write_text('{"completion": "\\ud800 red", "answer": "red", "task": "\\udfff"}\n')
    result = run(file, "--reward", "exact_match")
    assert result.exit_code == 0, result.output
    assert r"\ud800 red" in result.output and "0.000" in result.output


def test_a_task_without_rewards_is_named_even_where_no_terminal_can_show_it(tmp_path: Path) -> None:
    recipe = tmp_path / "recipe.yaml"
    stage = {"algorithm": "sft", "steps": 1, "data": [{"path": "x.jsonl"}]}
    rewards = {"sums": {"rewards": [{"name": "exact_match"}]}}
    recipe.write_text(
        json.dumps({"name": "x", "model": {"tiny": "qwen3"}, "rewards": rewards, "stages": {"sft": stage}})
    )
    file = tmp_path / "said.jsonl"
    file.write_text('{"completion": "red", "task": "\\udfff"}\n')
    result = run(file, "--recipe", str(recipe))
    assert isinstance(result.exception, DataError)
    str(result.exception).encode("utf-8")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"completion": None, "answer": "7"}, "the 'completion' of said.jsonl:1 is null"),
        ({"answer": "7"}, "has no completion, text or response; it holds: answer"),
    ],
)
def test_a_completion_that_is_null_is_told_from_one_that_is_missing(
    tmp_path: Path, row: dict[str, Any], message: str
) -> None:
    file = tmp_path / "said.jsonl"
    file.write_text(json.dumps(row) + "\n")
    with pytest.raises(DataError, match=message):
        read_completions(file)
    file.write_text(json.dumps({**row, "response": "7"}) + "\n")
    assert read_completions(file)[0][1].text == "7"


def test_a_file_that_is_missing_is_named_and_a_full_disk_is_comforted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    missing = tmp_path / "nowhere.jsonl"
    monkeypatch.setattr(sys, "argv", ["posttrain", "rewards", "test", str(missing), "--reward", "exact_match"])
    with pytest.raises(SystemExit):
        cli.main()
    said = capsys.readouterr().err
    assert "No such file or directory" in said and "nowhere.jsonl" in said and "saved before" not in said

    def full() -> None:
        raise OSError(errno.ENOSPC, "No space left on device", "/disk/model.safetensors")

    monkeypatch.setattr(cli, "app", full)
    with pytest.raises(SystemExit):
        cli.main()
    assert "nothing that was saved before is lost" in capsys.readouterr().err


def test_a_warm_up_asks_a_users_function_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "my_counted_rewards.py").write_text(
        "asked = []\ndef counted(completions):\n    asked.extend(completions)\n    return [1.0] * len(completions)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    file = tmp_path / "said.jsonl"
    file.write_text('{"completion": "a", "answer": "a"}\n' * 3)
    result = run(file, "--reward", "my_counted_rewards:counted,exact_match")
    assert result.exit_code == 0, result.output
    assert len(sys.modules["my_counted_rewards"].asked) == 3
