"""Boxes: overlap, and the parsing of what policies write."""

import json
import math
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.rewards import Box, giou, iou, parse_boxes, write_boxes
from posttrain.rewards.boxes import iou_matrix, label_matrix

UNIT = Box(0, 0, 100, 100)
numbers = st.floats(allow_nan=True, allow_infinity=True) | st.integers(-2000, 2000).map(float)
any_box = st.builds(Box, numbers, numbers, numbers, numbers)


@pytest.mark.parametrize(
    ("other", "overlap", "generalised"),
    [
        (Box(0, 0, 100, 100), 1.0, 1.0),
        (Box(50, 0, 150, 100), 1 / 3, 1 / 3),
        (Box(50, 50, 150, 150), 1 / 7, 1 / 7 - (22500 - 17500) / 22500),
        (Box(200, 0, 300, 100), 0.0, -1 / 3),
        (Box(-50, -50, 100, 100), 1.0, 1.0),
        (Box(100, 100, 0, 0), 0.0, -1.0),
        (Box(50, 0, 50, 100), 0.0, -1.0),
        (Box(math.nan, 0, 50, 100), 0.0, -1.0),
        (Box(2000, 2000, 3000, 3000), 0.0, -1.0),
    ],
)
def test_overlap_by_hand(other: Box, overlap: float, generalised: float) -> None:
    assert iou(UNIT, other) == pytest.approx(overlap)
    assert giou(UNIT, other) == pytest.approx(generalised)


@given(any_box, any_box)
def test_overlap_is_symmetric_bounded_and_never_raises(first: Box, second: Box) -> None:
    assert 0 <= iou(first, second) <= 1
    assert iou(first, second) == iou(second, first)
    assert -1 <= giou(first, second) <= iou(first, second) + 1e-9


@given(st.lists(any_box, max_size=5), st.lists(any_box, max_size=5))
def test_the_matrix_of_overlaps_holds_what_iou_says(first: list[Box], second: list[Box]) -> None:
    wanted = [[iou(a, b) for b in second] for a in first]
    assert iou_matrix(first, second).tolist() == [pytest.approx(row) for row in wanted]


def test_labels_are_compared_as_a_matrix() -> None:
    same = label_matrix(["cat", " CAT", "dog", ""], ["cat", "", "ｃａｔ"], wild=False)
    assert same.tolist() == [[True, False, True], [True, False, True], [False, False, False], [False, True, False]]
    assert label_matrix(["dog"], ["cat", ""], wild=True).tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("text", "boxes"),
    [
        ('```json\n[{"bbox_2d": [1, 2, 3, 4], "label": "cat"}]\n```', [Box(1, 2, 3, 4, "cat")]),
        ('{"bbox_2d": [1, 2, 3, 4], "label": "red circle"}', [Box(1, 2, 3, 4, "red circle")]),
        ("[{'bbox_2d': [1, 2, 3, 4.5], 'label': \"it's\"}]", [Box(1, 2, 3, 4.5, "it's")]),
        ("It's at [1, 2, 3, 4].", [Box(1, 2, 3, 4)]),
        ("[[1, 2, 3, 4], [5, 6, 7, 8]]", [Box(1, 2, 3, 4), Box(5, 6, 7, 8)]),
        ("[1, 2, 3, 4] or rather [5, 6, 7, 8]", [Box(5, 6, 7, 8)]),
        ("```json\n[]\n```", []),
        ("```json\n[[1,2,3,4]]\n```\nor\n```json\n[[5,6,7,8]]\n```", [Box(5, 6, 7, 8)]),
        ("```json\n[[5,6,7,8]]", [Box(5, 6, 7, 8)]),
        ("<answer>[1, 2, 3, 4]</answer> [5, 6, 7, 8]", [Box(1, 2, 3, 4)]),
        ("<think>[1, 2, 3, 4]</think>none", None),
        ("<think>[1, 2, 3, 4]", None),
        ('[{"bbox_2d": [1, 2, 3, 4], "label": "a ] [ b"}]', [Box(1, 2, 3, 4, "a ] [ b")]),
        ('[{"bbox_2d": [1, 2, 3, 4]', None),
        ('[{"bbox_2d": [1, 2, 3]}]', None),
        ('[{"bbox_2d": [1, 2, 3, "4"]}]', None),
        ('[{"bbox_2d": [1, 2, 3, true]}]', None),
        ('[{"bbox_2d": [1, 2, 3, NaN]}]', None),
        ('[{"bbox_2d": [1, 2, 3, 1e999]}]', None),
        ('[{"bbox_2d": [1, 2, 3, ' + "9" * 400 + "]}]", None),
        ('[{"bbox_2d": [1, 2, 3, ' + "9" * 9000 + "]}]", None),
        ("[" * 50_000, None),
        ("[" * 50_000 + "]" * 50_000, None),
        (json.dumps([[1, 2, 3, 4]] * 10_000), None),
        ("__import__('os').system('true')", None),
        ("", None),
    ],
)
def test_what_policies_write_is_read(text: str, boxes: list[Box] | None) -> None:
    assert parse_boxes(text) == boxes


@given(st.text(alphabet="[]{}()\"'`\\,:-.0123456789eNaInfbox_2djsonlabel \n", max_size=400) | st.text(max_size=200))
def test_parsing_never_raises(text: str) -> None:
    for box in parse_boxes(text) or []:
        assert all(math.isfinite(value) for value in (box.x1, box.y1, box.x2, box.y2))


@pytest.mark.parametrize("piece", ["[", "[1,", "```json\n", "'", '["', "{[", "\\", "]", "[]"])
def test_parsing_takes_little_time_for_hostile_text(piece: str) -> None:
    started = time.process_time()
    parse_boxes(piece * 30_000)
    assert time.process_time() - started < 1.0


coordinates = st.integers(0, 1000) | st.floats(0, 1000)


@given(st.lists(st.builds(Box, coordinates, coordinates, coordinates, coordinates, st.text(max_size=20)), max_size=20))
def test_written_boxes_are_read_back(boxes: list[Box]) -> None:
    assert parse_boxes(write_boxes(boxes)) == boxes
