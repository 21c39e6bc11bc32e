"""Patches back to the picture they were cut from, pixel for pixel: what an engine that cuts for itself is given."""

import torch
from PIL import Image
from transformers import Qwen2VLImageProcessor

from .sequences import ImagePatches

_ROUNDING = 0.05
"""Levels of 0-255 that a float32 patch may lie beside a whole one; measured 1e-4."""


def picture_of(patches: ImagePatches, processor: Qwen2VLImageProcessor) -> Image.Image:
    """The RGB picture whose patches these are: processed again without a resize, it gives equal bits.

    `processor` is the one that cut them; its mean, standard deviation and patch sizes are undone.
    Raises ValueError for patches of several frames, of another size, or normalised otherwise.
    """
    t, h, w = patches.grid_thw
    patch, merge, frames = processor.patch_size, processor.merge_size, processor.temporal_patch_size
    width = 3 * frames * patch * patch
    if patches.pixel_values_PD.shape[1] != width:
        raise ValueError(
            f"patches of {patches.pixel_values_PD.shape[1]} numbers were not cut by this processor, whose patches of "
            f"{frames} frames, 3 colours and {patch} x {patch} pixels have {width}"
        )
    # Patches come square by square of merge x merge, each colour by colour, then frame by frame.
    squares = patches.pixel_values_PD.reshape(t, h // merge, w // merge, merge, merge, 3, frames, patch, patch)
    video = squares.permute(0, 6, 5, 1, 3, 7, 2, 4, 8).reshape(t * frames, 3, h * patch, w * patch)
    if t != 1 or not (video == video[:1]).all():
        raise ValueError(f"patches of {t * frames} frames that differ are a video, not a picture")
    levels = _levels(video[0], processor)
    whole = levels.round()
    if (levels - whole).abs().max() > _ROUNDING or whole.min() < 0 or whole.max() > 255:
        raise ValueError(
            "patches do not come to whole levels of 0-255: they were normalised otherwise than by this processor, "
            "or kept in half precision"
        )
    return Image.fromarray(whole.to(torch.uint8).permute(1, 2, 0).contiguous().numpy())


def _levels(pixels_CHW: torch.Tensor, processor: Qwen2VLImageProcessor) -> torch.Tensor:
    """float64 [3, H, W], 0-255: the processor's normalisation and rescaling undone."""
    levels = pixels_CHW.double()
    if processor.do_normalize:
        mean, std = (torch.tensor(numbers).double().view(3, 1, 1) for numbers in _mean_and_std(processor))
        levels = levels * std + mean
    return levels / processor.rescale_factor if processor.do_rescale else levels


def _mean_and_std(processor: Qwen2VLImageProcessor) -> tuple[list[float], list[float]]:
    mean, std = processor.image_mean, processor.image_std
    if not isinstance(mean, list | tuple) or not isinstance(std, list | tuple):
        raise ValueError(f"the processor's image_mean {mean} and image_std {std} must be one number for each colour")
    return list(mean), list(std)
