"""The grounding rewards: one box by its overlap, many boxes by F1 after optimal matching. 0-1000 coordinates."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from .boxes import MAX_BOXES, Box, area, giou, iou, parse_boxes, same_label, write_boxes
from .references import reference_field
from .registry import register
from .score import BadReferenceError, Completion, Score

COCO_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)


@register("grounding_iou")
@dataclass(frozen=True, slots=True, kw_only=True)
class GroundingIoU:
    """Overlap of the one box in the answer with the reference's one box, in [0, 1].

    Plain IoU, soft (VLM-R1's referring reward without its off-by-one). No readable box, several boxes, and a box whose
    corners are swapped or that has no area earn 0. The reference holds `bbox_2d`, or `boxes` with one box.
    """

    measure: Literal["iou", "giou"] = "iou"
    """giou gives (GIoU + 1) / 2, which still tells near from far where the boxes do not touch."""
    match_label: bool = False
    """Gives 0 for another label than the reference's; ignored for references without one."""
    several: Literal["wrong", "first"] = "wrong"
    """What an answer of several boxes is worth: nothing, or what its first box is worth."""

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        gold = self._gold(reference)
        boxes = parse_boxes(completion.text)
        if not boxes:
            return _worthless("no readable box")
        if len(boxes) > 1 and self.several == "wrong":
            return _worthless(f"{len(boxes)} boxes where one was asked for")
        overlap = iou(boxes[0], gold)
        parts = {"iou": overlap, "hit": float(overlap >= 0.5)}
        if self.match_label and gold.label and not same_label(boxes[0].label, gold.label):
            return Score(value=0.0, parts=parts, reason=f"label {boxes[0].label!r:.80} is not {gold.label!r:.80}")
        return Score(value=overlap if self.measure == "iou" else (giou(boxes[0], gold) + 1) / 2, parts=parts)

    def perfect_answer(self, reference: Mapping[str, Any]) -> str:
        """The reference's box in Qwen3-VL's JSON. Raises `BadReferenceError` where it is no box in 0-1000."""
        return write_boxes([self._gold(reference)])

    def _gold(self, reference: Mapping[str, Any]) -> Box:
        boxes = reference_boxes(reference)
        if len(boxes) != 1:
            raise BadReferenceError(f"grounding_iou wants one reference box, got {len(boxes)}; use grounding_boxes")
        return boxes[0]


@register("grounding_boxes")
@dataclass(frozen=True, slots=True, kw_only=True)
class GroundingBoxes:
    """Mean F1 over IoU thresholds, after the one-to-one matching with the largest total IoU (Hungarian).

    A second box on the same object finds no partner and counts as a false positive, so spam does not pay. Nothing
    there and nothing said is 1. The reference holds `boxes`, `[{"bbox_2d": [...], "label": ...}, ...]`, or `bbox_2d`.
    """

    match_label: bool = True
    """Boxes with different labels never match; a reference box without a label matches any."""
    thresholds: tuple[float, ...] = COCO_THRESHOLDS
    """IoU from which a matched pair counts; the F1 at each is averaged."""

    def __post_init__(self) -> None:
        if not self.thresholds or not all(0 < threshold <= 1 for threshold in self.thresholds):
            raise ValueError(f"thresholds must be one or more numbers in (0, 1], got {self.thresholds}")

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        gold = reference_boxes(reference)
        boxes = parse_boxes(completion.text)
        if boxes is None:
            return _worthless("no readable list of boxes")
        if not gold and not boxes:
            return Score(value=1.0, parts={"num_boxes": 0.0})
        overlaps = matched_ious(boxes, gold, match_label=self.match_label)
        f1s = [2 * sum(o >= threshold for o in overlaps) / (len(boxes) + len(gold)) for threshold in self.thresholds]
        parts = {
            "num_boxes": float(len(boxes)),
            "precision": sum(o >= self.thresholds[0] for o in overlaps) / max(len(boxes), 1),
            "recall": sum(o >= self.thresholds[0] for o in overlaps) / max(len(gold), 1),
        }
        return Score(value=sum(f1s) / len(f1s), parts=parts)

    def perfect_answer(self, reference: Mapping[str, Any]) -> str:
        """The reference's boxes in Qwen3-VL's JSON. Raises `BadReferenceError` where they are no boxes in 0-1000."""
        return write_boxes(reference_boxes(reference))


def matched_ious(predicted: list[Box], gold: list[Box], *, match_label: bool) -> list[float]:
    """IoU of each matched pair in the one-to-one matching with the largest sum of IoUs; pairs apart are left out."""
    if not predicted or not gold:
        return []
    import numpy as np
    from scipy.optimize import linear_sum_assignment  # loads for a third of a second; most runs have no boxes

    overlaps = np.zeros((len(predicted), len(gold)))
    for row, box in enumerate(predicted):
        for column, target in enumerate(gold):
            if not match_label or not target.label or same_label(box.label, target.label):
                overlaps[row, column] = iou(box, target)
    rows, columns = linear_sum_assignment(overlaps, maximize=True)
    return [float(overlap) for overlap in overlaps[rows, columns] if overlap > 0]


def reference_boxes(reference: Mapping[str, Any]) -> list[Box]:
    """The reference's boxes, from `boxes` or `bbox_2d` (with `label`, if there is one).

    Raises `BadReferenceError` unless each has four numbers with 0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 1000.
    """
    if reference.get("boxes") is None:
        return [_reference_box(reference_field(reference, "bbox_2d"), reference.get("label") or "")]
    items = reference["boxes"]
    if isinstance(items, str | Mapping) or len(items) > MAX_BOXES:
        raise BadReferenceError(f"'boxes' must be a list of at most {MAX_BOXES} boxes, got {items!r:.80}")
    boxes = []
    for item in items:
        if not isinstance(item, Mapping):
            raise BadReferenceError(f"each of 'boxes' must be {{'bbox_2d': [...], 'label': ...}}, got {item!r:.80}")
        boxes.append(_reference_box(reference_field(item, "bbox_2d"), item.get("label") or ""))
    return boxes


def _reference_box(corners: Any, label: Any) -> Box:
    try:
        x1, y1, x2, y2 = (float(value) for value in corners)
    except (TypeError, ValueError):
        raise BadReferenceError(f"'bbox_2d' must be four numbers x1, y1, x2, y2, got {corners!r:.80}") from None
    box = Box(x1, y1, x2, y2, str(label))
    if not all(0 <= value <= 1000 for value in (x1, y1, x2, y2)):
        raise BadReferenceError(f"'bbox_2d' {corners!r:.80} is not in 0-1000: divide pixels by the image's size")
    if area(box) <= 0:
        raise BadReferenceError(f"'bbox_2d' {corners!r:.80} has no area: wanted x1 < x2 and y1 < y2")
    return box


def _worthless(reason: str) -> Score:
    return Score(value=0.0, reason=reason)
