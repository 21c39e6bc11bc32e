"""The pointing rewards."""

import itertools
import json
import random
import time

import pytest
from posttrain.rewards import BadReferenceError, Completion, CountPoints, Point, PointHits, write_points
from posttrain.rewards.pointing import num_hits, num_places
from posttrain.rewards.regions import reference_regions

CAT = {"bbox_2d": [100, 100, 200, 200], "label": "cat"}
DOG = {"bbox_2d": [150, 150, 400, 400], "label": "dog"}
BOTH = {"boxes": [CAT, DOG]}
SPOTS = {"points": [[100, 100], [500, 500], [900, 900]]}


def said(text: object) -> Completion:
    return Completion(text=text if isinstance(text, str) else json.dumps(text))


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ([{"point_2d": [120, 120], "label": "cat"}, {"point_2d": [300, 300], "label": "dog"}], BOTH, 1.0),
        ([{"point_2d": [120, 120], "label": "Cat "}], BOTH, 2 / 3),
        ([{"point_2d": [120, 120], "label": "dog"}, {"point_2d": [300, 300], "label": "cat"}], BOTH, 0.0),
        ([{"point_2d": [120, 120], "label": "cat"}] * 4, BOTH, 2 / 6),
        ([], BOTH, 0.0),
        ([], {"boxes": []}, 1.0),
        ([[1, 1]], {"boxes": []}, 0.0),
        ("none", {"boxes": []}, 0.0),
        ([[-5, 120]], {"points": [[0, 120]]}, 0.0),  # outside of the image, though near
        ([[110, 110], [510, 510], [890, 910]], SPOTS, 1.0),
        ([[110, 110], [110, 110], [110, 110]], SPOTS, 2 / 6),
        ([[130, 130], [500, 500], [900, 900]], SPOTS, 4 / 6),
        ([[5, 5]], {"masks": [{"polygon": [[0, 0], [20, 0], [0, 20]]}]}, 1.0),
        ([[15, 15]], {"masks": [{"polygon": [[0, 0], [20, 0], [0, 20]]}]}, 0.0),
        ("[[NaN, 5]]", {"masks": [{"polygon": [[0, 0], [20, 0], [0, 20]]}]}, 0.0),
    ],
)
def test_points_earn_their_f1(answer: object, reference: dict, value: float) -> None:
    assert PointHits()(said(answer), reference).value == pytest.approx(value)


def test_options_of_points() -> None:
    wrong_label = said([{"point_2d": [120, 120], "label": "dog"}])
    assert PointHits(match_label=False)(wrong_label, CAT).value == 1.0
    assert PointHits(radius=50)(said([[130, 130]]), {"points": [[100, 100]]}).value == 1.0
    with pytest.raises(ValueError, match="radius"):
        PointHits(radius=-1)


def test_a_point_in_two_boxes_takes_the_one_that_leaves_most_pairs() -> None:
    """The first point lies in both boxes, the second in the cat's alone: greedy matching would lose one."""
    answer = [{"point_2d": [170, 170]}, {"point_2d": [120, 120]}]
    boxes = {"boxes": [{"bbox_2d": CAT["bbox_2d"]}, {"bbox_2d": DOG["bbox_2d"]}]}
    assert PointHits()(said(answer), boxes).value == 1.0


