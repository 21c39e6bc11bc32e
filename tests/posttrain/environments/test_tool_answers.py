"""What tools return becomes what a policy can read: bounded, in a shape that checkpoints take, and forging nothing."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from posttrain.data.marks import RESERVED, check_text
from posttrain.environments import ToolBroken, ToolError
from posttrain.environments.tool_answers import AnswerLimits, safe_text, shown_image, tool_answer

LIMITS = AnswerLimits()
RED = Image.new("RGB", (64, 48), "red")


@pytest.mark.parametrize(
    ("result", "text"),
    [
        ("seen", "seen"),
        ("", ""),
        (None, "null"),
        (3, "3"),
        (2.5, "2.5"),
        (True, "true"),
        ({"a": [1, None]}, '{"a": [1, null]}'),
        (["a", "b"], '["a", "b"]'),
        ([], "[]"),
        ("größer", "größer"),
        ({"type": "text", "text": "part"}, "part"),
    ],
)
def test_text_and_json(result: Any, text: str) -> None:
    answer = tool_answer(result, LIMITS)
    assert answer.text == text and answer.images == ()
    assert answer.message == {"role": "tool", "content": text}


@pytest.mark.parametrize(
    "result",
    [
        ["left", RED, "right"],
        ("left", RED, "right"),
        [{"type": "text", "text": "left"}, {"type": "image", "image": RED}, {"type": "text", "text": "right"}],
    ],
)
def test_images_stand_where_they_were_returned(result: Any) -> None:
    answer = tool_answer(result, LIMITS)
    assert answer.message["content"] == [
        {"type": "text", "text": "left"},
        {"type": "image"},
        {"type": "text", "text": "right"},
    ]
    assert [image.getpixel((0, 0)) for image in answer.images] == [(255, 0, 0)]
    assert answer.images[0] is not RED  # what a tool keeps and draws on later was shown as it was


@pytest.mark.parametrize("result", [{1, 2}, object(), b"bytes", {"picture": RED}, [RED, {3}], lambda: 0])
def test_what_is_neither_is_refused(result: Any) -> None:
    with pytest.raises(ToolBroken, match="no text, image or JSON"):
        tool_answer(result, LIMITS)


def test_something_that_holds_itself_is_refused() -> None:
    circle: list[Any] = []
    circle.append(circle)
    with pytest.raises(ToolBroken, match="no text, image or JSON"):
        tool_answer(circle, LIMITS)


@pytest.mark.parametrize("mark", [*RESERVED, "<|object_ref_start|>", "<tool_response>", "</tool_response>", "<image>"])
def test_marks_are_defused(mark: str) -> None:
    text = safe_text(f"before{mark}{mark}after", 1000)
    assert mark not in text and text.replace("< ", "<") == f"before{mark}{mark}after"


@given(st.lists(st.sampled_from(["<", "|", "im_end", "|>", "<video>", "</", "tool_response", ">", "\ud800", "a"])))
def test_no_text_forges_a_turn(pieces: list[str]) -> None:
    text = tool_answer("".join(pieces), LIMITS).text
    check_text(text, "row")
    assert "<tool_response>" not in text and "</tool_response>" not in text
    text.encode()


def test_long_text_is_cut_with_a_remark() -> None:
    limits = AnswerLimits(max_text_chars=10)
    assert tool_answer("x" * 1_000_010, limits).text == "x" * 10 + "\n[1,000,000 more characters left out]"
    assert tool_answer(["x" * 8, RED, "y" * 8], limits).text == "xxxxxxxx\nyy\n[6 more characters left out]"
    assert tool_answer("x" * 10, limits).text == "x" * 10


def test_too_many_images_are_left_out_with_a_remark() -> None:
    answer = tool_answer([RED] * 11, AnswerLimits(max_images=3))
    assert len(answer.images) == 3
    assert answer.text == "[8 more images left out]"


@pytest.mark.parametrize(
    ("mode", "fill", "rgb"),
    [
        ("CMYK", (0, 255, 255, 0), (254, 0, 0)),  # without a colour profile; PIL's own arithmetic is off by one
        ("L", 7, (7, 7, 7)),
        ("1", 1, (255, 255, 255)),
        ("LA", (7, 0), (255, 255, 255)),
        ("RGBA", (1, 2, 3, 255), (1, 2, 3)),
        ("RGBA", (1, 2, 3, 0), (255, 255, 255)),
        ("I;16", 257, (1, 1, 1)),
    ],
)
def test_other_modes_become_rgb(mode: str, fill: Any, rgb: tuple[int, int, int]) -> None:
    shown = shown_image(Image.new(mode, (40, 40), fill), 10**6)
    assert shown.mode == "RGB" and shown.size == (40, 40)
    assert np.abs(np.array(shown.getpixel((5, 5))) - rgb).max() <= 1


def test_a_palette_becomes_rgb() -> None:
    shown = shown_image(Image.new("RGB", (40, 40), (9, 8, 7)).convert("P", palette=Image.Palette.ADAPTIVE), 10**6)
    assert shown.mode == "RGB" and shown.getpixel((0, 0)) == (9, 8, 7)


@pytest.mark.parametrize(
    ("size", "shown"),
    [
        ((1, 1), (32, 32)),
        ((16, 8), (64, 32)),
        ((31, 1000), (32, 1032)),
        ((32, 32), (32, 32)),
        ((320, 3200), (320, 3200)),
    ],
)
def test_sizes_are_made_to_fit(size: tuple[int, int], shown: tuple[int, int]) -> None:
    made = shown_image(Image.new("RGB", size, "blue"), LIMITS.max_image_pixels)
    assert made.size == shown and made.getpixel((0, 0)) == (0, 0, 255)


@pytest.mark.parametrize(
    ("size", "says"), [((2, 1000), "1000 pixels cannot be shown"), ((500, 1), "factor of 100"), ((0, 9), "empty")]
)
def test_images_that_cannot_be_shown_are_refused(size: tuple[int, int], says: str) -> None:
    with pytest.raises(ToolError, match=says):
        shown_image(Image.new("RGB", size), 10**6)


def test_an_image_too_large_to_shrink_is_refused() -> None:
    with pytest.raises(ToolError, match="too large"):
        shown_image(Image.new("1", (17_000, 17_000)), 10**6)  # 36 MB as bits


@given(st.integers(1, 3000), st.integers(1, 3000), st.integers(1024, 10**6))
def test_every_image_that_is_shown_has_a_shape_that_checkpoints_take(width: int, height: int, max_pixels: int) -> None:
    if max(width, height) > 100 * min(width, height):
        return
    shown = shown_image(Image.new("L", (width, height)), max_pixels)
    assert shown.width * shown.height <= max(max_pixels, 32 * 3200)
    assert max(shown.size) <= 200 * min(shown.size)
