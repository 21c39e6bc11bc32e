"""The other built-in tools: rotate, enhance, frames and python."""

import sys
from typing import Any

import numpy as np
import pytest
from PIL import Image

from posttrain.environments import ToolBroken, ToolContext, ToolError, make_tool
from posttrain.errors import ConfigError
from posttrain.records import Example
from tests.waiting import GROWING_S, PATIENCE_S

linux = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined by the Linux kernel")


def run(name: Any, *images: Image.Image, reference: dict[str, Any] | None = None, **arguments: Any) -> Any:
    tool = make_tool(name)
    assert tool.argument_problem(arguments) is None
    example = Example(
        id="1", task="t", messages=({"role": "user", "content": "?"},), images=images, reference=reference or {}
    )
    return tool.call(arguments, ToolContext(example=example, images=images, num_prompt_images=len(images)))


def test_rotation_is_clockwise_and_cuts_nothing_off() -> None:
    image = Image.new("RGB", (40, 20), "blue")
    image.putpixel((0, 0), (255, 0, 0))
    turned = run("image_rotate", image, img_idx=0, angle=90)
    assert turned.size == (20, 40) and turned.getpixel((19, 0)) == (255, 0, 0)
    assert run("image_rotate", turned, img_idx=0, angle=-90).tobytes() == image.tobytes()
    slanted = run("image_rotate", image, img_idx=0, angle=45)
    assert min(slanted.size) >= 42 and slanted.getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize("angle", [361, -1e9, float("nan"), float("inf"), 10**400])
def test_an_angle_beyond_a_turn_is_refused(angle: float) -> None:
    with pytest.raises(ToolError, match="angle must be"):
        run("image_rotate", Image.new("RGB", (9, 9)), img_idx=0, angle=angle)


def test_enhancing_by_one_changes_nothing_and_by_two_doubles() -> None:
    image = Image.new("RGB", (40, 20), (10, 20, 200))
    assert run("image_enhance", image, img_idx=0).tobytes() == image.tobytes()
    assert run("image_enhance", image, img_idx=0, brightness=2).getpixel((0, 0)) == (20, 40, 255)
    assert np.ptp(np.array(run("image_enhance", image, img_idx=0, contrast=0))) == 0
    assert image.getpixel((0, 0)) == (10, 20, 200)


@pytest.mark.parametrize("arguments", [{"contrast": -1}, {"sharpness": 11}, {"brightness": float("nan")}])
def test_strengths_out_of_range_are_refused(arguments: dict[str, float]) -> None:
    with pytest.raises(ToolError, match=next(iter(arguments))):
        run("image_enhance", Image.new("RGB", (9, 9)), img_idx=0, **arguments)


def test_frames_come_with_their_times() -> None:
    frames = [Image.new("RGB", (8, 8), (shade, 0, 0)) for shade in range(4)]
    assert run("select_frames", *frames, frame_idxs=[2, 0], reference={"frame_times": [0, 0.5, 1, 1.5]}) == [
        "<1.0 seconds>",
        frames[2],
        "<0.0 seconds>",
        frames[0],
    ]
    assert run("select_frames", *frames, frame_idxs=[3]) == [frames[3]]


@pytest.mark.parametrize("frame_idxs", [[], [4], [-1], [0] * 9])
def test_frames_that_are_not_there_are_refused(frame_idxs: list[Any]) -> None:
    with pytest.raises(ToolError, match="frame_idxs must"):
        run("select_frames", *[Image.new("RGB", (8, 8))] * 4, frame_idxs=frame_idxs)


def test_fewer_times_than_frames_is_said() -> None:
    with pytest.raises(ToolBroken, match="4 frames, but 1 frame_times"):
        run("select_frames", *[Image.new("RGB", (8, 8))] * 4, frame_idxs=[3], reference={"frame_times": [0.0]})


@linux
@pytest.mark.parametrize(
    ("code", "answer"),
    [
        ("print(6 * 7)", "42\n"),
        ("x = 3", "(the program printed nothing)"),
        ("print(1)\n1 / 0", "1\nError: ZeroDivisionError: division by zero"),
        ("print('no", "Error: SyntaxError: unterminated string literal (detected at line 1)"),
        ("raise SystemExit(3)", "Error: ended with status 3"),
    ],
)
def test_a_program_shows_what_it_prints(code: str, answer: str) -> None:
    assert run({"name": "python", "deadline_s": PATIENCE_S}, code=code) == answer


@linux
def test_the_usual_deadline_is_one_that_a_program_keeps() -> None:
    assert run("python", code="print(6 * 7)") == "42\n"


@linux
@pytest.mark.parametrize(
    "code",
    [
        "import socket; socket.create_connection(('127.0.0.1', 9), timeout=1)",
        "open('/etc/passwd').read()",
        "open('left.txt', 'w')",
        "import subprocess; subprocess.run(['true'])",
        "x = bytearray(2**31)",
    ],
    ids=["network", "read", "write", "process", "memory"],
)
def test_a_program_is_confined(code: str) -> None:
    said = run({"name": "python", "deadline_s": PATIENCE_S}, code=f"{code}\nprint('done')")
    assert "Error" in said and "done" not in said


@linux
def test_a_program_that_hangs_is_killed() -> None:
    """What it has printed by then is shown, if Python has started in time."""
    for seconds in GROWING_S:
        said = run({"name": "python", "deadline_s": seconds}, code="print('on', flush=True)\nwhile True: pass")
        if said.startswith("on"):
            break
    assert said == "on\nError: ran past its deadline"


@linux
def test_options_of_python_are_checked() -> None:
    with pytest.raises(ConfigError, match="memory_mb at least 64"):
        make_tool({"name": "python", "memory_mb": 8})
