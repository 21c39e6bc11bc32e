"""The command line: every command's help, what it prints, and errors as one sentence with an exit code."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from typer.testing import CliRunner

from posttrain import cli

COMMANDS = [[], ["list"], ["copy"], ["check"], ["run"], ["eval"], ["export"], ["report"], ["serve"], ["rewards"]]
COMMANDS += [["rewards", "list"], ["rewards", "show"], ["rewards", "test"]]


def run_main(*args: str, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> tuple[int, str, str]:
    """(exit code, stdout, stderr) of the program in this process."""
    monkeypatch.setattr(sys, "argv", ["posttrain", *args])
    for name in ("HF_HUB_DISABLE_PROGRESS_BARS", "HF_DATASETS_DISABLE_PROGRESS_BARS", "TRANSFORMERS_VERBOSITY"):
        monkeypatch.setenv(name, os.environ.get(name, "1"))
    with pytest.raises(SystemExit) as stop:
        cli.main()
    printed = capfd.readouterr()
    return int(stop.value.code or 0), printed.out, printed.err


@pytest.fixture
def posttrain(capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.setattr(cli.out, "_width", 200)
    monkeypatch.setattr(cli.err, "_width", 200)
    return lambda *args: run_main(*map(str, args), capfd=capfd, monkeypatch=monkeypatch)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda c: " ".join(c) or "posttrain")
def test_every_command_has_a_help_that_says_what_it_does(command: list[str]) -> None:
    result = CliRunner().invoke(cli.app, [*command, "--help"])
    assert result.exit_code == 0 and "Usage:" in result.output
    assert len(result.output.split()) > 20


def test_every_command_is_in_the_list_of_this_test() -> None:
    named = {c.name or c.callback.__name__ for c in cli.app.registered_commands if c.callback}
    assert named | {"rewards"} == {c[0] for c in COMMANDS if c}


def test_list_names_every_shipped_recipe(posttrain: Any) -> None:
    code, out, _ = posttrain("list")
    assert code == 0
    assert "quickstart" in out and "sapo_qwen3_vl" in out and "Supervised fine-tuning of a Qwen3-VL checkpoint" in out


def test_listing_and_help_do_not_wait_for_torch() -> None:
    code = "import sys; sys.argv = ['posttrain', {!r}]; from posttrain.cli import main\n"
    code += "try:\n main()\nexcept SystemExit: pass\nassert 'torch' not in sys.modules, 'torch was imported'"
    for argument in ("list", "--help"):
        subprocess.run([sys.executable, "-c", code.format(argument)], check=True, capture_output=True)


def test_copy_writes_the_recipe_once(posttrain: Any, tmp_path: Path) -> None:
    code, out, _ = posttrain("copy", "quickstart", tmp_path / "mine.yaml")
    assert code == 0 and "wrote" in out
    assert yaml.safe_load((tmp_path / "mine.yaml").read_text())["name"] == "quickstart"
    code, _, err = posttrain("copy", "quickstart", tmp_path / "mine.yaml")
    assert code == 1 and "exists already; choose another name" in err
    assert posttrain("copy", "quickstart", tmp_path)[0] == 0 and (tmp_path / "quickstart.yaml").is_file()


def test_rewards_are_listed_and_shown(posttrain: Any) -> None:
    code, out, _ = posttrain("rewards", "list")
    assert code == 0 and "math" in out and "grounding_iou" in out
    code, out, _ = posttrain("rewards", "show", "math")
    assert code == 0 and "option" in out and "deadline_s" in out


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["run", "nowhere.yaml"], "no recipe file 'nowhere.yaml'"),
        (["check", "quickstar"], "did you mean 'quickstart'?"),
        (["run", "quickstart", "stages.sft.stesp=1"], "'stages.sft.stesp' is not a key; did you mean 'steps'?"),
        (["run", "quickstart", "stages.sft"], "is not of the form path.to.key=value"),
        (["copy", "nowhere", "x.yaml"], "no recipe file 'nowhere'"),
        (["report", "nowhere"], "nowhere is not the folder of a run: it has no manifest.json"),
        (["export", "nowhere", "target"], "there is no folder nowhere"),
        (["rewards", "show", "maths"], "did you mean 'math'?"),
        (["eval", "quickstart", "--model", "nowhere/at/all"], "there is no folder nowhere/at/all"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_an_error_is_one_sentence_without_a_traceback(
    args: list[str], message: str, posttrain: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, _, err = posttrain(*args)
    assert code == 1
    assert message in err and err.startswith("error ") and "Traceback" not in err


def test_brackets_of_a_sentence_are_printed_and_no_markup(posttrain: Any, tmp_path: Path) -> None:
    recipe = {"name": "x", "model": {"tiny": "qwen3"}, "stages": {"[/red]": {"algorithm": "none"}}}
    file = tmp_path / "r.yaml"
    file.write_text(yaml.safe_dump(recipe))
    code, _, err = posttrain("run", file)
    assert code == 1 and "'stages.[/red].algorithm' is 'none'" in err


def test_a_whole_round_check_run_eval_export_report(
    posttrain: Any, recipe_content: Any, tools: Any, tmp_path: Path
) -> None:
    evaluation = {"num_examples": 2, "max_new_tokens": 3, "data": [{"scenes": {"task": "count", "size": 4}}]}
    stages = {"sft": tools.sft_stage(steps=2), "rl": tools.sapo_stage(steps=1)}
    content = recipe_content(tmp_path / "run", stages, evaluation=evaluation)
    file = tmp_path / "round.yaml"
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    code, out, err = posttrain("check", file, "--rows", 3)
    assert code == 0 and "ready" in out, err
    code, _, err = posttrain("run", file, "stages.sft.steps=1")
    assert code == 0, err
    assert "sft: step 1/1" in err and "report" in err and "parameters" in err
    code, _, err = posttrain("run", file)
    assert code == 1 and "other settings than this recipe's" in err
    code, _, err = posttrain("run", file, "stages.sft.steps=1")
    assert code == 0 and "sft is finished: not run again" in err
    code, out, _ = posttrain("eval", file, "--model", tmp_path / "run/stages/sft/final")
    assert code == 0 and "reward/count @ T=1" in out
    code, out, _ = posttrain("export", tmp_path / "run", tmp_path / "served", "--dtype", "bfloat16")
    assert code == 0 and (tmp_path / "served" / "model.safetensors").is_file()
    (tmp_path / "run/report.html").unlink()
    assert posttrain("report", tmp_path / "run")[0] == 0 and (tmp_path / "run/report.html").is_file()
