"""Images for a judge that sees: data URLs from what the policy was shown, or what the row holds."""

import base64
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .score import BadReferenceError, Completion

_KINDS = ((b"\x89PNG\r\n\x1a\n", "png"), (b"\xff\xd8\xff", "jpeg"), (b"GIF8", "gif"), (b"RIFF", "webp"))


def data_urls(completion: Completion, reference: Mapping[str, Any], key: str) -> tuple[str, ...]:
    """The completion's images, pictures or paths; where it has none, those of the reference's field, one or a list.

    The reference may hold data URLs, encoded files as bytes, and PIL images, but no path or address: what stands in
    data must not make anyone read files or call servers. Raises `BadReferenceError` for anything else.
    """
    if completion.images:
        return tuple(_data_url(_read(image), "images") for image in completion.images)
    held = reference.get(key)
    if held is None:
        return ()
    return tuple(_data_url(image, key) for image in (held if isinstance(held, list | tuple) else [held]))


def _read(image: Any) -> Any:
    if not isinstance(image, str) or image.startswith("data:image/"):
        return image
    try:
        return Path(image).read_bytes()
    except OSError as error:
        raise BadReferenceError(f"the image {image!r:.80} cannot be read: {error.strerror}") from None


def _data_url(image: Any, key: str) -> str:
    if isinstance(image, str) and image.startswith("data:image/"):
        return image
    if isinstance(image, bytes):
        kind = next((name for head, name in _KINDS if image.startswith(head)), None)
        if kind is None:
            raise BadReferenceError(f"{key!r} holds {len(image)} bytes that are no PNG, JPEG, GIF or WebP")
        return f"data:image/{kind};base64,{base64.b64encode(image).decode('ascii')}"
    from PIL import Image

    if not isinstance(image, Image.Image):
        raise BadReferenceError(f"{key!r} holds {image!r:.40}; wanted a data:image/ URL, bytes or a PIL image")
    file = io.BytesIO()
    image.convert("RGB").save(file, "PNG")
    return _data_url(file.getvalue(), key)
