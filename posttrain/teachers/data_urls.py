"""Images inside JSON: a PNG as a data URL, made once for all the sequences that show it."""

import base64
import io
from collections import OrderedDict
from threading import Lock

from PIL import Image
from transformers import Qwen2VLImageProcessor

from posttrain.model import ImagePatches
from posttrain.model.pictures import picture_of

_MOST_CHARACTERS = 64 * 2**20


def data_url(picture: Image.Image) -> str:
    """The picture without loss; quickly rather than small, for it is read once."""
    file = io.BytesIO()
    picture.save(file, "PNG", compress_level=1)
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode("ascii")


class DataUrls:
    """Data URLs of patches, the last 64 MiB of them remembered. Safe to share between threads."""

    def __init__(self, processor: Qwen2VLImageProcessor) -> None:
        """processor: the one that cut the patches."""
        self._processor = processor
        self._made: OrderedDict[str, str] = OrderedDict()
        self._held = 0
        self._lock = Lock()

    def of(self, patches: ImagePatches) -> str:
        """Raises ValueError for patches that another processor has cut."""
        with self._lock:
            if patches.key in self._made:
                self._made.move_to_end(patches.key)
                return self._made[patches.key]
        url = data_url(picture_of(patches, self._processor))
        with self._lock:
            if patches.key not in self._made:
                self._made[patches.key] = url
                self._held += len(url)
            while self._held > _MOST_CHARACTERS and len(self._made) > 1:
                self._held -= len(self._made.popitem(last=False)[1])
        return url
