"""Drawn scenes: endless seeded examples for a model small enough to learn from nothing, generated and not stored.

Pictures are 64 x 64; everything lies on a grid of 8 pixels, so that coordinates (0-1000) are multiples of 125, and a
scene holds one candidate object: what a model of 0.4 M parameters learns in a minute of CPU.
"""

import json
import random
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, get_args

from PIL import Image, ImageDraw

from posttrain.data.plates import PLATE_SIDE, ZOOM, any_plate
from posttrain.data.scene_grid import CELL, COLOURS, SIDE, STEP
from posttrain.errors import DataError
from posttrain.records import Example, Message

SceneTask = Literal["ground", "plate", "read", "count", "arith", "zoom"]

SHAPES = ("circle", "square", "triangle")


@dataclass(frozen=True, slots=True, kw_only=True)
class SceneSpec:
    """A data set of drawn scenes. Another seed gives other scenes: hold out by seed."""

    task: SceneTask
    """ground: box of a shape; plate: box of a plate; read: digit on a crop of one; count: shapes; arith: text only;
    zoom: digit of a plate on the full canvas of 256 x 256 pixels, which reduced by 4 is the same for all ten digits."""
    size: int = 1000
    """Number of examples."""
    seed: int = 0
    loose: float = 0.0
    """Probability that a side of the *answer's* box is pushed out by one grid cell; the reference stays true."""

    def __post_init__(self) -> None:
        if self.task not in get_args(SceneTask):
            raise DataError(
                f"there are no scenes of the task '{self.task}'; tasks are: {', '.join(get_args(SceneTask))}"
            )
        if self.size < 1 or not 0 <= self.loose <= 1:
            raise DataError(f"scenes need a size of at least 1 and loose in 0..1, got {self.size} and {self.loose}")
        if self.loose and self.task not in ("ground", "plate"):
            raise DataError(f"loose={self.loose} pushes boxes, and scenes of the task '{self.task}' have none")


class SceneSource:
    """A data source of scenes: the same index always gives the same picture, question and answer."""

    def __init__(self, spec: SceneSpec) -> None:
        self.spec = spec

    def __len__(self) -> int:
        return self.spec.size

    def __getitem__(self, index: int, /) -> Example:
        if not -self.spec.size <= index < self.spec.size:
            raise IndexError(f"there are {self.spec.size} scenes, asked for scene {index}")
        index %= self.spec.size
        name = f"scenes-{self.spec.task}-{self.spec.seed}:{index}"
        scene = _SCENES[self.spec.task](random.Random(name))
        # Its own generator: the same scene has the same picture whether its label is loose or not.
        answer = scene.answer(self.spec.loose, random.Random(f"{name}/loose"))
        content: list[Mapping[str, Any]] = [{"type": "text", "text": scene.question}]
        if scene.draw is not None:
            content.insert(0, {"type": "image"})
        messages: tuple[Message, ...] = (
            {"role": "user", "content": content if scene.draw else scene.question},
            {"role": "assistant", "content": answer},
        )
        images = () if scene.draw is None else (scene.draw(),)
        return Example(id=name, task=self.spec.task, messages=messages, images=images, reference=scene.reference)


def corpus(num_texts: int, seed: int = 0) -> Iterator[str]:
    """Questions and answers of every task in turn, for training a small tokenizer."""
    draw = random.Random(f"scenes-corpus-{seed}")
    for i in range(num_texts):
        scene = _SCENES[_SPOKEN[i % len(_SPOKEN)]](draw)
        yield f"{scene.question}\n{scene.answer(0.5, draw)}\n"


def box_answer(box: list[int], label: str) -> str:
    """A box as the model writes it: `{"bbox_2d": [125, 0, 250, 125], "label": "red circle"}`."""
    return json.dumps({"bbox_2d": box, "label": label})


@dataclass(frozen=True, slots=True, kw_only=True)
class _Scene:
    question: str
    reference: Mapping[str, Any]
    draw: Callable[[], Image.Image] | None = field(repr=False)

    def answer(self, loose: float, draw: random.Random) -> str:
        if "answer" in self.reference:
            return self.reference["answer"]
        outward = (-STEP, -STEP, STEP, STEP)
        pushed = [
            min(1000, max(0, side + (by if draw.random() < loose else 0)))
            for side, by in zip(self.reference["bbox_2d"], outward, strict=True)
        ]
        return box_answer(pushed, self.reference["label"])


