"""The zoom tool: official schema, pixels as PIL cuts them, and a sentence for every box that cannot be cut."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import Qwen2VLImageProcessor

from posttrain.data import images as library_images
from posttrain.environments import ToolContext, ToolError, make_tool
from posttrain.environments.zoom import ImageZoom, pixel_box
from posttrain.errors import ConfigError
from posttrain.records import Example

EXAMPLE = Example(id="1", task="t", messages=({"role": "user", "content": "?"},))


def zoom(image: Image.Image, box: list[float], *, img_idx: Any = 0, **options: Any) -> Image.Image:
    context = ToolContext(example=EXAMPLE, images=(image,), num_prompt_images=1)
    return ImageZoom(**options).zoom(box, "it", img_idx, context)


def gradient(width: int, height: int) -> Image.Image:
    """Every pixel of a 256 x 256 neighbourhood is another colour."""
    down, across = (np.arange(side, dtype=np.uint8) for side in (height, width))
    pixels = np.empty((height, width, 3), np.uint8)
    pixels[..., 0], pixels[..., 1], pixels[..., 2] = across, down[:, None], across + down[:, None]
    return Image.fromarray(pixels)


def test_the_schema_is_the_official_one() -> None:
    schema = make_tool("image_zoom_in_tool").schema["function"]
    assert schema["name"] == "image_zoom_in_tool"
    assert schema["description"] == (
        "Zoom in on a specific region of an image by cropping it based on a bounding box (bbox) and an optional "
        "object label"
    )
    assert schema["parameters"]["required"] == ["bbox_2d", "label", "img_idx"]
    types = {name: spec["type"] for name, spec in schema["parameters"]["properties"].items()}
    assert types == {"bbox_2d": "array", "label": "string", "img_idx": "number"}
    box = schema["parameters"]["properties"]["bbox_2d"]
    assert (box["items"], box["minItems"], box["maxItems"]) == ({"type": "number"}, 4, 4)


@pytest.mark.parametrize(
    ("size", "box", "crop", "shown"),
    [
        # the cookbook's call: 86 x 167 pixels, 256 tokens of its shape are 367.4 x 713.5, rounded up to whole tokens
        ((1000, 1000), [574, 301, 660, 468], (574, 301, 660, 468), (384, 736)),
        # 500 x 250 pixels: 724.1 x 362.0
        ((1000, 500), [0, 0, 500, 500], (0, 0, 500, 250), (736, 384)),
        # large enough: whole tokens next to 750 x 1000
        ((1500, 1000), [0, 0, 500, 1000], (0, 0, 750, 1000), (736, 992)),
        # outside is clamped
        ((1000, 1000), [-50, 500, 2000, 1e9], (0, 500, 1000, 1000), (992, 512)),
        # 10 x 20 grows about (105.5, 110), shape kept, to 32 x 64, and outwards to whole pixels
        ((1000, 1000), [100.5, 100, 110.5, 120], (89, 78, 122, 142), (384, 736)),
        # at a corner: grows to (-11, -11)..(22, 22), of which 22 pixels are left: not over 32, so it stays as it is
        ((1000, 1000), [0, 0, 11, 11], (0, 0, 11, 11), (512, 512)),
    ],
)
def test_boxes_by_hand(
    size: tuple[int, int], box: list[float], crop: tuple[int, int, int, int], shown: tuple[int, int]
) -> None:
    image = gradient(*size)
    made = zoom(image, box)
    assert made.size == shown
    assert made.tobytes() == image.crop(crop).resize(shown, Image.Resampling.BICUBIC).tobytes()


@pytest.mark.parametrize(
    ("box", "says"),
    [
        ([float("nan"), 0, 1, 1], "finite"),
        ([0, 0, float("inf"), 1], "finite"),
        ([0, 0, -float("inf"), 1], "finite"),
        ([0, 0, True, 1], "finite"),
        ([0, 0, "1", 1], "finite"),
        ([0, 0, 1], "four"),
        ([[0, 0, 1, 1]] * 4, "four finite"),
        ([500, 0, 400, 100], "x1 must be less than x2"),
        ([0, 500, 100, 400], "y1 less than y2"),
        ([100, 100, 100, 200], "no area"),
        ([0, 0, 0, 0], "no area"),
        ([1000, 0, 1200, 100], "outside"),
        ([-200, 0, -100, 100], "outside"),
        ([10**400, 0, 10**401, 1], "outside"),
        ([0, 0, 1000, 1], "thinner than 1:100"),
    ],
)
def test_boxes_that_cannot_be_cut_say_why(box: list[Any], says: str) -> None:
    with pytest.raises(ToolError, match=says):
        zoom(gradient(4000, 400) if says.startswith("thinner") else gradient(1000, 1000), box)


def test_a_thin_box_grows_where_the_image_has_room() -> None:
    # 1000 x 1 pixels would be 32,000 x 32: the image leaves 1000 x 33
    assert zoom(gradient(1000, 1000), [0, 500.5, 1000, 501.5]).size == (2848, 96)
    with pytest.raises(ToolError, match="thinner"):  # 4000 x 33
        zoom(gradient(4000, 1000), [0, 500.5, 1000, 501.5])


def test_less_than_a_pixel_of_a_tiny_image_is_refused() -> None:
    with pytest.raises(ToolError, match="smaller than a pixel"):
        zoom(gradient(20, 20), [500, 500, 505, 505])


def test_numbers_too_long_for_a_float_are_clamped() -> None:
    assert pixel_box([0, 0, 10**400, 500], (80, 40)) == (0, 0, 80, 20)


@given(
    st.integers(1, 700),
    st.integers(1, 700),
    st.lists(st.integers(-100, 1100) | st.floats(-100, 1100), min_size=4, max_size=4),
)
@settings(max_examples=60, deadline=None)
def test_every_box_gives_a_crop_of_whole_tokens_or_a_sentence(width: int, height: int, box: list[float]) -> None:
    try:
        crop = zoom(gradient(width, height), box)
    except ToolError:
        return
    assert crop.width % 32 == 0 and crop.height % 32 == 0
    assert crop.width * crop.height >= 256 * 32 * 32
    assert max(crop.size) <= 200 * min(crop.size)


@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4))
def test_crops_can_have_one_size(box: list[int]) -> None:
    """As for a model that knows pictures of 64 x 64 only."""
    (left, right), (top, bottom) = sorted(box[::2]), sorted(box[1::2])
    assume(right - left >= 10 and bottom - top >= 10)
    crop = zoom(gradient(256, 256), [left, top, right, bottom], crop_size=(64, 64), min_side=8)
    assert crop.size == (64, 64)


def test_a_crop_is_not_resized_again_by_the_checkpoint() -> None:
    processor = Qwen2VLImageProcessor(
        patch_size=16, merge_size=2, size={"shortest_edge": 65536, "longest_edge": 16777216}
    )
    for box in ([574, 301, 660, 468], [0, 0, 1000, 1000], [10, 10, 12, 13]):
        crop = zoom(gradient(1600, 1200), list(map(float, box)))
        assert library_images.resize_for(crop, processor) is crop


def test_sizes_that_admit_no_crop_are_refused() -> None:
    with pytest.raises(ConfigError, match="max_pixels"):
        ImageZoom(min_pixels=4096, max_pixels=1024)
    with pytest.raises(ConfigError, match="max_pixels"):
        ImageZoom(min_pixels=1, max_pixels=100)
    with pytest.raises(ConfigError, match="at least 1"):
        ImageZoom(factor=0)


def test_crops_of_photographs_are_what_pil_cuts(shared_data: Path) -> None:
    photos = sorted((shared_data / "photos").glob("*.*"))
    assert len(photos) >= 3
    for path in photos:
        with Image.open(path) as file:
            photo = file.convert("RGB")
        for box in ([574, 301, 660, 468], [0, 0, 1000, 1000], [900, 880, 1000, 1000]):
            crop = zoom(photo, list(map(float, box)))
            left, top, right, bottom = (side * length / 1000 for side, length in zip(box, photo.size * 2, strict=True))
            cut = photo.crop(tuple(map(round, (left, top, right, bottom))))  # pyright: ignore[reportArgumentType]
            assert crop.tobytes() == cut.resize(crop.size, Image.Resampling.BICUBIC).tobytes()
            assert 256 * 1024 <= crop.width * crop.height <= 12_845_056
            shape = (right - left) / (bottom - top)
            assert math.isclose(crop.width / crop.height, shape, rel_tol=0.1)  # rounded to whole tokens
