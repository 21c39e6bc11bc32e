"""Pictures made from patches: cut again, they must give the same bits."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from posttrain.model import Family, ImagePatches
from posttrain.model.loading import load_processor
from posttrain.model.pictures import picture_of
from transformers import Qwen2VLImageProcessor

VISION = [family for family in Family if family is not Family.QWEN3]
PUBLISHED = {
    "Qwen2.5-VL": Qwen2VLImageProcessor(),  # patches of 14 pixels, CLIP's mean and deviation
    "Qwen3-VL": Qwen2VLImageProcessor(patch_size=16, image_mean=[0.5] * 3, image_std=[0.5] * 3),
}


def noise(width: int, height: int, seed: int = 0) -> Image.Image:
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8))


def cut(picture: Image.Image, processor: Qwen2VLImageProcessor) -> ImagePatches:
    made = processor(images=[picture], do_resize=False, return_tensors="pt")
    t, h, w = made["image_grid_thw"][0].tolist()
    return ImagePatches(pixel_values_PD=made["pixel_values"], grid_thw=(t, h, w), key="")


@pytest.mark.parametrize("family", VISION)
def test_the_picture_of_every_familys_patches_is_the_one_they_were_cut_from(tiny_checkpoint, family: Family) -> None:
    processor = load_processor(tiny_checkpoint(family)).image_processor
    picture = noise(96, 64)
    patches = cut(picture, processor)
    again = picture_of(patches, processor)
    assert again.mode == "RGB"
    assert np.array_equal(np.asarray(again), np.asarray(picture))
    # As a server cuts it: with the resize on, and limits under which it changes nothing.
    served = processor(images=[again], return_tensors="pt")
    assert torch.equal(served["pixel_values"], patches.pixel_values_PD)
    assert tuple(served["image_grid_thw"][0].tolist()) == patches.grid_thw


@pytest.mark.parametrize("name", PUBLISHED)
@settings(max_examples=20, deadline=None)
@given(rows=st.integers(1, 6), columns=st.integers(1, 6), seed=st.integers(0, 2**16))
def test_published_constants_give_equal_bits_at_every_size(name: str, rows: int, columns: int, seed: int) -> None:
    processor = PUBLISHED[name]
    side = processor.patch_size * processor.merge_size
    patches = cut(noise(columns * side, rows * side, seed), processor)
    assert torch.equal(cut(picture_of(patches, processor), processor).pixel_values_PD, patches.pixel_values_PD)


def test_every_level_of_every_colour_comes_back() -> None:
    levels = np.arange(256, dtype=np.uint8)
    ramps = np.stack([levels, levels[::-1], np.roll(levels, 7)], axis=1)
    for name, processor in PUBLISHED.items():
        side = processor.patch_size * processor.merge_size
        pixels = np.resize(ramps, (side, -(-256 // side) * side, 3))  # wraps round until the last square is full
        again = picture_of(cut(Image.fromarray(pixels), processor), processor)
        assert np.array_equal(np.asarray(again), pixels), name


def test_patches_of_another_processor_are_refused() -> None:
    ours, other = PUBLISHED["Qwen3-VL"], PUBLISHED["Qwen2.5-VL"]
    with pytest.raises(ValueError, match="1176 numbers were not cut by this processor"):
        picture_of(cut(noise(56, 56), other), ours)
    clip = Qwen2VLImageProcessor(patch_size=16)
    with pytest.raises(ValueError, match="normalised otherwise"):
        picture_of(cut(noise(64, 64), clip), ours)


def test_patches_rounded_to_half_precision_are_refused() -> None:
    processor = PUBLISHED["Qwen3-VL"]
    patches = cut(noise(64, 64), processor)
    rounded = replace(patches, pixel_values_PD=patches.pixel_values_PD.bfloat16().float())
    with pytest.raises(ValueError, match="half precision"):
        picture_of(rounded, processor)


def test_frames_that_differ_are_refused() -> None:
    processor = PUBLISHED["Qwen3-VL"]
    patches = cut(noise(64, 64), processor)
    moving = patches.pixel_values_PD.clone()
    moving[0, 16 * 16] = -moving[0, 16 * 16] - 0.1  # the first red pixel of the second frame
    with pytest.raises(ValueError, match="a video"):
        picture_of(replace(patches, pixel_values_PD=moving), processor)
    twice = ImagePatches(
        pixel_values_PD=patches.pixel_values_PD.repeat(2, 1), grid_thw=(2, *patches.grid_thw[1:]), key=""
    )
    with pytest.raises(ValueError, match="a video"):
        picture_of(twice, processor)
