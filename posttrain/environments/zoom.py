"""`image_zoom_in_tool`: a crop of one of the images, as large as the policy needs to read it."""

import math
from dataclasses import dataclass
from typing import Any

from PIL import Image
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from posttrain.environments.tool_answers import MAX_ASPECT_RATIO
from posttrain.environments.tool_registry import register_tool
from posttrain.environments.tools import Tool, ToolContext, ToolError
from posttrain.errors import ConfigError

_DESCRIPTION = (
    "Zoom in on a specific region of an image by cropping it based on a bounding box (bbox) "
    "and an optional object label"
)
_PARAMETERS: dict[str, Any] = {
    "type": "object",
    "properties": {
        "bbox_2d": {
            "type": "array",
            "items": {"type": "number"},
            "minItems": 4,
            "maxItems": 4,
            "description": (
                "The bounding box of the region to zoom in, as [x1, y1, x2, y2], where (x1, y1) is the top-left corner "
                "and (x2, y2) is the bottom-right corner"
            ),
        },
        "label": {"type": "string", "description": "The name or label of the object in the specified bounding box"},
        "img_idx": {"type": "number", "description": "The index of the zoomed-in image (starting from 0)"},
    },
    "required": ["bbox_2d", "label", "img_idx"],
}


@register_tool("image_zoom_in_tool")
@dataclass(frozen=True, slots=True, kw_only=True)
class ImageZoom:
    """Qwen3-VL's zoom tool, with the schema and the pixels of Qwen-Agent's `image_zoom_in_qwen3vl.py`.

    `bbox_2d` is in 0-1000 of the chosen image and clamped to it; `img_idx` counts all images so far, those of tools
    too. A box with a side under `min_side` pixels is grown about its centre, its shape kept, where the image leaves
    room for more than `min_side` on both sides. The crop is resized (bicubic) to whole tokens, at least `min_pixels`
    of them: small crops are enlarged. Refused here and not there: negative `img_idx`, crops thinner than
    1:100 and of no whole pixel.
    """

    min_pixels: int = 256 * 32 * 32
    """A smaller crop is enlarged: 256 tokens of 32 x 32 pixels by default."""
    max_pixels: int = 12_845_056
    """A larger crop is shrunk."""
    factor: int = 32
    """Sides of a crop are multiples of so many pixels: patch size times merge size of the checkpoint."""
    min_side: int = 32
    """Pixels of the image; a box with a shorter side is grown."""
    crop_size: tuple[int, int] | None = None
    """Width and height to which every crop is stretched, whatever its shape, for models that know one size only."""

    def __post_init__(self) -> None:
        if min(self.min_pixels, self.factor, self.min_side, *(self.crop_size or (1, 1))) < 1:
            raise ConfigError(f"image_zoom_in_tool: sizes must be at least 1 pixel, got {self}")
        if self.max_pixels < max(self.min_pixels, self.factor**2):
            raise ConfigError(
                f"image_zoom_in_tool: max_pixels {self.max_pixels} must be at least min_pixels {self.min_pixels} and "
                f"one token of {self.factor} x {self.factor} pixels"
            )

    def as_tool(self) -> Tool:
        return Tool(
            name="image_zoom_in_tool",
            description=_DESCRIPTION,
            parameters=_PARAMETERS,
            function=self.zoom,
            context_parameter="context",
        )

    def zoom(self, bbox_2d: list[float], label: str, img_idx: int, context: ToolContext) -> Image.Image:
        """The crop. Raises ToolError for a box that has no pixels in the image, or too thin ones."""
        image = context.image(img_idx)
        left, top, right, bottom = self._grown(pixel_box(bbox_2d, image.size), image.size)
        width, height = right - left, bottom - top
        if max(width, height) > MAX_ASPECT_RATIO * min(width, height):
            raise ToolError(
                f"bbox_2d {bbox_2d!s:.80} is thinner than 1:{MAX_ASPECT_RATIO}; choose a box of another shape"
            )
        crop = image.crop((round(left), round(top), round(right), round(bottom)))
        if min(crop.size) == 0:
            raise ToolError(f"bbox_2d {bbox_2d!s:.80} is smaller than a pixel of the image; choose a larger box")
        return crop.resize(self._size(width, height), Image.Resampling.BICUBIC)

    def _grown(
        self, box: tuple[float, float, float, float], size: tuple[int, int]
    ) -> tuple[float, float, float, float]:
        left, top, right, bottom = box
        shorter = min(right - left, bottom - top)
        if shorter >= self.min_side or shorter == 0:  # a number that is no pixel, however wide
            return box
        ratio = self.min_side / shorter
        half_width = math.ceil(min((right - left) * ratio * 0.5, size[0]))
        half_height = math.ceil(min((bottom - top) * ratio * 0.5, size[1]))
        x, y = (left + right) / 2, (top + bottom) / 2
        grown = (
            max(0, math.floor(x - half_width)),
            max(0, math.floor(y - half_height)),
            min(size[0], math.ceil(x + half_width)),
            min(size[1], math.ceil(y + half_height)),
        )
        fits = grown[2] - grown[0] > self.min_side and grown[3] - grown[1] > self.min_side
        return grown if fits else box

    def _size(self, width: float, height: float) -> tuple[int, int]:
        if self.crop_size is not None:
            return self.crop_size
        sides = smart_resize(height, width, self.factor, self.min_pixels, self.max_pixels)  # pyright: ignore
        return sides[1], sides[0]


def pixel_box(bbox_2d: list[float], size: tuple[int, int]) -> tuple[float, float, float, float]:
    """The part of a 0-1000 box that lies in the image, in pixels, not rounded.

    Raises ToolError where a number is NaN or infinite, the corners are swapped, or the box has no area in the image.
    """
    numbers = [number for number in bbox_2d if not isinstance(number, bool) and isinstance(number, int | float)]
    if len(bbox_2d) != 4 or len(numbers) != 4 or not all(_is_finite(number) for number in numbers):
        raise ToolError(f"bbox_2d must be four finite numbers [x1, y1, x2, y2], got {bbox_2d!s:.80}")
    x1, y1, x2, y2 = bbox_2d
    if x1 >= x2 or y1 >= y2:
        raise ToolError(f"bbox_2d {bbox_2d!s:.80} has no area: x1 must be less than x2, and y1 less than y2")
    x1, y1, x2, y2 = (min(max(side, 0), 1000) for side in (x1, y1, x2, y2))
    if x1 == x2 or y1 == y2:
        raise ToolError(f"bbox_2d {bbox_2d!s:.80} lies outside of the image, whose coordinates go from 0 to 1000")
    width, height = size
    return x1 / 1000.0 * width, y1 / 1000.0 * height, x2 / 1000.0 * width, y2 / 1000.0 * height


def _is_finite(number: float) -> bool:
    return isinstance(number, int) or math.isfinite(number)  # a whole number may be too long for a float
