"""Drawn scenes are seeded, lie on their grid, and hold what their answers say."""

import json

import numpy as np
import pytest

from posttrain.data import SceneSource, SceneSpec, corpus
from posttrain.data.plates import Plate
from posttrain.data.scene_grid import COLOURS
from posttrain.errors import DataError

TASKS = ("ground", "plate", "read", "count", "arith")


@pytest.mark.parametrize("task", TASKS)
def test_an_index_always_gives_the_same_example_and_a_seed_gives_others(task):
    one, two = SceneSource(SceneSpec(task=task, size=40)), SceneSource(SceneSpec(task=task, size=40))
    other = SceneSource(SceneSpec(task=task, size=40, seed=1))
    assert one[17].messages == two[17].messages and one[17].reference == two[17].reference
    assert [i.tobytes() for i in one[17].images] == [i.tobytes() for i in two[17].images]
    assert [one[i].messages for i in range(40)] != [other[i].messages for i in range(40)]
    assert all(i.size == (64, 64) and i.mode == "RGB" for k in range(40) for i in one[k].images)
    assert len(one[0].images) == (task != "arith")


def test_the_box_is_exactly_where_the_colour_is():
    for example in (SceneSource(SceneSpec(task=task, size=60))[i] for task in ("ground", "plate") for i in range(60)):
        box = example.reference["bbox_2d"]
        assert all(side % 125 == 0 and 0 <= side <= 1000 for side in box)
        colour = COLOURS[example.reference["label"].split()[0]]
        rows, columns = np.nonzero((np.asarray(example.images[0]) == colour).all(axis=2))
        drawn = [columns.min(), rows.min(), columns.max() + 1, rows.max() + 1]
        found = [v * 1000 / 64 for v in drawn]
        if "triangle" in example.reference["label"]:
            assert found[1] - box[1] <= 1000 * 2 / 64 and found[2:] == box[2:] and found[0] == box[0]
        else:
            assert found == box
        assert json.loads(example.messages[-1]["content"]) == {"bbox_2d": box, "label": example.reference["label"]}


def test_loose_labels_push_sides_outward_and_leave_picture_and_reference_alone():
    true, loose = SceneSource(SceneSpec(task="ground")), SceneSource(SceneSpec(task="ground", loose=0.7))
    pushed = sides = 0
    for i in range(300):
        a, b = true[i], loose[i]
        assert a.images[0].tobytes() == b.images[0].tobytes() and a.reference == b.reference
        box, label = a.reference["bbox_2d"], json.loads(b.messages[-1]["content"])["bbox_2d"]
        for side, (was, now) in enumerate(zip(box, label, strict=True)):
            out = -125 if side < 2 else 125
            assert now in (was, was + out) and 0 <= now <= 1000
            if 0 <= was + out <= 1000:
                sides += 1
                pushed += now != was
    assert abs(pushed / sides - 0.7) < 0.06  # about four standard errors of 0.7 over ~900 sides


def test_no_digit_can_be_seen_on_the_picture_and_every_digit_differs_on_the_canvas():
    plates = [Plate("red", digit, 2, 3, 230).canvas() for digit in range(10)]
    assert len({p.reduce(4).tobytes() for p in plates}) == 1
    assert len({p.tobytes() for p in plates}) == 10


def test_answers_that_are_numbers_are_right():
    for i in range(50):
        arith = SceneSource(SceneSpec(task="arith"))[i]
        question = arith.messages[0]["content"].removeprefix("What is ").removesuffix("?")
        a, b = question.split("+")
        assert arith.reference["answer"] == arith.messages[-1]["content"] == str(int(a) + int(b))
        count = SceneSource(SceneSpec(task="count"))[i]
        pixels = np.asarray(count.images[0]).reshape(-1, 3)
        seen = sum((pixels == colour).all(axis=1).any() for colour in COLOURS.values())
        assert count.reference["answer"] == str(seen)


def test_the_corpus_is_seeded_text_of_every_task():
    texts = list(corpus(200))
    assert texts == list(corpus(200)) and len(texts) == 200
    for piece in ("Locate the red", "plate.", '{"bbox_2d": [', "Which digit", "How many", "What is"):
        assert any(piece in text for text in texts), piece


def test_scenes_that_cannot_be_drawn_say_why():
    with pytest.raises(DataError, match="no scenes of the task 'fly'; tasks are: ground, plate"):
        SceneSpec(task="fly")  # type: ignore[arg-type]
    with pytest.raises(DataError, match=r"loose in 0\.\.1"):
        SceneSpec(task="ground", loose=2)
    with pytest.raises(DataError, match="have none"):
        SceneSpec(task="arith", loose=0.5)
    with pytest.raises(IndexError, match="asked for scene 5"):
        SceneSource(SceneSpec(task="arith", size=5))[5]
