"""Plates: a digit that the small picture hides and a crop of the large canvas shows.

They are drawn on a canvas four times as large as the picture. The digit is a checkerboard of black and white on the
grey between them, so that the picture, which averages the canvas over 4 x 4 blocks, is the same for all ten digits.
"""

import random
from dataclasses import dataclass

import numpy as np
from PIL import Image

from posttrain.data.scene_grid import CELL, COLOURS, SIDE

ZOOM = 4
"""Canvas pixels to a pixel of the picture."""
PLATE_SIDE = 2 * CELL * ZOOM
"""Canvas pixels on a side of a plate."""
_RIM = 4
_DOT = 8
_DIGITS = (  # rows of 5 dots, as bits
    (14, 17, 19, 21, 25, 17, 14),
    (4, 12, 4, 4, 4, 4, 14),
    (14, 17, 1, 2, 4, 8, 31),
    (31, 2, 4, 2, 1, 17, 14),
    (2, 6, 10, 18, 31, 2, 2),
    (31, 16, 30, 1, 1, 17, 14),
    (6, 8, 16, 30, 17, 17, 14),
    (31, 1, 2, 4, 8, 8, 8),
    (14, 17, 17, 14, 17, 17, 14),
    (14, 17, 17, 15, 1, 2, 12),
)


@dataclass(frozen=True, slots=True)
class Plate:
    """One plate on its canvas."""

    colour: str
    digit: int
    x: int
    y: int
    """x and y in grid cells of the picture; a plate is two cells wide."""
    grey: int

    def canvas(self) -> Image.Image:
        """256 x 256 pixels."""
        face = np.full((PLATE_SIDE, PLATE_SIDE, 3), COLOURS[self.colour], dtype=np.uint8)
        face[_RIM:-_RIM, _RIM:-_RIM] = 127
        bits = np.array([[row >> bit & 1 for bit in range(4, -1, -1)] for row in _DIGITS[self.digit]], dtype=bool)
        dots = bits.repeat(_DOT, axis=0).repeat(_DOT, axis=1)
        left = (PLATE_SIDE - dots.shape[1]) // 2
        inked = np.zeros((PLATE_SIDE, PLATE_SIDE), dtype=bool)
        inked[_RIM : _RIM + dots.shape[0], left : left + dots.shape[1]] = dots
        rows, columns = np.mgrid[:PLATE_SIDE, :PLATE_SIDE] // 2
        face[inked] = ((rows + columns) % 2 * 254).astype(np.uint8)[inked][:, None]
        pixels = np.full((ZOOM * SIDE, ZOOM * SIDE, 3), self.grey, dtype=np.uint8)
        top, start = ZOOM * CELL * self.y, ZOOM * CELL * self.x
        pixels[top : top + PLATE_SIDE, start : start + PLATE_SIDE] = face
        return Image.fromarray(pixels)


def any_plate(draw: random.Random) -> Plate:
    """A plate of any colour and digit, anywhere on the grid."""
    x, y = (draw.randint(0, SIDE // CELL - 2) for _ in range(2))
    return Plate(draw.choice(list(COLOURS)), draw.randint(0, 9), x, y, draw.randint(215, 255))
