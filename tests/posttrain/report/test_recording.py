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
from posttrain.rewards import Score, ToolCall

from posttrain.records import Example, Status, Trajectory, Turn
from posttrain.report import TokenStreams, TrajectoryRecorder, write_report
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
    streams = TokenStreams(
        gates_T=np.array([1.0, 1.0, 0.9, 0.5], dtype=np.float32),
        advantages_T=np.array([0.0, 0.0, 1.0, -1.0]),
        trainer_logprobs_T=np.array([0.0, 0.0, -0.75, -1.0]),
    )
    recorder.record(3, [trajectory()], streams=[streams])
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
        "error": "",
        "reward": 1.0,
        "parts": {"iou": 0.75},
        "reason": "",
        "advantage": 0.25,
        "reference": {"bbox_2d": [110, 200, 520, 620], "label": "red square"},
        "boxes": [
            {"bbox_2d": [100, 200, 500, 600], "label": "red square", "kind": "predicted", "image": 0},
            {"bbox_2d": [110, 200, 520, 620], "label": "red square", "kind": "reference", "image": 0},
        ],
        "tokens": [
            {"text": "<7>", "logprob": -0.5, "gate": 0.9, "advantage": 1.0, "gap": 0.25},
            {"text": "<8>", "logprob": None, "gate": 0.5, "advantage": -1.0, "gap": None},
        ],
    }


def test_what_was_recorded_renders(tmp_path: Path) -> None:
    stage = tmp_path / "stages" / "rl"
    recorder = TrajectoryRecorder(stage)
    failed = trajectory(example="b", reward=None, status=Status.ERROR, error="the tool died", text="\ud800")
    recorder.record(1, [trajectory(), failed])
    html = write_report(tmp_path).read_text(encoding="utf-8")
    assert "2 of 2 recorded" in html and "predicted: red square" in html
    assert "timed out" in html and "error: the tool died" in html


def zoom(box: Any, image: Any, error: str = "") -> ToolCall:
    return ToolCall(name="image_zoom_in_tool", arguments={"bbox_2d": box, "img_idx": image, "label": "it"}, error=error)


def episode(*turns: Turn, **changed: Any) -> Trajectory:
    return trajectory(text="over", turns=turns, **changed)


def crops(folder: Path, *turns: Turn, **changed: Any) -> list[tuple[list[float], int, int | None]]:
    """(corners, image that was cut, image that was made) of the recorded crops."""
    TrajectoryRecorder(folder).record(0, [episode(*turns, **changed)])
    return [(b["bbox_2d"], b["image"], b["made"]) for b in rows(folder)[-1]["boxes"] if b["kind"] == "crop"]


SEEN = {"role": "tool", "content": [{"type": "image"}, {"type": "text", "text": "Here it is."}]}
FAILED = {"role": "tool", "content": "Tool Execution Error: no such image"}
GREEN, BLUE = Image.new("RGB", (32, 32), "green"), Image.new("RGB", (32, 32), "blue")


def test_an_episode_is_recorded_turn_by_turn(tmp_path: Path) -> None:
    recorder = TrajectoryRecorder(tmp_path, decode_tokens=lambda ids: [f"<{i}>" for i in ids])
    look = Turn(
        start=2,
        end=3,
        text="I look.",
        calls=(zoom([0, 0, 500, 500], 0), zoom([1, 1, 2, 2], 7, "no such image")),
        observation=(SEEN, FAILED),
        images=(GREEN,),
        seconds=0.12341,
    )
    said = Turn(start=3, end=4, text=ANSWER)
    recorder.record(1, [episode(look, said, tools=({"type": "function", "function": {"name": "t"}}, {}))])
    [row] = rows(tmp_path)
    assert row["tools"] == ["t", ""]
    assert [Image.open(tmp_path / name).getpixel((0, 0)) for name in row["images"]] == [(255, 0, 0), (0, 128, 0)]
    assert row["messages"][1] == {"role": "user", "text": "<image>Locate it.", "images": [0]}
    arguments = {"bbox_2d": [0, 0, 500, 500], "img_idx": 0, "label": "it"}
    failed = {"bbox_2d": [1, 1, 2, 2], "img_idx": 7, "label": "it"}
    assert row["turns"] == [
        {
            "text": "I look.",
            "calls": [
                {"name": "image_zoom_in_tool", "arguments": arguments, "error": ""},
                {"name": "image_zoom_in_tool", "arguments": failed, "error": "no such image"},
            ],
            "observation": [
                {"role": "tool", "text": "<image>Here it is.", "images": [1]},
                {"role": "tool", "text": "Tool Execution Error: no such image", "images": []},
            ],
            "seconds": 0.1234,
            "tokens": [{"text": "<7>", "logprob": -0.5}],
        },
        {
            "text": ANSWER,
            "calls": [],
            "observation": [],
            "seconds": 0.0,
            "tokens": [{"text": "<8>", "logprob": None}],
        },
    ]
    assert "tokens" not in row
    crop = {"bbox_2d": [0.0, 0.0, 500.0, 500.0], "label": "it", "kind": "crop", "image": 0, "made": 1}
    assert row["boxes"][2:] == [crop | {"call": 0, "turn": 0}]
    assert [box["kind"] for box in row["boxes"][:2]] == ["predicted", "reference"]  # of the last turn, the answer


