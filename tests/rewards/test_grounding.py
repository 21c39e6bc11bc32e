"""The two grounding rewards."""

import itertools
import json
import random
import time

import pytest
from posttrain.rewards import BadReferenceError, Box, Completion, GroundingBoxes, GroundingIoU, iou, write_boxes
from posttrain.rewards.grounding import matched_ious

ONE = {"bbox_2d": [100, 100, 300, 300], "label": "cat"}
TWO = {"boxes": [{"bbox_2d": [0, 0, 100, 100], "label": "cat"}, {"bbox_2d": [500, 500, 700, 700], "label": "dog"}]}


def said(text: object) -> Completion:
    return Completion(text=text if isinstance(text, str) else json.dumps(text))


@pytest.mark.parametrize(
    ("answer", "value"),
    [
        ({"bbox_2d": [100, 100, 300, 300]}, 1.0),
        ({"bbox_2d": [200, 100, 400, 300]}, 1 / 3),
        ({"bbox_2d": [300, 300, 100, 100]}, 0.0),
        ({"bbox_2d": [200, 100, 200, 300]}, 0.0),
        ([ONE, ONE], 0.0),
        ([], 0.0),
        ("no idea", 0.0),
        ("<think>[100, 100, 300, 300]", 0.0),
    ],
)
def test_one_box_earns_its_overlap(answer: object, value: float) -> None:
    assert GroundingIoU()(said(answer), ONE).value == pytest.approx(value)


def test_options_of_grounding_iou() -> None:
    dog = said({"bbox_2d": ONE["bbox_2d"], "label": "dog"})
    assert GroundingIoU().__call__(dog, ONE).value == 1.0
    assert GroundingIoU(match_label=True)(dog, ONE).value == 0.0
    assert GroundingIoU(match_label=True)(said({**ONE, "label": " CAT"}), ONE).value == 1.0
    assert GroundingIoU(several="first")(said([ONE, {"bbox_2d": [0, 0, 1, 1]}]), ONE).value == 1.0
    near = GroundingIoU(measure="giou")(said([300, 100, 500, 300]), ONE).value
    far = GroundingIoU(measure="giou")(said([800, 100, 1000, 300]), ONE).value
    assert near is not None and far is not None and near > far > 0


@pytest.mark.parametrize(
    ("answer", "reference", "value"),
    [
        (TWO["boxes"], TWO, 1.0),
        (TWO["boxes"][::-1], TWO, 1.0),
        (TWO["boxes"][:1], TWO, 2 / 3),
        (TWO["boxes"] * 2, TWO, 2 * 2 / 6),
        ([{**box, "label": "bird"} for box in TWO["boxes"]], TWO, 0.0),
        ([{"bbox_2d": [0, 0, 100, 80], "label": "cat"}], {"boxes": TWO["boxes"][:1]}, 0.7),  # IoU 0.8: 7 of 10 pass
        ([], {"boxes": []}, 1.0),
        ([], TWO, 0.0),
        (TWO["boxes"], {"boxes": []}, 0.0),
        ("nothing there", {"boxes": []}, 0.0),
    ],
)
def test_many_boxes_earn_the_mean_f1(answer: object, reference: dict, value: float) -> None:
    assert GroundingBoxes()(said(answer), reference).value == pytest.approx(value)


def test_labels_can_be_ignored() -> None:
    answer = said([{**box, "label": "bird"} for box in TWO["boxes"]])
    assert GroundingBoxes(match_label=False)(answer, TWO).value == 1.0


def test_spam_of_the_same_box_pays_less_with_every_copy() -> None:
    scores = [GroundingBoxes()(said(TWO["boxes"] * copies), TWO).value or 0.0 for copies in range(1, 6)]
    assert scores == sorted(scores, reverse=True) and scores[0] == 1.0 and scores[4] < 0.35


def test_boxes_below_the_first_threshold_still_tell_bad_from_worse_by_their_iou() -> None:
    one = {"boxes": [{"bbox_2d": [0, 0, 100, 100]}]}
    answers = [[0, 0, 100, 40], [0, 0, 100, 30], [200, 200, 300, 300]]
    assert [GroundingBoxes()(said([answer]), one).value for answer in answers] == [0.0, 0.0, 0.0]
    soft = GroundingBoxes(measure="iou")
    assert [soft(said([answer]), one).value for answer in answers] == pytest.approx([0.4, 0.3, 0.0])
    assert soft(said([[0, 0, 100, 100]] * 4), one).value == pytest.approx(0.25)


