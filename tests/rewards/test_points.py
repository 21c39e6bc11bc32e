"""Points: the parsing of what policies write."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.rewards import Point, parse_points, write_points
from posttrain.rewards.points import MAX_POINTS


@pytest.mark.parametrize(
    ("text", "points"),
    [
        ('```json\n[{"point_2d": [1, 2], "label": "cat"}]\n```', [Point(1, 2, "cat")]),
        ('{"point_2d": [1, 2]}', [Point(1, 2)]),
        ("at [1, 2]", [Point(1, 2)]),
        ("[[1, 2], [3, 4.5]]", [Point(1, 2), Point(3, 4.5)]),
        ("[(1, 2), (3, 4)]", [Point(1, 2), Point(3, 4)]),
        ("[]", []),
        ("<think>[1, 2]</think>none", None),
        ("<think>[1, 2]", None),
        ("[1, 2, 3]", None),
        ("[[1, 2], [3]]", None),
        ('[{"point_2d": [1, NaN]}]', None),
        ('[{"point_2d": [1, Infinity]}]', None),
        ('[{"point_2d": [1, "2"]}]', None),
        ('[{"point_2d": [1, 2], "label": 3}]', None),
        ('[{"bbox_2d": [1, 2, 3, 4]}]', None),
        (str([[1, 2]] * (MAX_POINTS + 1)), None),
        ("", None),
    ],
)
def test_what_policies_write_is_read(text: str, points: list[Point] | None) -> None:
    assert parse_points(text) == points


@given(st.text(alphabet="[](){}\"'`\\,:-.0123456789eNaInfpoint_2djsonlabel \n", max_size=400) | st.text(max_size=200))
def test_parsing_never_raises_and_gives_finite_points(text: str) -> None:
    for point in parse_points(text) or []:
        assert math.isfinite(point.x) and math.isfinite(point.y)


numbers = st.integers(0, 1000) | st.floats(0, 1000)


@given(st.lists(st.builds(Point, numbers, numbers, st.text(max_size=20)), max_size=20))
def test_written_points_are_read_back(points: list[Point]) -> None:
    assert parse_points(write_points(points)) == points