def test_what_the_environment_showed_first_takes_the_place_of_the_example(tmp_path: Path) -> None:
    opening = ({"role": "user", "content": [{"type": "image"}, {"type": "image"}, {"type": "text", "text": "Both?"}]},)
    turn = Turn(start=2, end=4, text="", calls=(zoom([0, 0, 9, 9], 1),), observation=(SEEN,), images=(BLUE,))
    found = crops(tmp_path, turn, opening=opening, opening_images=(GREEN, GREEN))
    assert found == [([0, 0, 9, 9], 1, 2)]
    [row] = rows(tmp_path)
    assert row["messages"] == [{"role": "user", "text": "<image><image>Both?", "images": [0, 1]}]
    assert row["images"][0] == row["images"][1] != row["images"][2]


def test_images_are_counted_over_all_turns(tmp_path: Path) -> None:
    first = Turn(start=2, end=3, text="", calls=(zoom([0, 0, 9, 9], 0),), observation=(SEEN,), images=(GREEN,))
    second = Turn(start=3, end=4, text="", calls=(zoom([5, 5, 9, 9], 1),), observation=(SEEN,), images=(BLUE,))
    assert crops(tmp_path, first, second) == [([0, 0, 9, 9], 0, 1), ([5, 5, 9, 9], 1, 2)]


@pytest.mark.parametrize(
    ("box", "image"),
    [
        ([0, 0, 9], 0),
        ("0 0 9 9", 0),
        ([0, 0, 9, float("nan")], 0),
        ([0, 0, 9, 10**400], 0),
        ([0, 0, 9, "9"], 0),
        ([0, 0, 9, True], 0),
        (None, 0),
        ([0, 0, 9, 9], None),
        ([0, 0, 9, 9], 1),  # the image that this call makes is not there yet
        ([0, 0, 9, 9], -1),
        ([0, 0, 9, 9], 0.5),
        ([0, 0, 9, 9], float("inf")),
    ],
)
def test_arguments_that_name_no_box_of_an_image_draw_none(tmp_path: Path, box: Any, image: Any) -> None:
    turn = Turn(start=2, end=4, text="", calls=(zoom(box, image),), observation=(SEEN,), images=(GREEN,))
    assert crops(tmp_path, turn) == []
    assert rows(tmp_path)[0]["turns"][0]["calls"][0]["name"] == "image_zoom_in_tool"


def test_a_call_may_cut_what_an_earlier_one_of_its_turn_made(tmp_path: Path) -> None:
    calls = (zoom([0, 0, 9, 9], 0), zoom([5, 5, 9, 9], 1), zoom([6, 6, 9, 9], 3))
    turn = Turn(start=2, end=4, text="", calls=calls, observation=(SEEN, SEEN, SEEN), images=(GREEN, BLUE, BLUE))
    assert crops(tmp_path, turn) == [([0, 0, 9, 9], 0, 1), ([5, 5, 9, 9], 1, 2)]  # image 3 is the third call's own


