"""The grid and the colours that every drawn scene uses."""

SIDE = 64
"""Pixels of a picture."""
CELL = 8
"""Pixels of a grid cell."""
STEP = 1000 * CELL // SIDE
"""A grid cell in coordinates."""
COLOURS = {
    "red": (220, 30, 30),
    "green": (30, 170, 50),
    "blue": (40, 70, 230),
    "yellow": (235, 205, 30),
    "purple": (150, 40, 180),
}
