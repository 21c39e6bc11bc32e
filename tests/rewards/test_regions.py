"""Regions that points hit: polygons, run-length masks, discs, boxes."""

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.rewards import BadReferenceError
from posttrain.rewards.regions import Region, reference_regions

SQUARE = [[100, 100], [300, 100], [300, 300], [100, 300]]
HOLE = [[150, 150], [250, 150], [250, 250], [150, 250]]
L_SHAPE = [[0, 0], [600, 0], [600, 200], [200, 200], [200, 600], [0, 600]]
COCO = {"size": [9, 10], "counts": "61X13mN000`0"}
"""The runs 6, 1, 40, 4, 5, 4, 5, 4, 21 as cocoapi writes them."""


def one(reference: dict[str, Any]) -> Region:
    (region,) = reference_regions(reference, radius=50)
    return region


def holds(region: Region, x: float, y: float) -> bool:
    return bool(region.holds(np.array([x]), np.array([y]))[0])


@pytest.mark.parametrize(
    ("reference", "inside", "outside"),
    [
        ({"bbox_2d": [100, 100, 300, 200]}, [(100, 100), (300, 200), (200, 150)], [(99, 150), (200, 201), (301, 200)]),
        ({"points": [[500, 500]]}, [(500, 500), (550, 500), (530, 540)], [(551, 500), (540, 540)]),
        ({"masks": [{"polygon": SQUARE}]}, [(200, 200), (101, 299)], [(99, 200), (200, 301), (500, 500)]),
        ({"masks": [{"polygon": [SQUARE, HOLE]}]}, [(120, 120), (280, 200)], [(200, 200), (90, 90)]),
        ({"masks": [{"polygon": L_SHAPE}]}, [(500, 100), (100, 500)], [(400, 400), (201, 201)]),
        ({"masks": [COCO]}, [(50, 720), (550, 250)], [(50, 600), (50, 800), (550, 170), (550, 700), (950, 500)]),
    ],
)
def test_what_lies_inside_by_hand(reference: dict, inside: list, outside: list) -> None:
    region = one(reference)
    assert [holds(region, x, y) for x, y in inside] == [True] * len(inside)
    assert [holds(region, x, y) for x, y in outside] == [False] * len(outside)
    assert holds(region, *_xy(region.inner_point()))


def _xy(point: Any) -> tuple[float, float]:
    return point.x, point.y


def test_compressed_and_plain_run_lengths_are_the_same() -> None:
    plain = {"size": [9, 10], "counts": [6, 1, 40, 4, 5, 4, 5, 4, 21]}
    assert one({"masks": [COCO]}) == one({"masks": [plain]})


@given(st.lists(st.lists(st.booleans(), min_size=5, max_size=5), min_size=4, max_size=4))
def test_run_lengths_say_what_the_bitmap_says(rows: list[list[bool]]) -> None:
    bitmap = np.array(rows)
    flat = [False, *bitmap.flatten(order="F").tolist()]  # COCO's runs begin with zeros, go down the columns
    edges = [i for i in range(1, len(flat)) if flat[i] != flat[i - 1]]
    counts = np.diff([1, *edges, len(flat)]).tolist()
    reference = {"masks": [{"size": [4, 5], "counts": counts}]}
    if not bitmap.any():
        with pytest.raises(BadReferenceError, match="no pixel"):
            one(reference)
        return
    region = one(reference)
    centres = [(x, y) for y in range(4) for x in range(5)]
    said = [holds(region, (x + 0.5) * 200, (y + 0.5) * 250) for x, y in centres]
    assert said == bitmap.flatten().tolist()
    assert holds(region, *_xy(region.inner_point()))


@given(st.floats(50, 300), st.integers(3, 40), st.floats(300, 700), st.floats(300, 700), st.floats(0, 1000))
def test_a_regular_polygon_holds_what_its_circles_say(
    radius: float, corners: int, x: float, y: float, angle: float
) -> None:
    ring = [
        [500 + radius * math.cos(2 * math.pi * i / corners), 500 + radius * math.sin(2 * math.pi * i / corners)]
        for i in range(corners)
    ]
    region = one({"masks": [{"polygon": ring}]})
    distance = math.hypot(x - 500, y - 500)
    if distance < radius * math.cos(math.pi / corners) * 0.999:
        assert holds(region, x, y)
    if distance > radius * 1.001:
        assert not holds(region, x, y)
    assert holds(region, *_xy(region.inner_point()))


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({}, "no 'bbox_2d'"),
        ({"masks": {}}, "must be a list"),
        ({"masks": [[]]}, "must hold 'polygon'"),
        ({"masks": [{}]}, "no 'size'"),
        ({"masks": [{"polygon": []}]}, "three points"),
        ({"masks": [{"polygon": [[1, 2], [3, 4]]}]}, "three points"),
        ({"masks": [{"polygon": [[0, 0], [5, 5], [9, 9]]}]}, "no area"),
        ({"masks": [{"polygon": [[0, 0], [1920, 0], [0, 1080]]}]}, "not in 0-1000"),
        ({"masks": [{"polygon": [[0, 0], [float("nan"), 0], [0, 9]]}]}, "three points"),
        ({"masks": [{"polygon": [[i % 1000, (i * i) % 997] for i in range(5000)]}]}, "vertices"),
        ({"masks": [{"size": [9, 10]}]}, "no 'counts'"),
        ({"masks": [{"size": [9, 0], "counts": [0]}]}, "'size'"),
        ({"masks": [{"size": [9, 10], "counts": [1, 2]}]}, "make 3 pixels"),
        ({"masks": [{"size": [2, 2], "counts": [5, -1]}]}, "make 4 pixels"),
        ({"masks": [{"size": [2, 2], "counts": [1, 1.5, 1.5]}]}, "no length"),
        ({"masks": [{"size": [2, 2], "counts": [1, "3"]}]}, "cannot be read"),
        ({"masks": [{"size": [2, 2], "counts": 4}]}, "cannot be read"),
        ({"masks": [{"size": [2, 2], "counts": "~"}]}, "does not occur"),
        ({"masks": [{"size": [2, 2], "counts": "é"}]}, "cannot be read"),
        ({"masks": [{"size": [2, 2], "counts": "P"}]}, "cut off"),
        ({"masks": [{"size": [10**6, 10**6], "counts": [10**12]}]}, "larger"),
        ({"points": [[1, 2, 3]]}, "point_2d"),
        ({"points": [{"point_2d": [1, 2000]}]}, "point_2d"),
        ({"points": "[]"}, "must be a list"),
        ({"points": [[1, 2]] * 600}, "600 items"),
    ],
)
def test_a_reference_that_is_no_region_is_an_error_of_the_data(reference: dict, message: str) -> None:
    with pytest.raises(BadReferenceError, match=message):
        reference_regions(reference, radius=10)
