"""Images: opened safely, resized once with the checkpoint's own limits, cut into patches once."""

import base64
import binascii
import hashlib
import io
import struct
import urllib.request
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers import Qwen2VLImageProcessor
from transformers.image_utils import SizeDict
from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

from posttrain.errors import DataError
from posttrain.model import ImagePatches

MAX_ASPECT_RATIO = 200
"""Of the longer to the shorter side: the checkpoints' own processors refuse more."""
# A list, because PIL also knows formats that start other programs (EPS) or take no pixels (plug-ins for documents).
Image.init()
_FORMATS = tuple(name for name in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM") if name in Image.OPEN)
_DECODING_ERRORS = (OSError, SyntaxError, ValueError, EOFError, struct.error)
_MAX_DOWNLOAD = 64 * 2**20
_MAX_ROUNDS = 8


def open_image(ref: Any, *, root: Path, row: str, allow_urls: bool = False) -> Image.Image:
    """The image that a row names, upright and RGB, transparency over white.

    `ref` is a path under `root`, a data URI, {"bytes", "path"}, or a PIL image. Raises DataError, naming the row and
    the file, where it is missing, outside `root`, damaged, larger than PIL's limit, or of an aspect ratio over 200.
    """
    if isinstance(ref, Image.Image):
        return _upright_rgb(ref, f"{row}: an image")
    if isinstance(ref, Mapping) and ref.get("bytes") is not None:
        return _decode(io.BytesIO(ref["bytes"]), f"{row}: image {ref.get('path') or 'in bytes'}")
    if isinstance(ref, bytes):
        return _decode(io.BytesIO(ref), f"{row}: image in bytes")
    path = ref.get("path") if isinstance(ref, Mapping) else ref
    if not isinstance(path, str) or not path:
        raise DataError(f"{row}: an image must be a path, a data URI, bytes or a PIL image, got {type(ref).__name__}")
    if path.startswith("data:"):
        return _decode(io.BytesIO(_data_uri(path, row)), f"{row}: image in a data URI")
    if path.startswith(("http://", "https://")):
        if not allow_urls:
            raise DataError(f"{row}: image {path[:200]} is a URL; download it, or set allow_urls: true")
        return _decode(io.BytesIO(_download(path, row)), f"{row}: image {path[:200]}")
    return _decode(_confined(path.removeprefix("file://"), root, row), f"{row}: image {path}")


@dataclass(frozen=True, slots=True, kw_only=True)
class CutImage:
    """One image as the engine and the trainer get it."""

    picture: Image.Image
    """Resized: a second resize by the checkpoint's processor changes nothing."""
    patches: ImagePatches


class ImageCutter:
    """Resizes and cuts images for one checkpoint, and remembers the last ones: a group's image is cut once.

    Safe to share between threads; who asks for an image that another thread is at waits for it.
    """

    def __init__(
        self,
        processor: Qwen2VLImageProcessor,
        *,
        min_pixels: int | None = None,
        max_pixels: int | None = None,
        cache_patches: int = 1 << 15,
    ) -> None:
        self.processor = processor
        self.min_pixels, self.max_pixels = _limits(processor, min_pixels, max_pixels)
        self._cache_patches = cache_patches
        self._cache: OrderedDict[bytes, CutImage] = OrderedDict()
        self._held = 0
        self._lock = Lock()
        self._at_work: dict[bytes, Event] = {}

    def cut(self, image: Image.Image, row: str = "image") -> CutImage:
        key = _content_hash(image)
        while True:
            with self._lock:
                if key in self._cache:
                    self._cache.move_to_end(key)
                    return self._cache[key]
                other = self._at_work.get(key)
                if other is None:
                    self._at_work[key] = Event()
                    break
            other.wait()
        try:
            return self._made(key, image, row)
        finally:
            with self._lock:
                self._at_work.pop(key).set()

    def _made(self, key: bytes, image: Image.Image, row: str) -> CutImage:
        picture = resize_for(image, self.processor, min_pixels=self.min_pixels, max_pixels=self.max_pixels, row=row)
        if picture is image:
            picture = image.copy()  # whose owner may go on drawing on it
        made = CutImage(picture=picture, patches=to_patches(picture, self.processor))
        with self._lock:
            self._cache[key] = made
            self._held += made.patches.num_patches
            while self._held > self._cache_patches and len(self._cache) > 1:
                self._held -= self._cache.popitem(last=False)[1].patches.num_patches
        return made


def resize_for(
    image: Image.Image,
    processor: Qwen2VLImageProcessor,
    *,
    min_pixels: int | None = None,
    max_pixels: int | None = None,
    row: str = "image",
) -> Image.Image:
    """The image at the size at which the checkpoint reads it.

    The processor's own resize and limits (`min_pixels` and `max_pixels` may only be stricter), so that its pixels equal
    those of the deployed processor, and repeated until the processor would leave it alone: an engine that resizes again
    changes nothing. Raises DataError where the aspect ratio is over 200 or the limits admit no such size.
    """
    low, high = _limits(processor, min_pixels, max_pixels)
    factor = processor.patch_size * processor.merge_size
    for _ in range(_MAX_ROUNDS):
        _check_shape(image, row)  # each time: rounding a thin image to whole patches can make it thinner still
        height, width = smart_resize(image.height, image.width, factor, low, high)
        if (width, height) == image.size:
            return image
        pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None]
        limits = SizeDict(shortest_edge=low, longest_edge=high)
        resized = processor.resize(images=pixels, size=limits, resample=processor.resample, factor=factor)
        image = Image.fromarray(resized[0].permute(1, 2, 0).numpy())
    raise DataError(f"{row}: no size of {factor}-pixel steps lies between {low} and {high} pixels; widen the limits")