def test_matching_finds_as_many_pairs_as_trying_every_order() -> None:
    rng = random.Random(0)
    for _ in range(30):
        boxes = [{"bbox_2d": [x, y, x + 400, y + 400]} for x, y in (rng.choices(range(600), k=2) for _ in range(4))]
        points = [Point(rng.randrange(1000), rng.randrange(1000)) for _ in range(4)]
        regions = reference_regions({"boxes": boxes}, radius=0)
        inside = [
            [
                bx["bbox_2d"][0] <= p.x <= bx["bbox_2d"][2] and bx["bbox_2d"][1] <= p.y <= bx["bbox_2d"][3]
                for bx in boxes
            ]
            for p in points
        ]
        best = max(sum(inside[i][j] for i, j in enumerate(order)) for order in itertools.permutations(range(4)))
        assert num_hits(points, regions, match_label=True) == best


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        ([[1, 1], [50, 50], [90, 90]], {"answer": 3}, 1.0),
        ([[1, 1], [50, 50]], {"answer": "3"}, 0.0),
        ([], {"answer": 0}, 1.0),
        ("three", {"answer": 3}, 0.0),
        ("[[1, 1], [50, 50], [90, 90]] so <answer>3</answer>", {"answer": 3}, 1.0),
        (r"[[1, 1], [50, 50], [90, 90]] so \boxed{3}", {"answer": 3}, 1.0),
        ("[[1, 1], [50, 50], [90, 90]] so <answer>4</answer>", {"answer": 3}, 0.0),
        ("<answer>[[1, 1], [50, 50], [90, 90]]</answer>", {"answer": 3}, 1.0),
        ([[1, 1]] * 3, {"answer": 3}, 0.0),  # one place, three times
        ([[1, 1], [2, 2], [90, 90]], {"answer": 3}, 0.0),
        ([[105, 100], [500, 500], [890, 900]], SPOTS, 1.0),
        ([[105, 100], [300, 300], [890, 900]], SPOTS, 2 / 3),
        ([[105, 100], [890, 900]], SPOTS, 0.0),
    ],
)
def test_counting_by_points(answer: object, reference: dict, value: float) -> None:
    assert CountPoints()(said(answer), reference).value == pytest.approx(value)


def test_options_of_counting() -> None:
    two = said([[1, 1], [50, 50]])
    assert CountPoints(partial=True)(two, {"answer": 3}).value == pytest.approx(2 / 3)
    assert CountPoints(partial=True)(said([[i, i] for i in range(0, 1000, 100)]), {"answer": 3}).value == 0.0
    assert CountPoints(min_distance=100)(two, {"answer": 2}).value == 0.0
    assert CountPoints(answer_key="count")(two, {"count": 2}).value == 1.0
    assert CountPoints(located="ignore")(said([[1, 1], [2, 900], [3, 500]]), SPOTS).value == 1.0
    with pytest.raises(ValueError, match="min_distance"):
        CountPoints(min_distance=-1)


@pytest.mark.parametrize("answer", [None, "three", 2.5, -1, True, 10**6, [3]])
def test_a_count_that_is_none_is_an_error_of_the_data(answer: object) -> None:
    with pytest.raises(BadReferenceError):
        CountPoints().perfect_answer({"answer": answer})


def test_a_count_that_contradicts_the_places_is_an_error_of_the_data() -> None:
    with pytest.raises(BadReferenceError, match="locates 3 things"):
        CountPoints()(said([]), {**SPOTS, "answer": 4})


@pytest.mark.parametrize("reference", [BOTH, SPOTS, {"boxes": []}, {"masks": [{"size": [2, 2], "counts": [1, 3]}]}])
def test_perfect_answers_earn_full_marks(reference: dict) -> None:
    for reward in (PointHits(), CountPoints()):
        assert reward(said(reward.perfect_answer(reference)), reference).value == 1.0


@pytest.mark.parametrize("reference", [BOTH, SPOTS, {"boxes": []}, {"answer": 0}, {"answer": 1}, {"answer": 7}])
def test_the_wrong_answers_that_a_reward_offers_are_wrong(reference: dict) -> None:
    for reward in (PointHits(), CountPoints(), CountPoints(partial=True)):
        if isinstance(reward, PointHits) and "answer" in reference:
            continue
        values = [reward(said(text), reference).value for text in reward.wrong_answers(reference)]
        assert values and max(values) < 1.0


@pytest.mark.parametrize("count", [0, 1, 7, 400])
def test_perfect_counts_earn_full_marks(count: int) -> None:
    assert CountPoints()(said(CountPoints().perfect_answer({"answer": count})), {"answer": count}).value == 1.0


def test_thousands_of_points_take_little_time() -> None:
    points = [Point(x % 1000, (x * x) % 1000) for x in range(2000)]
    boxes = {"boxes": [{"bbox_2d": [0, 0, 1000, 1000]}] * 500}
    started = time.process_time()
    assert PointHits()(said(write_points(points)), boxes).value == pytest.approx(2 * 500 / 2500)
    assert num_places([Point(x / 2, 0) for x in range(2000)], 5) == 200
    assert time.process_time() - started < 10
