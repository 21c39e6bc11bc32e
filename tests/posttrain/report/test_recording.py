"""Recording trajectories: what is written, what is chosen, and that a full disk stops nothing."""

import json
import logging
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from posttrain.rewards import Score

from posttrain.records import Example, Status, Trajectory
from posttrain.report import TrajectoryRecorder, write_report
from posttrain.report.recording import choose

ANSWER = '[{"bbox_2d": [100, 200, 500, 600], "label": "red square"}]'


def trajectory(
    *,
    example: str = "a",
    reward: float | None = 1.0,
    text: str = ANSWER,
    size: tuple[int, int] = (64, 48),
    **changed: Any,
) -> Trajectory:
    image = Image.new("RGB", size, "red")
    fields = {
        "example": Example(
            id=example,
            task="ground",
            messages=(
                {"role": "system", "content": "Be exact."},
                {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "Locate it."}]},
            ),
            images=(image,),
            reference={"bbox_2d": [110, 200, 520, 620], "label": "red square"},
        ),
        "token_ids": np.array([5, 6, 7, 8], dtype=np.int64),
        "mask": np.array([False, False, True, True]),
        "logprobs": np.array([0, 0, -0.5, -np.inf], dtype=np.float32),
        "prompt_length": 2,
        "text": text,
        "score": Score(value=reward, parts={"iou": 0.75}) if reward is not None else Score.unscored("timed out"),
        "advantage": 0.25,
    }
    return Trajectory(**(fields | changed))


def rows(stage: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (stage / "trajectories.jsonl").read_text(encoding="utf-8").splitlines()]


def test_a_recorded_trajectory_holds_what_the_page_shows(tmp_path: Path) -> None:
    recorder = TrajectoryRecorder(tmp_path, 4, decode_tokens=lambda ids: [f"<{i}>" for i in ids])
    gates = np.array([1.0, 1.0, 0.9, 0.5], dtype=np.float32)
    recorder.record(3, [trajectory()], gates=[gates])
    [row] = rows(tmp_path)
    image = row["images"][0]
    assert Image.open(tmp_path / image).size == (64, 48)
    assert row == {
        "step": 3,
        "example": "a",
        "task": "ground",
        "messages": [
            {"role": "system", "text": "Be exact.", "images": []},
            {"role": "user", "text": "<image>Locate it.", "images": [0]},
        ],
        "images": [image],
        "completion": ANSWER,
        "status": "finished",
        "reward": 1.0,
        "parts": {"iou": 0.75},
        "reason": "",
        "advantage": 0.25,
        "reference": {"bbox_2d": [110, 200, 520, 620], "label": "red square"},
        "boxes": [
            {"bbox_2d": [100, 200, 500, 600], "label": "red square", "kind": "predicted", "image": 0},
            {"bbox_2d": [110, 200, 520, 620], "label": "red square", "kind": "reference", "image": 0},
        ],
        "tokens": [{"text": "<7>", "logprob": -0.5, "gate": 0.9}, {"text": "<8>", "logprob": None, "gate": 0.5}],
    }


def test_what_was_recorded_renders(tmp_path: Path) -> None:
    stage = tmp_path / "stages" / "rl"
    recorder = TrajectoryRecorder(stage)
    failed = trajectory(example="b", reward=None, status=Status.ERROR, error="the tool died", text="\ud800")
    recorder.record(1, [trajectory(), failed])
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "2 of 2 recorded" in html and "timed out; the tool died" in html and "predicted: red square" in html


def test_the_answer_that_a_training_row_ends_with_is_not_shown_as_asked(tmp_path: Path) -> None:
    asked = trajectory()
    row = Example(
        id="row",
        task="ground",
        messages=(*asked.example.messages, {"role": "assistant", "content": "a loose box"}),
        images=asked.example.images,
    )
    TrajectoryRecorder(tmp_path).record(0, [replace(asked, example=row)])
    assert [message["role"] for message in rows(tmp_path)[0]["messages"]] == ["system", "user"]


def test_equal_images_are_one_file_and_large_ones_are_shrunk(tmp_path: Path) -> None:
    recorder = TrajectoryRecorder(tmp_path)
    recorder.record(1, [trajectory(), trajectory(example="b"), trajectory(example="c", size=(2000, 1000))])
    files = list((tmp_path / "images").iterdir())
    assert sorted(Image.open(f).size for f in files) == [(64, 48), (768, 384)]


def test_the_best_and_the_worst_of_each_example_come_first() -> None:
    group = [trajectory(example="a", reward=r) for r in (0.5, 0.1, 0.9, 0.3)]
    other = [trajectory(example="b", reward=r) for r in (0.2, None, 0.4)]
    assert choose(group + other, 4) == [1, 2, 5, 6]
    assert choose(group + other, 99) == list(range(7))
    assert choose(group + other, 1) == [2]
    assert choose(group + other, 0) == []
    assert choose([], 4) == []


def test_a_line_that_a_killed_run_left_spoils_no_other(tmp_path: Path) -> None:
    (tmp_path / "trajectories.jsonl").write_text('{"step": 1, "exam')
    TrajectoryRecorder(tmp_path).record(2, [trajectory()])
    lines = (tmp_path / "trajectories.jsonl").read_text().splitlines()
    assert len(lines) == 2 and json.loads(lines[1])["step"] == 2


def test_a_disk_error_is_said_once_and_stops_nothing(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").write_text("")
    recorder = TrajectoryRecorder(tmp_path / "file" / "stage")  # a folder cannot be made below a file
    with caplog.at_level(logging.WARNING):
        recorder.record(1, [trajectory()])
        recorder.record(2, [trajectory()])
    assert len(caplog.records) == 1
    assert "training goes on" in caplog.text


def test_wrong_arguments_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="max_per_step must be 0 or more, got -1"):
        TrajectoryRecorder(tmp_path, -1)
    with pytest.raises(ValueError, match="got gates of 0 trajectories for 1"):
        TrajectoryRecorder(tmp_path).record(1, [trajectory()], gates=[])


def test_importing_the_report_does_not_import_torch() -> None:
    code = "import sys, posttrain.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0
