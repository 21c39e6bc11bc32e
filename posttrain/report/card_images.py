"""The images of a trajectory's card, with the boxes that were drawn, expected or cut from them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from posttrain.report.numerals import as_number
from posttrain.report.pictures import Album, Picture
from posttrain.report.run_folder import Row, Stage

_NUM_COLOURS = 8
_NEAR = 3.0
"""Per cent of a side: badges nearer than this would hide each other, and are set side by side."""
_BADGE = 8.0
"""Height of a badge in per cent of the height of a square picture, at the size of the smallest ones."""
_MIN_RATIO, _MAX_RATIO = 0.2, 8.0
"""Of width to height: a longer strip is drawn within a frame of this shape."""

BoxKind = Literal["predicted", "reference", "crop"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One box in the picture's pixels."""

    x: float
    y: float
    width: float
    height: float
    label: str
    kind: BoxKind
    made: int | None = None
    """Of a crop: the index of the image that was cut; None where it is not known."""
    colour: int = 0
    """Of a crop: 0-7, the same as its image's."""
    left: float = 0.0
    top: float = 0.0
    """Of a crop: where its corner lies in the picture, in per cent."""
    shift: int = 0
    """Of a crop: how many badges stand at this corner already."""
    is_high: bool = False
    """Of a crop: True where there is no room for its badge above it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """One image that the policy saw: the picture with its boxes, or why there is none."""

    index: int
    """As the policy counts them (`img_idx`): the prompt's first, then what tools answered."""
    file: str
    picture: Picture | None
    problem: str
    boxes: Sequence[Box]
    ratio: float
    """Width over height of its frame."""
    cut_from: int | None
    """Where it is a crop: the index of the image that it was cut from."""
    cut_label: str
    colour: int
    """Of a crop: 0-7."""


def image_files(stage: Stage, row: Row) -> list[Path]:
    """Paths of the trajectory's images, as named in its row."""
    return [stage.folder / name for name in _names(row) if isinstance(name, str)]


def shown_images(stage: Stage, row: Row, album: Album) -> list[Shown]:
    """All images of a trajectory, in the order in which the policy saw them."""
    names, boxes = _names(row), row.get("boxes")
    raw = [b for b in boxes if isinstance(b, dict)] if isinstance(boxes, list) else []
    raw = [b | {"made": _index(b.get("made"), len(names))} for b in raw]
    crops = [b for b in raw if b.get("kind") == "crop"]
    colours = {id(crop): place % _NUM_COLOURS for place, crop in enumerate(crops)}
    made = {crop["made"]: crop for crop in reversed(crops) if crop["made"] is not None}
    return [_shown(i, stage, name, raw, made.get(i), colours, album) for i, name in enumerate(names)]


def _names(row: Row) -> list[Any]:
    names = row.get("images")
    return names if isinstance(names, list) else []


def _index(value: Any, count: int) -> int | None:
    is_index = isinstance(value, int) and not isinstance(value, bool) and 0 <= value < count
    return value if is_index else None


def _shown(
    index: int,
    stage: Stage,
    name: Any,
    boxes: Sequence[dict[str, Any]],
    crop: dict[str, Any] | None,
    colours: dict[int, int],
    album: Album,
) -> Shown:
    file = stage.folder / name if isinstance(name, str) else None
    picture = album.pictures.get(file) if file else None
    drawn: list[Box] = []
    for raw in boxes if picture else ():
        if raw.get("image", 0) == index and picture is not None:
            box = _box(raw, picture, colour=colours.get(id(raw), 0), others=drawn)
            drawn += [box] if box is not None else []
    return Shown(
        index=index,
        file=file.name if file else "",
        picture=picture,
        problem=album.problems.get(file, "") if file else "was not recorded: a trajectory keeps its first pictures",
        boxes=drawn,
        ratio=min(max(picture.width / picture.height, _MIN_RATIO), _MAX_RATIO) if picture else 1.0,
        cut_from=_index(crop.get("image"), index) if crop else None,
        cut_label=str(crop.get("label") or "")[:80] if crop else "",
        colour=colours[id(crop)] if crop else 0,
    )


def _box(raw: dict[str, Any], picture: Picture, *, colour: int, others: Sequence[Box]) -> Box | None:
    """Corners come in 0-1000 of the picture, in any order; None for anything but four numbers."""
    if not isinstance(raw.get("bbox_2d"), list):
        return None
    corners = [v for c in raw["bbox_2d"] if (v := as_number(c)) is not None]
    if len(corners) != 4:
        return None
    xs, ys = (sorted(min(max(v, 0.0), 1000.0) for v in corners[side::2]) for side in (0, 1))
    is_swapped = corners[0] > corners[2] or corners[1] > corners[3]
    sx, sy = picture.width / 1000, picture.height / 1000
    left, top = xs[0] / 10, ys[0] / 10
    kind: BoxKind = raw["kind"] if raw.get("kind") in ("reference", "crop") else "predicted"
    near = [o for o in others if o.kind == "crop" and abs(o.left - left) < _NEAR and abs(o.top - top) < _NEAR]
    return Box(
        x=round(xs[0] * sx, 2),
        y=round(ys[0] * sy, 2),
        width=round((xs[1] - xs[0]) * sx, 2),
        height=round((ys[1] - ys[0]) * sy, 2),
        label=str(raw.get("label") or "")[:40] + (" (corners swapped)" if is_swapped else ""),
        kind=kind,
        made=raw["made"] if kind == "crop" else None,
        colour=colour,
        left=round(left, 2),
        top=round(top, 2),
        shift=len(near),
        is_high=top < _BADGE * max(1.0, picture.width / picture.height),
    )
