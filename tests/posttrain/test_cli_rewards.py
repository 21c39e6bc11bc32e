"""`posttrain rewards test`: a table of verdicts for a file of completions, and errors that name the line."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from posttrain import cli
from posttrain.completion_rows import read_completions
from posttrain.console import out
from posttrain.errors import ConfigError, DataError

ROWS: list[dict[str, Any]] = [
    {"completion": r"2 + 3 is \boxed{5}", "answer": "5", "prompt": "2 + 3?"},
    {"completion": r"[/red] \boxed{4}", "answer": "5"},
    {"text": [{"role": "assistant", "content": "5"}], "reference": {"answer": "5"}, "truncated": True},
    {"response": "7", "task": "sums"},
]


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def rows(content: list[Any] | str) -> Path:
        text = content if isinstance(content, str) else "".join(json.dumps(row) + "\n" for row in content)
        (tmp_path / "said.jsonl").write_text(text, encoding="utf-8")
        return tmp_path / "said.jsonl"

    return rows


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    monkeypatch.setattr(out, "_width", 200)
    return lambda *args: CliRunner().invoke(cli.app, ["rewards", "test", *map(str, args)])


def cells(output: str, first: str) -> list[str]:
    """The cells of the line that starts with this one."""
    return next(line.split() for line in output.splitlines() if line.split()[:1] == [first])


def test_each_reward_s_verdict_its_reason_and_a_summary_are_shown(run: Any, write: Any) -> None:
    result = run(write(ROWS[:3]), "--reward", "math,format")
    assert result.exit_code == 0, result.output
    assert cells(result.output, "row") == ["row", "completion", "score", "math", "format", "parts", "and", "reasons"]
    assert cells(result.output, "1")[-3:] == ["1.000", "1.000", "0.000"]
    assert cells(result.output, "2")[1:] == ["[/red]", r"\boxed{4}", "0.000", "0.000", "0.000"]
    mean, lowest, highest, scored, unscored, ms = cells(result.output, "math")[1:]
    assert (mean, lowest, highest, scored, unscored) == ("0.667", "0.000", "1.000", "3", "0")
    assert 0 <= float(ms) < 60_000
    assert cells(result.output, "score")[4:7] == ["3", "0", "0"]


def test_an_unscored_row_says_why_and_is_no_zero(run: Any, write: Any) -> None:
    result = run(write([*ROWS[:1], {"completion": "7"}]), "--reward", "math")
    assert "bad reference: the reference has no 'answer'" in result.output
    assert cells(result.output, "score")[1:6] == ["1.000", "1.000", "1.000", "1", "1"]


def test_a_function_that_raises_is_shown_as_an_error(
    run: Any, write: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "my_tried_rewards.py").write_text(
        "def near(completions, answer):\n    return [1.0 / len(a or '') for a in answer]\n"
        "def short(completions):\n    return []\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    result = run(write([*ROWS[:1], {"completion": "7", "answer": ""}]), "--reward", "my_tried_rewards:near")
    assert "error: near: ZeroDivisionError" in result.output and cells(result.output, "score")[6] == "1"
    broken = run(write(ROWS[:1]), "--reward", "my_tried_rewards:short")
    assert isinstance(broken.exception, ConfigError) and "returned 0 values for 1" in str(broken.exception)


def test_a_recipe_s_table_scores_each_task_in_its_own_way(run: Any, write: Any, tmp_path: Path) -> None:
    recipe = {
        "name": "x",
        "model": {"tiny": "qwen3"},
        "rewards": {
            "sums": {"rewards": [{"name": "math"}], "truncated": "zero"},
            "words": {
                "aggregation": "gate_by_correctness",
                "answer": "last_line",
                "clip": [0, 1.1],
                "deadline_s": 30,
                "error": 0,
                "rewards": [
                    {"name": "exact_match", "label": "right", "gate": True},
                    {"name": "format", "label": "layout", "weight": 0.2, "options": {"pattern": "boxed"}},
                ],
            },
        },
        "stages": {"sft": {"algorithm": "sft", "steps": 1, "data": [{"path": "x.jsonl"}]}},
    }
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    words = [
        {"completion": "\\boxed{no}\ncat", "answer": "cat", "task": "words"},
        {"completion": "\\boxed{cat}\ndog", "answer": "cat", "task": "words"},
        {"completion": r"\boxed{7}", "answer": "7", "truncated": True},
        {"completion": "cat", "task": "words"},
    ]
    result = run(write(words), "--recipe", file, "--task", "sums")
    assert result.exit_code == 0, result.exception
    assert cells(result.output, "1")[-4:] == ["1.100", "1.000", "1.000", "-"], "clipped, and the bonus is paid"
    assert cells(result.output, "2")[-4:] == ["0.000", "0.000", "1.000", "-"], "no bonus on a wrong answer"
    assert "0.000" in cells(result.output, "3") and "cut off by the token limit" in result.output
    assert "0.000" in cells(result.output, "4"), "what an error earns"


def test_only_the_rows_that_are_asked_for_are_shown(run: Any, write: Any) -> None:
    output = run(write(ROWS[:3]), "--reward", "math", "--rows", 1).output
    assert "and 2 more" in output and cells(output, "math")[4] == "3"
    assert "completion" not in run(write(ROWS[:3]), "--reward", "math", "--rows", 0).output


@pytest.mark.parametrize(
    ("content", "args", "kind", "message"),
    [
        (ROWS, ["--reward", "maths"], ConfigError, "there is no reward 'maths'; did you mean 'math'?"),
        (ROWS, ["--reward", "math,math"], ConfigError, "two rewards of one task are named 'math'"),
        (ROWS, [], ConfigError, "give exactly one of --reward"),
        (ROWS, ["--reward", "math", "--recipe", "quickstart"], ConfigError, "give exactly one of --reward"),
        (ROWS, ["--recipe", "quickstart"], DataError, "completion 1 of"),
        ("", ["--reward", "math"], DataError, "holds no completion"),
        ('{"completion": "1"}\n{"a', ["--reward", "math"], DataError, "said.jsonl:2 is not JSON"),
        ("[1]", ["--reward", "math"], DataError, "said.jsonl:1 must be a JSON object"),
        (
            [{"said": "1"}],
            ["--reward", "math"],
            DataError,
            "said.jsonl:1 has no completion, text or response; it",
        ),
        ([{"text": 7}], ["--reward", "math"], DataError, "said.jsonl:1: wanted a text or a list of turns, got 7"),
        ([{"text": [{"role": "user"}]}], ["--reward", "math"], DataError, "no turn has the role 'assistant'"),
        ("[" * 100_000, ["--reward", "math"], DataError, "said.jsonl:1 is not JSON"),
    ],
)
def test_what_cannot_be_scored_is_named(
    content: Any, args: list[str], kind: type, message: str, run: Any, write: Any
) -> None:
    result = run(write(content), *args)
    assert isinstance(result.exception, kind) and message in str(result.exception)


def test_a_row_s_columns_become_the_completion_and_the_reference(write: Any, tmp_path: Path) -> None:
    row = {"completion": "a", "prompt": [{"role": "user", "content": [{"type": "text", "text": "q"}]}], "answer": 7}
    row |= {"token_ids": [1, 2], "num_tool_calls": 3, "num_turns": 4, "images": ["i.png"], "reference": {"bbox_2d": 1}}
    ((task, completion, reference),) = read_completions(write([row]), task="t")
    assert (task, reference) == ("t", {"answer": 7, "bbox_2d": 1})
    assert (completion.text, completion.prompt, completion.token_ids) == ("a", "q", (1, 2))
    assert (completion.num_tool_calls, completion.num_turns) == (3, 4)
    assert completion.images == (str(tmp_path / "i.png"),)


def test_calls_and_turns_of_a_row_are_those_of_an_episode(write: Any) -> None:
    calls = [{"name": "zoom", "arguments": {"x": 1}, "text": "a crop"}, {"name": "fly", "error": "no such tool"}]
    said = [
        {"role": "assistant", "content": "I zoom."},
        {"role": "tool", "content": [{"type": "image"}, {"type": "text", "text": "a crop"}]},
        {"role": "assistant", "content": "7"},
    ]
    ((_, completion, reference),) = read_completions(write([{"completion": said, "tool_calls": calls, "answer": "7"}]))
    assert reference == {"answer": "7"} and (completion.num_tool_calls, completion.num_turns) == (1, 2)
    assert [(call.name, call.error) for call in completion.tool_calls] == [("zoom", ""), ("fly", "no such tool")]
    assert completion.tool_calls[0].arguments == {"x": 1} and completion.tool_calls[0].text == "a crop"
    assert [(turn.role, turn.text, turn.num_images) for turn in completion.turns] == [
        ("assistant", "I zoom.", 0),
        ("tool", "a crop", 1),
        ("assistant", "7", 0),
    ]
    assert completion.text == "I zoom.7" and completion.response == "7"
    for wrong, said_of_it in [
        ([3], "an object with a name, got 3"),
        ([{"name": "a", "arguments": 3}], "arguments of a"),
    ]:
        with pytest.raises(DataError, match=f"said.jsonl:1: .*{said_of_it}"):
            read_completions(write([{"completion": "7", "tool_calls": wrong}]))


def test_testing_named_rewards_does_not_wait_for_torch(write: Any) -> None:
    import subprocess
    import sys

    code = f"import sys; sys.argv = ['posttrain', 'rewards', 'test', {str(write(ROWS[:2]))!r}, '--reward', 'number']\n"
    code += "from posttrain.cli import main\ntry:\n main()\nexcept SystemExit as stop: assert not stop.code\n"
    code += "assert 'torch' not in sys.modules, 'torch was imported'"
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)
