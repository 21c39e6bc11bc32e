"""`search` and `image_search`: stand-ins for search engines, over a local file of captioned images or texts."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from rapidfuzz import fuzz, process, utils
from scipy.fft import dctn

from posttrain.data.images import open_image
from posttrain.environments.tool_registry import register_tool
from posttrain.environments.tools import Tool, ToolContext, tool_from_function
from posttrain.errors import ConfigError

_HASH_SIDE = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """One line of an index."""

    text: str
    image: str = ""
    """Path under the index's folder; empty where the entry is text alone."""


class SearchIndex:
    """Entries with the hashes of their images, read once. Shared by episodes.

    Raises ConfigError for a line that is not `{"text": ..., "image": ...}`, DataError for an image that cannot be read.
    """

    def __init__(self, file: Path) -> None:
        self._root = file.parent
        self.entries = [_entry(line, f"{file}:{i}") for i, line in enumerate(_lines(file), 1) if line.strip()]
        self._texts = [entry.text for entry in self.entries]
        self._with_image = [entry for entry in self.entries if entry.image]
        hashes = [perceptual_hash(self.image(entry)) for entry in self._with_image]
        self._hashes = np.array(hashes, dtype=np.bool_).reshape(-1, _HASH_SIDE**2)

    def image(self, entry: Entry) -> Image.Image:
        return open_image(entry.image, root=self._root, row=f"search index, {entry.text[:40]!r}")

    def by_text(self, query: str, num_results: int) -> list[Entry]:
        """Entries that share words with the query, best first, by RapidFuzz's `token_set_ratio` over 50 of 100."""
        found = process.extract(
            query,
            self._texts,
            scorer=fuzz.token_set_ratio,
            processor=utils.default_process,
            limit=num_results,
            score_cutoff=50,
        )
        return [self.entries[index] for _, _, index in found]

    def by_image(self, image: Image.Image, num_results: int, max_distance: int) -> list[Entry]:
        """Entries whose images look alike, nearest first: at most `max_distance` of 64 bits of the hash differ."""
        distances = (self._hashes != perceptual_hash(image)).sum(axis=1)
        nearest = np.argsort(distances, kind="stable")[:num_results]
        return [self._with_image[i] for i in nearest if distances[i] <= max_distance]


@register_tool("search")
@dataclass(frozen=True, slots=True, kw_only=True)
class TextSearch:
    """Finds texts in a local index: what an engine on the web would be, without one, and the same in every run."""

    index: str
    """JSONL file of `{"text": ..., "image": ...}`; image is a path under the file's folder and need not be there."""
    num_results: int = 3
    """Most results of one call."""
    show_images: bool = False
    """Shows the images of the results too."""

    def as_tool(self) -> Tool:
        read_index(self.index)
        return tool_from_function(self.search)

    def search(self, query: str) -> list[Any] | str:
        """Search for texts.

        Args:
            query: What to look for
        """
        index = read_index(self.index)
        return _results(index, index.by_text(query, self.num_results), show_images=self.show_images)


@register_tool("image_search")
@dataclass(frozen=True, slots=True, kw_only=True)
class ImageSearch:
    """Finds an image's likes in a local index, with the schema of Qwen-Agent's `image_search`."""

    index: str
    """JSONL file of `{"text": ..., "image": ...}`; image is a path under the file's folder."""
    num_results: int = 3
    """Most results of one call."""
    max_distance: int = 12
    """Bits of the 64 of a perceptual hash in which a result may differ."""

    def as_tool(self) -> Tool:
        read_index(self.index)
        parameters = {
            "type": "object",
            "properties": {"img_idx": {"type": "number", "description": "The index of the image (starting from 0)"}},
            "required": ["img_idx"],
        }
        return Tool(
            name="image_search",
            description="Image search engine, input the image and search for similar images with image information.",
            parameters=parameters,
            function=self.image_search,
            context_parameter="context",
        )

    def image_search(self, img_idx: int, context: ToolContext) -> list[Any] | str:
        """Results with their images. Raises ToolError where there is no such image."""
        index = read_index(self.index)
        found = index.by_image(context.image(img_idx), self.num_results, self.max_distance)
        return _results(index, found, show_images=True)


def read_index(path: str) -> SearchIndex:
    """The index of a file, read again only where the file has changed. Raises ConfigError where there is none."""
    try:
        return _read(path, Path(path).stat().st_mtime_ns)
    except OSError as error:
        raise ConfigError(f"the search index {path!r} cannot be read ({error})") from None


def perceptual_hash(image: Image.Image) -> np.ndarray:
    """[64] bool: which of the lowest 8 x 8 cosine frequencies of the grey image are above their median (pHash)."""
    grey = np.asarray(image.convert("L").resize((32, 32), Image.Resampling.LANCZOS), dtype=np.float64)
    low = np.asarray(dctn(grey))[:_HASH_SIDE, :_HASH_SIDE]
    return (low > np.median(low)).ravel()


@lru_cache(maxsize=8)
def _read(path: str, changed_ns: int) -> SearchIndex:
    return SearchIndex(Path(path))


def _lines(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


def _entry(line: str, where: str) -> Entry:
    try:
        match json.loads(line):
            case {"text": str(text), "image": str(image)}:
                return Entry(text=text, image=image)
            case {"text": str(text)}:
                return Entry(text=text)
    except ValueError:
        pass
    raise ConfigError(f'{where}: wanted {{"text": ..., "image": ...}}, got {line[:80]!r}')


def _results(index: SearchIndex, found: Sequence[Entry], *, show_images: bool) -> list[Any] | str:
    if not found:
        return "No results."
    answer: list[Any] = []
    for number, entry in enumerate(found, 1):
        answer.append(f"[{number}] {entry.text}")
        if show_images and entry.image:
            answer.append(index.image(entry))
    return answer if any(isinstance(item, Image.Image) for item in answer) else "\n".join(answer)
