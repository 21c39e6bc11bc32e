"""Grounding and pointing answers with something said after them, boxed, or given twice."""

import pytest
from posttrain.rewards import Completion, CountPoints, GroundingBoxes, GroundingIoU, PointHits

BOX = {"bbox_2d": [100, 100, 300, 300]}
RIGHT = '{"bbox_2d": [100, 100, 300, 300]}'
WRONG = '{"bbox_2d": [600, 600, 700, 700]}'


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (f"{RIGHT}\n\nThe coordinates are normalised to [0, 1000].", 1),
        (f"{RIGHT} (see [1])", 1),
        (f"{RIGHT} in the form [x1, y1, x2, y2]", 1),
        (r"\boxed{[100, 100, 300, 300]}", 1),
        (rf"\boxed{{{RIGHT}}}", 1),
        (rf"<answer>\boxed{{{RIGHT}}}</answer>", 1),
        (f"Not {WRONG} but {RIGHT}", 1),
        (f"{RIGHT} or {WRONG}", 0),
        (f"[{RIGHT}, {WRONG}]", 0),
        (rf"\boxed{{[{RIGHT}, {WRONG}]}}", 0),
        (rf"\boxed{{{RIGHT}}} \boxed{{{WRONG}}}", 0),
        (rf"<answer>\boxed{{{RIGHT}}} \boxed{{{WRONG}}}</answer>", 0),
        (f'{RIGHT} {{"bbox_2d": [1, 2, 3]}}', 0),
        (f"{RIGHT} []", 0),
        (f"<think>{RIGHT}</think> none, see [1]", 0),
        (f"{RIGHT} <answer>see [1]</answer>", 0),
    ],
)
def test_one_box_is_read_and_several_are_not_a_pass(text: str, value: int) -> None:
    for reward in (GroundingIoU(), GroundingBoxes(measure="iou")):
        score = reward(Completion(text=text), BOX).value
        assert score is not None and int(score) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('[{"point_2d": [150, 150]}] in coordinates of [0, 1000]', 1),
        (r"\boxed{[150, 150]}", 1),
        ("at [150, 150] (see [1])", 1),
        ('[{"point_2d": [150, 150]}, {"point_2d": [900, 900]}]', 0),
        ('{"point_2d": [150, 150]} or {"point_2d": [900, 900]}', 0),
        ("[150, 150] or [900, 900]", 0),
    ],
)
def test_one_point_is_read_and_several_are_not_a_pass(text: str, value: int) -> None:
    score = PointHits()(Completion(text=text), {"boxes": [BOX]}).value
    assert score is not None and int(score) == value


@pytest.mark.parametrize(
    ("text", "value"),
    [
        (r"[[1, 1], [500, 500]], so \boxed{2}", 1),
        (r"\boxed{[[1, 1], [500, 500]]}", 1),
        ("[[1, 1], [500, 500]] of [0, 1000]: <answer>2</answer>", 0),  # the bare pair is the last answer
        ('[{"point_2d": [1, 1]}, {"point_2d": [500, 500]}] of [0, 1000]: <answer>2</answer>', 1),
        (r"[[1, 1], [500, 500]], so \boxed{3}", 0),
    ],
)
def test_points_are_counted_beside_a_remark(text: str, value: int) -> None:
    assert CountPoints()(Completion(text=text), {"answer": 2}).value == value