def test_penalties_for_spam_and_duplicates_come_on_top() -> None:
    answer, one = said([ONE, ONE, {"bbox_2d": [800, 800, 900, 900], "label": "cat"}]), {"boxes": [ONE]}
    score = GroundingBoxes()(answer, one)
    assert score.value == pytest.approx(2 / 4) and score.parts["num_duplicates"] == 1
    assert GroundingBoxes(spam_penalty=0.3)(answer, one).value == pytest.approx(2 / 4 - 0.3 * 2 / 3)
    assert GroundingBoxes(duplicate_penalty=0.3)(answer, one).value == pytest.approx(2 / 4 - 0.3 * 1 / 3)
    assert GroundingBoxes(spam_penalty=9.0)(answer, one).value == 0.0
    other = said([ONE, {**ONE, "label": "dog"}])
    assert GroundingBoxes()(other, one).parts["num_duplicates"] == 0
    with pytest.raises(ValueError, match="spam_penalty"):
        GroundingBoxes(spam_penalty=-1.0)


def test_thousands_of_boxes_take_little_time() -> None:
    rng = random.Random(0)
    gold = [{"bbox_2d": [x, y, x + 100, y + 100]} for x, y in (rng.choices(range(900), k=2) for _ in range(500))]
    spam = [[x, y, x + 100, y + 100] for x, y in (rng.choices(range(900), k=2) for _ in range(2000))]
    nested = [[0, 0, 1000 - i / 10, 1000] for i in range(2000)]
    started = time.process_time()
    for boxes in (spam, nested):
        assert 0 <= (GroundingBoxes()(said(boxes), {"boxes": gold}).value or 0.0) < 0.3
    assert GroundingBoxes()(said([[0, 0, 1, 1]] * 50_000), {"boxes": gold}).reason == "no readable list of boxes"
    assert time.process_time() - started < 60  # a second or two alone
    with pytest.raises(BadReferenceError, match="holds 600 boxes"):
        GroundingBoxes()(said([]), {"boxes": [ONE] * 600})


def test_matching_has_the_largest_total_overlap_of_all_matchings() -> None:
    rng = random.Random(0)
    for _ in range(20):
        sides = [[sorted(rng.choices(range(1000), k=2)) for _ in range(8)] for _ in range(2)]
        boxes = [Box(x1, y1, x2, y2) for (x1, x2), (y1, y2) in zip(*sides, strict=True)]
        predicted, gold = boxes[:4], boxes[4:]
        best = max(
            sum(iou(box, target) for box, target in zip(order, gold, strict=True))
            for order in itertools.permutations(predicted)
        )
        assert sum(matched_ious(predicted, gold, match_label=True)) == pytest.approx(best)


@pytest.mark.parametrize(
    "reference",
    [
        {},
        {"bbox_2d": [1, 2, 3]},
        {"bbox_2d": "box"},
        {"bbox_2d": [300, 100, 100, 300]},
        {"bbox_2d": [0, 0, 1920, 1080]},
        {"bbox_2d": [0, 0, float("nan"), 1]},
        {"boxes": [[0, 0, 1, 1]]},
        {"boxes": "[]"},
    ],
)
@pytest.mark.parametrize("reward", [GroundingIoU(), GroundingBoxes()])
def test_a_reference_that_is_no_box_is_an_error_of_the_data(reward: GroundingIoU, reference: dict) -> None:
    with pytest.raises(BadReferenceError):
        reward.perfect_answer(reference)
    with pytest.raises(BadReferenceError):
        reward(said([0, 0, 1, 1]), reference)


def test_perfect_answers_earn_full_marks() -> None:
    assert GroundingIoU().perfect_answer(ONE) == write_boxes([Box(100, 100, 300, 300, "cat")])
    assert GroundingIoU()(said(GroundingIoU().perfect_answer(ONE)), ONE).value == 1.0
    assert GroundingBoxes()(said(GroundingBoxes().perfect_answer(TWO)), TWO).value == 1.0