@dataclass(frozen=True, slots=True)
class _Shape:
    kind: str
    colour: str
    x: int
    y: int
    side: int
    """x, y and side in grid cells."""

    @property
    def box(self) -> list[int]:
        return [STEP * v for v in (self.x, self.y, self.x + self.side, self.y + self.side)]

    def meets(self, other: "_Shape") -> bool:
        return abs(2 * (self.x - other.x) + self.side - other.side) < self.side + other.side and (
            abs(2 * (self.y - other.y) + self.side - other.side) < self.side + other.side
        )


def _ground(draw: random.Random) -> _Scene:
    shape = _place(draw, max_side=3, colours=list(COLOURS))
    label = f"{shape.colour} {shape.kind}"
    grey = draw.randint(215, 255)
    return _Scene(
        question=f"Locate the {label}.",
        reference={"bbox_2d": shape.box, "label": label},
        draw=lambda: _draw_shapes([shape], grey),
    )


def _count(draw: random.Random) -> _Scene:
    shapes: list[_Shape] = []
    wanted, colours = draw.randint(1, 5), draw.sample(list(COLOURS), len(COLOURS))
    while len(shapes) < wanted:
        shape = _place(draw, max_side=2, colours=colours[len(shapes) : len(shapes) + 1])
        if not any(shape.meets(other) for other in shapes):
            shapes.append(shape)
    grey = draw.randint(215, 255)
    return _Scene(
        question="How many shapes are there?",
        reference={"answer": str(wanted)},
        draw=lambda: _draw_shapes(shapes, grey),
    )


def _arith(draw: random.Random) -> _Scene:
    a, b = draw.randint(0, 9), draw.randint(0, 9)
    return _Scene(question=f"What is {a}+{b}?", reference={"answer": str(a + b)}, draw=None)


def _plate(draw: random.Random) -> _Scene:
    plate = any_plate(draw)
    label = f"{plate.colour} plate"
    box = [STEP * v for v in (plate.x, plate.y, plate.x + 2, plate.y + 2)]
    return _Scene(
        question=f"Locate the {label}.",
        reference={"bbox_2d": box, "label": label},
        draw=lambda: plate.canvas().reduce(ZOOM),
    )


def _read(draw: random.Random) -> _Scene:
    plate = any_plate(draw)
    left, top = ZOOM * CELL * plate.x, ZOOM * CELL * plate.y

    def jittered(side: int) -> int:
        return min(ZOOM * SIDE, max(0, side + draw.randint(-10, 10)))

    crop = (jittered(left), jittered(top), jittered(left + PLATE_SIDE), jittered(top + PLATE_SIDE))
    return _Scene(
        question="Which digit is on the plate?",
        reference={"answer": str(plate.digit)},
        draw=lambda: plate.canvas().crop(crop).resize((SIDE, SIDE), Image.Resampling.BILINEAR),
    )


def _zoom(draw: random.Random) -> _Scene:
    plate = any_plate(draw)
    box = [STEP * v for v in (plate.x, plate.y, plate.x + 2, plate.y + 2)]
    return _Scene(
        question="Which digit is on the plate?",
        reference={"answer": str(plate.digit), "bbox_2d": box, "label": f"{plate.colour} plate"},
        draw=plate.canvas,
    )


_SPOKEN: Sequence[SceneTask] = ("ground", "plate", "read", "count", "arith")
"""Tasks whose words a tokenizer is trained on: those of `zoom` are the same."""

_SCENES: Mapping[SceneTask, Callable[[random.Random], _Scene]] = {
    "ground": _ground,
    "plate": _plate,
    "read": _read,
    "count": _count,
    "arith": _arith,
    "zoom": _zoom,
}


def _place(draw: random.Random, *, max_side: int, colours: list[str]) -> _Shape:
    side = draw.randint(1, max_side)
    x, y = (draw.randint(0, SIDE // CELL - side) for _ in range(2))
    return _Shape(draw.choice(SHAPES), draw.choice(colours), x, y, side)


def _draw_shapes(shapes: list[_Shape], grey: int) -> Image.Image:
    picture = Image.new("RGB", (SIDE, SIDE), (grey, grey, grey))
    pen = ImageDraw.Draw(picture)
    for shape in shapes:
        left, top = CELL * shape.x, CELL * shape.y
        right, bottom = left + CELL * shape.side - 1, top + CELL * shape.side - 1
        colour = COLOURS[shape.colour]
        if shape.kind == "circle":
            pen.ellipse((left, top, right, bottom), fill=colour)
        elif shape.kind == "square":
            pen.rectangle((left, top, right, bottom), fill=colour)
        else:
            pen.polygon(((left, bottom), (right, bottom), ((left + right) / 2, top)), fill=colour)
    return picture