def test_calls_that_were_refused_together_share_an_answer(tmp_path: Path) -> None:
    calls = (zoom([0, 0, 9, 9], 0), zoom([5, 5, 9, 9], 0, "too many"), zoom([6, 6, 9, 9], 0, "too many"))
    turn = Turn(start=2, end=4, text="", calls=calls, observation=(SEEN, FAILED), images=(GREEN,))
    assert crops(tmp_path, turn) == [([0, 0, 9, 9], 0, 1)]


def test_what_the_policy_never_saw_is_a_box_without_a_crop(tmp_path: Path) -> None:
    """An episode that is cut short keeps the calls of its last turn, not what they answered."""
    assert crops(tmp_path, Turn(start=2, end=4, text="", calls=(zoom([0, 0, 9, 9], 0),))) == [([0, 0, 9, 9], 0, None)]


def test_one_message_for_two_calls_still_tells_which_image_is_whose(tmp_path: Path) -> None:
    both = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": "and"}, {"type": "image"}]}
    calls = (zoom([0, 0, 9, 9], 0), zoom([1, 1, 2, 2], 0, "too small"), zoom([5, 5, 9, 9], 0.0))
    turn = Turn(start=2, end=4, text="", calls=calls, observation=(both,), images=(GREEN, BLUE))
    assert crops(tmp_path, turn) == [([0, 0, 9, 9], 0, 1), ([5, 5, 9, 9], 0, 2)]
    unclear = replace(turn, images=(GREEN,), observation=({"role": "user", "content": [{"type": "image"}]},))
    assert [made for _, _, made in crops(tmp_path, unclear)] == [None, None]


def test_a_policy_that_spams_calls_does_not_fill_the_disk(tmp_path: Path) -> None:
    spam = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in range(100)]
    turn = Turn(start=2, end=4, text="", observation=tuple(SEEN for _ in spam), images=tuple(spam))
    TrajectoryRecorder(tmp_path).record(0, [episode(turn)])
    [row] = rows(tmp_path)
    assert len(row["images"]) == 101 and row["images"][24:] == [None] * 77
    assert len(list((tmp_path / "images").iterdir())) == 24
    long = replace(turn, observation=({"role": "tool", "content": "x" * 1_000_000},), images=())
    TrajectoryRecorder(tmp_path).record(0, [episode(long)])
    assert len(rows(tmp_path)[1]["turns"][0]["observation"][0]["text"]) < 21_000


def test_arguments_of_any_depth_can_be_recorded(tmp_path: Path) -> None:
    deep: list[Any] = []
    for _ in range(3_000):
        deep = [deep]
    call = ToolCall(name="t", arguments={"deep": deep, "nan": float("nan"), "lone": "\ud800", "odd": object})
    TrajectoryRecorder(tmp_path).record(0, [episode(Turn(start=2, end=4, text="", calls=(call,)))])
    arguments = rows(tmp_path)[0]["turns"][0]["calls"][0]["arguments"]
    assert arguments["nan"] is None and "…" in json.dumps(arguments["deep"], ensure_ascii=False)


def test_photographs_are_stored_as_jpeg_and_drawings_exactly(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (300, 300, 3), dtype=np.uint8)
    turn = Turn(start=2, end=4, text="", observation=(SEEN,), images=(Image.fromarray(noise),))
    TrajectoryRecorder(tmp_path).record(0, [episode(turn)])
    assert [name.rsplit(".")[1] for name in rows(tmp_path)[0]["images"]] == ["png", "jpeg"]


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
    with pytest.raises(ValueError, match="got streams of 0 trajectories for 1"):
        TrajectoryRecorder(tmp_path).record(1, [trajectory()], streams=[])
    recorder = TrajectoryRecorder(tmp_path, decode_tokens=lambda ids: [str(i) for i in ids])
    with pytest.raises(ValueError, match=r"a stream \(gate\) of shape \(3,\) for a trajectory of 4 tokens"):
        recorder.record(1, [trajectory()], streams=[TokenStreams(gates_T=np.zeros(3))])


def test_importing_the_report_does_not_import_torch() -> None:
    code = "import sys, posttrain.report; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], cwd=Path(__file__).parents[3], check=False).returncode == 0