def to_patches(image: Image.Image, processor: Qwen2VLImageProcessor) -> ImagePatches:
    """Patches of an image that has its final size; equal pixels give equal keys."""
    made = processor(images=[image], do_resize=False, return_tensors="pt")
    t, h, w = made["image_grid_thw"][0].tolist()
    return ImagePatches(
        pixel_values_PD=made["pixel_values"].to(torch.float32),
        grid_thw=(t, h, w),
        key=_content_hash(image, t, h, w).hex(),
    )


def _limits(processor: Qwen2VLImageProcessor, min_pixels: int | None, max_pixels: int | None) -> tuple[int, int]:
    own_low, own_high = processor.size["shortest_edge"], processor.size["longest_edge"]
    low, high = min_pixels or own_low, max_pixels or own_high
    if low < own_low or high > own_high:
        raise DataError(
            f"min_pixels {low} and max_pixels {high} must lie within the checkpoint's own {own_low} to {own_high}: "
            "its processor would resize again"
        )
    if low > high:
        raise DataError(f"min_pixels {low} is more than max_pixels {high}")
    return low, high


def _confined(path: str, root: Path, row: str) -> Path:
    """The file under `root`, with every link followed."""
    try:
        top = root.resolve()
        file = (top / path).resolve()
        inside, found = file.is_relative_to(top), file.is_file()
    except (OSError, ValueError, RuntimeError) as error:  # a name too long, a NUL character, a circle of links
        raise DataError(f"{row}: image path {path[:200]!r} cannot be used ({error})") from None
    if not inside:
        raise DataError(f"{row}: image {path} lies outside the folder {root}; set image_root to a folder that holds it")
    if not found:
        raise DataError(f"{row}: image {path} does not exist under {root}{_hint(path, top)}")
    return file


def _hint(path: str, top: Path) -> str:
    """Rows often name a folder that was renamed or left out: says which leading part would have to go."""
    parts = Path(path).parts
    for n in range(1, len(parts)):
        if ".." not in parts and (top / Path(*parts[n:])).is_file():
            return f", but {'/'.join(parts[n:])} does: set image_strip: {'/'.join(parts[:n])}/"
    return "; set image_root to the folder that image paths are relative to"


def _decode(file: Path | io.BytesIO, what: str) -> Image.Image:
    try:
        with Image.open(file, formats=_FORMATS) as image:
            limit = Image.MAX_IMAGE_PIXELS
            if limit is not None and image.width * image.height > limit:
                raise DataError(
                    f"{what} has {image.width} x {image.height} pixels, more than the {limit} that are safe to decode; "
                    "shrink the file"
                )
            image.load()
            return _upright_rgb(image, what)
    except DataError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(f"{what} is too large to decode safely ({error}); shrink the file") from None
    except UnidentifiedImageError:
        raise DataError(f"{what} is not an image of a known format ({', '.join(_FORMATS)})") from None
    except _DECODING_ERRORS as error:
        raise DataError(f"{what} is damaged or cut short ({error}); mend or remove it") from None


def _upright_rgb(image: Image.Image, what: str) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16") or image.mode == "I":  # 16-bit grey: PIL's own conversion cuts off at 255
        image = Image.fromarray((np.asarray(image, dtype=np.int64).clip(0, 65535) // 257).astype(np.uint8))
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba)
    image = image.convert("RGB")
    _check_shape(image, what)
    return image


def _check_shape(image: Image.Image, what: str) -> None:
    short, long = sorted(image.size)
    if short == 0 or long > MAX_ASPECT_RATIO * short:
        raise DataError(
            f"{what} is {image.width} x {image.height} pixels, an aspect ratio over {MAX_ASPECT_RATIO}; "
            "crop it or remove the row"
        )


def _data_uri(uri: str, row: str) -> bytes:
    head, comma, body = uri.partition(",")
    try:
        if not comma or not head.endswith(";base64"):
            raise ValueError("it does not say ;base64,")
        return base64.b64decode(body, validate=True)
    except (ValueError, binascii.Error) as error:
        raise DataError(f"{row}: image in a data URI cannot be read ({error})") from None


def _download(url: str, row: str) -> bytes:
    try:
        with urllib.request.urlopen(url, timeout=30) as answer:
            data = answer.read(_MAX_DOWNLOAD + 1)
    except (OSError, ValueError) as error:
        raise DataError(f"{row}: image {url[:200]} could not be fetched ({error})") from None
    if len(data) > _MAX_DOWNLOAD:
        raise DataError(f"{row}: image {url[:200]} is over {_MAX_DOWNLOAD // 2**20} MiB")
    return data


def _content_hash(image: Image.Image, *more: int) -> bytes:
    size = struct.pack(f"<{2 + len(more)}q", *image.size, *more)
    return hashlib.blake2b(size + image.tobytes(), digest_size=16).digest()
