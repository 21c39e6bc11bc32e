"""`<image>` marks in text: where images stand, and which strings text may not hold."""

import re
from collections.abc import Mapping
from typing import Any

from posttrain.errors import DataError

IMAGE_MARK = "<image>"
VIDEO_MARK = "<video>"
# What the chat template and the processor write themselves. In text they would forge a turn or an image.
RESERVED = (
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_RESERVED = re.compile("|".join(map(re.escape, RESERVED)))

Part = Mapping[str, Any]


def split_marks(text: str, row: str) -> list[Part]:
    """Text and image parts in the order of the text; nothing is stripped, so that joining them gives the text back.

    Raises DataError, naming `row`, for a video mark and for a reserved token.
    """
    check_text(text, row)
    parts: list[Part] = []
    for i, piece in enumerate(text.split(IMAGE_MARK)):
        if i:
            parts.append({"type": "image"})
        if piece:
            parts.append({"type": "text", "text": piece})
    return parts


def check_text(text: str, row: str) -> None:
    """Raises DataError for what text may not hold."""
    if VIDEO_MARK in text:
        raise DataError(f"{row}: holds a {VIDEO_MARK} mark; videos are not supported yet, so remove the row")
    if found := _RESERVED.search(text):
        raise DataError(
            f"{row}: the text holds the special token {found[0]}, which only the chat template may write; remove it"
        )
