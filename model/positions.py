"""Rotary positions of a token sequence with images, exact for every family and computed without the model."""

from collections.abc import Sequence

import numpy as np

Grid = tuple[int, int, int]


def image_spans(
    token_ids: np.ndarray, grids: Sequence[Grid], *, image_token_id: int | None, merge_size: int
) -> list[tuple[int, int]]:
    """[start, end) of each image's tokens, in order.

    Raises ValueError naming both numbers where the image tokens in `token_ids` are not exactly the merged patches of
    the images, or where the tokens of one image are interrupted.
    """
    where = np.flatnonzero(token_ids == image_token_id) if image_token_id is not None else np.empty(0, np.int64)
    counts = [t * h * w // merge_size**2 for t, h, w in grids]
    if len(where) != sum(counts):
        raise ValueError(
            f"the sequence has {len(where)} image tokens, its {len(grids)} images have {sum(counts)} merged patches; "
            "render it with the processor of this checkpoint, and never cut inside an image"
        )
    spans, taken = [], 0
    for count in counts:
        first, last = int(where[taken]), int(where[taken + count - 1])
        if last - first + 1 != count:
            raise ValueError(f"the tokens of an image are interrupted between positions {first} and {last}")
        spans.append((first, last + 1))
        taken += count
    return spans


def rope_positions(
    token_ids: np.ndarray,
    grids: Sequence[Grid] = (),
    *,
    image_token_id: int | None,
    merge_size: int,
    rows: int = 3,
    start: int = 0,
) -> tuple[np.ndarray, int]:
    """([rows, T] int64 positions, the position that would follow), equal to transformers' `get_rope_index`.

    M-RoPE (rows = 3: time, height, width; Qwen2-VL, arXiv 2409.12191 sec. 2.1): text advances all rows together; an
    image spans its merged grid and then advances by max(height, width), not by its token count. Plain RoPE (rows = 1)
    counts tokens. `start` continues a sequence whose earlier part ended there.
    """
    n = len(token_ids)
    if rows == 1:
        return np.arange(start, start + n, dtype=np.int64)[None], start + n
    positions = np.empty((3, n), dtype=np.int64)
    cursor, position = 0, start
    spans = image_spans(token_ids, grids, image_token_id=image_token_id, merge_size=merge_size)
    for (first, end), (t, h, w) in zip(spans, grids, strict=True):
        positions[:, cursor:first] = np.arange(position, position + first - cursor)
        position += first - cursor
        height, width = h // merge_size, w // merge_size
        grid = np.indices((t, height, width), dtype=np.int64).reshape(3, -1)
        positions[:, first:end] = position + grid
        position += max(height, width)
        cursor = end
    positions[:, cursor:] = np.arange(position, position + n - cursor)
    return positions, position + n - cursor
