"""What a tool returned -> what the policy reads: text that cannot forge a turn, images that a checkpoint can take."""

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from posttrain.data.images import open_image
from posttrain.data.marks import IMAGE_MARK, VIDEO_MARK
from posttrain.environments.calls import without_surrogates
from posttrain.environments.tool_errors import ToolBroken, ToolError

MIN_SIDE = 32
"""Pixels: one token of Qwen3-VL. A thinner image is enlarged."""
MAX_ASPECT_RATIO = 100
MAX_PIXELS_READ = 2**28
"""An image of more pixels is refused; it would take a gigabyte to shrink."""

_REDUCIBLE = ("L", "LA", "RGB", "RGBA", "CMYK", "YCbCr")
# Tokens that end or begin what is said, and the marks that data sets write where an image stands: a tool's text that is
# saved as training data must not become an image. A <tool_call> in it is harmless: only the policy's own are run.
_FORGED = re.compile(rf"<(?=\|[A-Za-z0-9_]{{1,40}}\|>|/?tool_response>|{IMAGE_MARK[1:]}|{VIDEO_MARK[1:]})")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerLimits:
    """How much of a tool's answer the policy reads."""

    max_text_chars: int = 8000
    max_images: int = 8
    max_image_pixels: int = 12_845_056
    """A larger image is shrunk."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ToolAnswer:
    """One tool's answer as the policy reads it."""

    parts: tuple[Mapping[str, Any], ...]
    """Text and image parts in order; no two texts are neighbours."""
    images: tuple[Image.Image, ...] = ()
    """RGB, one for each image part."""

    @property
    def text(self) -> str:
        return "\n".join(part["text"] for part in self.parts if part["type"] == "text")

    @property
    def message(self) -> dict[str, Any]:
        return {"role": "tool", "content": list(self.parts) if self.images else self.text}


def text_answer(text: str, limits: AnswerLimits) -> ToolAnswer:
    """The answer that says this."""
    return ToolAnswer(parts=({"type": "text", "text": safe_text(text, limits.max_text_chars)},))


def tool_answer(
    result: Any, limits: AnswerLimits, *, tool: str = "a tool", written: Callable[[Any], str] | None = None
) -> ToolAnswer:
    """The answer of a tool that returned text, an image, a list of both, chat content parts, or anything JSON-able.

    Numbers and arrays of NumPy are JSON-able. What is none of these is `written` as text; without that, it raises
    ToolBroken, because no call could do better. Raises ToolError for an image that cannot be shown.
    """
    parts: list[Mapping[str, Any]] = []
    images: list[Image.Image] = []
    texts: list[str] = []
    num_left_out, chars_left = 0, limits.max_text_chars

    def flush() -> None:
        nonlocal chars_left
        if texts:  # chat templates write neighbours with nothing between them, which could make a special token
            text = "\n".join(texts)
            parts.append({"type": "text", "text": safe_text(text, chars_left)})
            chars_left = max(chars_left - len(text), 0)
            texts.clear()

    for item in _items(result, tool, written):
        if isinstance(item, str):
            texts.append(item)
        elif len(images) == limits.max_images:
            num_left_out += 1
        else:
            flush()
            images.append(shown_image(item, limits.max_image_pixels))
            parts.append({"type": "image"})
    if num_left_out:
        texts.append(f"[{num_left_out} more images left out]")
        chars_left = max(chars_left, 100)
    flush()
    if not parts:
        parts.append({"type": "text", "text": ""})
    return ToolAnswer(parts=tuple(parts), images=tuple(images))


def safe_text(text: str, max_chars: int = 8000) -> str:
    """The text without what would forge a turn or an image: `<|im_end|>` becomes `< |im_end|>`; cut with a remark.

    For whatever text an environment passes on from elsewhere.
    """
    kept = without_surrogates(text[:max_chars])
    kept = _FORGED.sub("< ", kept)
    return kept if len(text) <= max_chars else f"{kept}\n[{len(text) - max_chars:,} more characters left out]"


def shown_image(image: Image.Image, max_pixels: int = 12_845_056) -> Image.Image:
    """The image as RGB, upright, transparency over white, its shorter side at least 32 pixels, at most `max_pixels`.

    Raises ToolError for one that is empty, thinner than 1:100, or of more than 2**28 pixels.
    """
    short, long = sorted(image.size)
    what = f"an image of {image.width} x {image.height} pixels"
    if short == 0:
        raise ToolError(f"{what} is empty")
    if long > MAX_ASPECT_RATIO * short:
        raise ToolError(f"{what} cannot be shown: its sides may differ by at most a factor of {MAX_ASPECT_RATIO}")
    if short * long > MAX_PIXELS_READ:
        raise ToolError(f"{what} is too large to be shown")
    if short * long >= 4 * max_pixels and image.mode in _REDUCIBLE:  # before the copies that a conversion makes
        image = image.reduce(math.isqrt(short * long // max_pixels))
    image = open_image(image, root=Path(), row="tool")
    width, height = image.size
    scale = min(max(1.0, MIN_SIDE / min(width, height)), math.sqrt(max_pixels / (width * height)))
    if scale == 1:
        return image
    size = (max(1, math.floor(width * scale)), max(1, math.floor(height * scale)))
    return image.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0 if scale < 1 else None)


def _items(result: Any, tool: str, written: Callable[[Any], str] | None) -> Iterator[str | Image.Image]:
    if isinstance(result, str | Image.Image):
        yield result
    elif _is_part(result):
        yield result["text"] if result["type"] == "text" else result["image"]
    elif isinstance(result, list | tuple) and any(isinstance(x, Image.Image) or _is_part(x) for x in result):
        for item in result:
            yield from _items(item, tool, written)
    else:
        try:
            text = json.dumps(result, ensure_ascii=False, default=_plain)
        except (TypeError, ValueError, RecursionError) as error:
            if written is None:
                kind = type(result).__name__
                problem = f"{tool} returned a {kind} that is no text, image or JSON ({error!s:.100})"
                raise ToolBroken(f"{problem}; write it as text in the tool") from None
            text = written(result)
        yield text


def _plain(value: Any) -> Any:
    """NumPy's numbers and arrays as Python's; raises TypeError for what is neither."""
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"Object of type {type(value).__name__} is not JSON serializable")


def _is_part(value: Any) -> bool:
    match value:
        case {"type": "text", "text": str()}:
            return True
        case {"type": "image", "image": Image.Image()}:
            return True
    return False
