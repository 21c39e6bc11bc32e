"""Puts pictures into the page: each distinct file once, shrunk until all of them fit a budget, as data URLs."""

import base64
import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from PIL import Image

PictureFormat = Literal["png", "jpeg"]

_SIDES = (512, 384, 256)
"""Longest sides in pixels, tried in this order until the pictures fit the budget."""
_CRISP_SIDE = 160
"""Pictures up to this side are drawn with hard pixels: blurring a 64 x 64 scene hides what the model saw."""
_FEW_COLOURS = 512
"""Drawings have at most so many colours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture of the page."""

    key: str
    """Its id in the page."""
    href: str
    """A data URL."""
    width: int
    height: int
    crisp: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Album:
    """The pictures that went in, and why each other one did not."""

    pictures: dict[Path, Picture]
    problems: dict[Path, str]


def album(files: Iterable[Path], *, run_folder: Path, budget_bytes: int) -> Album:
    """Reads the files, in order of importance. None outside the run's folder: a run may come from anyone."""
    root = run_folder.resolve()
    problems: dict[Path, str] = {}
    wanted: list[Path] = []
    for file in dict.fromkeys(files):
        if not file.resolve().is_relative_to(root):
            problems[file] = "lies outside the run's folder"
        elif not file.is_file():
            problems[file] = "file is missing"
        else:
            wanted.append(file)
    for side in _SIDES[:-1]:
        pictures, unreadable, left_out = _encode(wanted, side, budget_bytes, give_up=True)
        if not left_out:
            break
    else:
        pictures, unreadable, left_out = _encode(wanted, _SIDES[-1], budget_bytes, give_up=False)
    problems |= unreadable | dict.fromkeys(left_out, "left out: the page's budget for pictures is spent")
    return Album(pictures=pictures, problems=problems)


def _encode(
    files: list[Path], side: int, budget_bytes: int, *, give_up: bool
) -> tuple[dict[Path, Picture], dict[Path, str], list[Path]]:
    """Pictures, unreadable files with the reason, and files beyond the budget (with `give_up` only the first)."""
    pictures: dict[Path, Picture] = {}
    unreadable: dict[Path, str] = {}
    left_out: list[Path] = []
    spent = 0
    for file in files:
        try:
            picture = _picture(file, side, key=f"picture-{len(pictures)}")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:  # PIL raises all four
            unreadable[file] = f"cannot be read: {error}"
            continue
        if spent + len(picture.href) > budget_bytes:
            left_out.append(file)
            if give_up:
                break
            continue
        spent += len(picture.href)
        pictures[file] = picture
    return pictures, unreadable, left_out


def _picture(file: Path, side: int, *, key: str) -> Picture:
    with Image.open(file) as opened:
        image = opened.convert("RGB")
    image.thumbnail((side, side), Image.Resampling.LANCZOS)
    kind = format_of(image)
    href = f"data:image/{kind};base64,{base64.b64encode(encode(image, kind, quality=80)).decode('ascii')}"
    crisp = max(image.size) <= _CRISP_SIDE
    return Picture(key=key, href=href, width=image.width, height=image.height, crisp=crisp)


def format_of(image: Image.Image) -> PictureFormat:
    """Of an RGB image: PNG for small ones and drawings, whose every pixel is kept, JPEG for photographs."""
    is_exact = max(image.size) <= _CRISP_SIDE or image.getcolors(_FEW_COLOURS) is not None
    return "png" if is_exact else "jpeg"


def encode(image: Image.Image, kind: PictureFormat, *, quality: int) -> bytes:
    """`quality`: of a JPEG, 1-95."""
    buffer = io.BytesIO()
    if kind == "png":
        image.save(buffer, "PNG", optimize=True)
    else:
        image.save(buffer, "JPEG", quality=quality, optimize=True)
    return buffer.getvalue()
