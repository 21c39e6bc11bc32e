"""The programs in examples/ run as a reader would run them, with few steps, and leave what they say they leave."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.waiting import PROCESS_S

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))


def run(name: str, *arguments: str) -> str:
    """What the program prints. It runs in another folder: an example must not depend on where it is started."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, str(ROOT / "examples" / name), *arguments],
        cwd=Path(arguments[-1]).parent if arguments else ROOT,
        env=environment,
        capture_output=True,
        text=True,
        timeout=PROCESS_S,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def test_sft_writes_a_checkpoint_that_transformers_reads(tmp_path: Path) -> None:
    said = run("sft.py", "--steps", "4", "--output", str(tmp_path / "out"))
    before, after = map(float, re.findall(r"loss ([\d.]+) -> ([\d.]+)", said)[0])
    assert after < before
    assert "the trained model says" in said
    assert (tmp_path / "out/run/stages/sft/final/model.safetensors").is_file()
    assert (tmp_path / "out/run/report.html").is_file()


def test_sapo_with_a_function_as_reward(tmp_path: Path) -> None:
    said = run("sapo_custom_reward.py", "--steps", "3", "--output", str(tmp_path / "out"))
    assert re.search(r"mean reward [\d.]+ -> [\d.]+ in 3 steps", said)
    logged = (tmp_path / "out/sapo/stages/sapo/metrics.jsonl").read_text(encoding="utf-8")
    assert logged.count("part/names_the_colour") == 3
    assert (tmp_path / "out/sapo/report.html").is_file()


def test_own_reward_scores_and_checks_references() -> None:
    said = run("own_reward.py")
    earned = [float(number) for number in re.findall(r"earns ([\d.]+)", said)]
    assert earned == [1.0, 0.675, 0.0, 0.0]
    assert "{'answer': '3'} is a good reference" in said
    assert "wanted a number in 'answer'" in said


def test_own_reward_can_be_named_as_module_and_class(monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain.rewards import Completion, make_reward
    from posttrain.rewards.registry import _registered

    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    monkeypatch.setattr("posttrain.rewards.registry._registered", dict(_registered))
    reward = make_reward({"name": "own_reward:Closeness", "tolerance": 2.0})
    assert reward(Completion(text="4"), {"answer": 3}).value == 0.5


def test_environment_is_played_by_a_script() -> None:
    said = run("environment.py")
    assert "treasure: found in cell 42 in turn 3" in said
    assert "image_zoom_in_tool -> [(512, 512)]" in said
    assert "did you mean 'img_idx'?" in said
    assert said.rstrip().endswith("brightest -> 90")


def test_every_example_is_tested_and_says_how_to_run_it() -> None:
    tests = Path(__file__).read_text(encoding="utf-8")
    assert len(EXAMPLES) >= 3
    for path in EXAMPLES:
        assert f'run("{path.name}"' in tests
        assert f"python examples/{path.name}" in path.read_text(encoding="utf-8")
