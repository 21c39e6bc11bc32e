"""The run's folder: files whole or not at all, lines that a resumed run writes again, one writer at a time."""

import json
import math
from pathlib import Path

import pytest

from posttrain.errors import CheckpointError, ConfigError
from posttrain.runs import RunFolder, StageFolder, read_json, write_json


def test_json_is_written_whole_with_null_for_what_is_not_finite(tmp_path: Path) -> None:
    path = tmp_path / "new" / "file.json"
    write_json(path, {"a": math.nan, "b": [math.inf, 1.5], "c": {"d": -math.inf}, "e": "ä"})
    assert json.loads(path.read_text(encoding="utf-8")) == {"a": None, "b": [None, 1.5], "c": {"d": None}, "e": "ä"}
    assert [p.name for p in path.parent.iterdir()] == ["file.json"]
    write_json(path, {"a": 1})
    assert read_json(path) == {"a": 1}


def test_damaged_json_says_what_to_delete(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text('{"a": 1')
    with pytest.raises(CheckpointError, match=r"result.json cannot be read .*; delete it to start this part again"):
        read_json(tmp_path / "result.json")


def test_lines_after_a_step_are_forgotten_and_so_is_one_that_was_cut(tmp_path: Path) -> None:
    stage = StageFolder(tmp_path)
    for step in range(5):
        stage.append(stage.metrics, {"step": step, "loss": math.nan})
        stage.append(stage.histograms, {"step": step})
    with stage.metrics.open("a") as file:
        file.write('{"step": 2, "lo')
    stage.forget_after(3)
    for file in (stage.metrics, stage.histograms):
        assert [json.loads(line)["step"] for line in file.read_text().splitlines()] == [0, 1, 2]
    stage.append(stage.metrics, {"step": 3})
    assert [json.loads(line)["step"] for line in stage.metrics.read_text().splitlines()] == [0, 1, 2, 3]


def test_forgetting_all_leaves_nothing_and_needs_no_files(tmp_path: Path) -> None:
    stage = StageFolder(tmp_path)
    stage.forget_after(0)
    stage.append(stage.metrics, {"step": 0})
    stage.forget_after(0)
    assert stage.metrics.read_text() == ""


def test_the_lock_is_released_at_the_end_also_of_an_error(tmp_path: Path) -> None:
    folder, second = RunFolder(tmp_path / "run"), RunFolder(tmp_path / "run")

    def fails() -> None:
        with folder.lock():
            with pytest.raises(ConfigError, match="another process is writing"), second.lock():
                pass
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fails()
    with second.lock():
        pass


def test_a_folder_that_is_a_file_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("")
    with pytest.raises(ConfigError, match=r"output_dir .*run cannot be written"), RunFolder(tmp_path / "run").lock():
        pass


def test_a_metrics_file_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    stage = StageFolder(tmp_path / "stage")
    stage.metrics.mkdir(parents=True)
    with pytest.raises(CheckpointError, match="free space and run again to resume"):
        stage.append(stage.metrics, {"step": 0})


def test_forgetting_a_run_needs_its_manifest(tmp_path: Path) -> None:
    folder = RunFolder(tmp_path)
    (tmp_path / "stages").mkdir()
    folder.forget()
    assert (tmp_path / "stages").is_dir()
    folder.write_manifest(name="x", seed=0, recipe={})
    folder.forget()
    assert not (tmp_path / "stages").exists()
    manifest = read_json(tmp_path / "manifest.json")
    assert manifest["versions"].keys() >= {"python", "torch", "transformers"} and manifest["command"]
