"""The grounding rewards: one box by its overlap, many boxes by F1 after optimal matching. 0-1000 coordinates."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from .boxes import (
    MAX_REFERENCE_BOXES,
    Box,
    area,
    giou,
    iou,
    iou_matrix,
    label_matrix,
    parse_boxes,
    same_label,
    write_boxes,
)
from .references import reference_field
from .registry import register
from .score import BadReferenceError, Completion, Score

COCO_THRESHOLDS = (0.5, 0.55, 0.6, 0.65, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95)
DUPLICATE_IOU = 0.9
"""Two boxes of one label that overlap this much point at the same thing."""


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
    """How well a list of boxes agrees with the reference's, after one-to-one matching (Hungarian), in [0, 1].

    The matching has the largest total IoU of all. A second box on the same object finds no partner and counts as a
    false positive, so spam does not pay. Nothing there and nothing said is 1. The reference holds `boxes`,
    `[{"bbox_2d": [...], "label": ...}, ...]`, or `bbox_2d`.
    """

    match_label: bool = True
    """Boxes with different labels never match; a reference box without a label matches any."""
    measure: Literal["f1", "iou"] = "f1"
    """f1 averages the F1 at each threshold; iou divides the sum of matched IoUs by the longer list's length, which
    tells bad boxes from worse ones below the first threshold (Visual-RFT, arXiv 2503.01785)."""
    thresholds: tuple[float, ...] = COCO_THRESHOLDS
    """IoU from which a matched pair counts in an F1."""
    spam_penalty: float = 0.0
    """Taken off, times the share of boxes beyond as many as the reference has; more than a false positive costs."""
    duplicate_penalty: float = 0.0
    """Taken off, times the share of boxes that repeat an earlier one: its label, and an IoU of 0.9 with it or more."""

    def __post_init__(self) -> None:
        if not self.thresholds or not all(0 < threshold <= 1 for threshold in self.thresholds):
            raise ValueError(f"thresholds must be one or more numbers in (0, 1], got {self.thresholds}")
        for name in ("spam_penalty", "duplicate_penalty"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be 0 or more, got {getattr(self, name)}")

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        gold = reference_boxes(reference)
        boxes = parse_boxes(completion.text)
        if boxes is None:
            return _worthless("no readable list of boxes")
        if not gold and not boxes:
            return Score(value=1.0, parts={"num_boxes": 0.0})
        overlaps = matched_ious(boxes, gold, match_label=self.match_label)
        duplicates = num_duplicates(boxes)
        hits = sum(overlap >= self.thresholds[0] for overlap in overlaps)
        said = max(len(boxes), 1)
        penalty = self.spam_penalty * max(len(boxes) - len(gold), 0) / said + self.duplicate_penalty * duplicates / said
        parts = {
            "num_boxes": float(len(boxes)),
            "num_duplicates": float(duplicates),
            "precision": hits / said,
            "recall": hits / max(len(gold), 1),
        }
        return Score(value=max(self._agreement(overlaps, len(boxes), len(gold)) - penalty, 0.0), parts=parts)

    def perfect_answer(self, reference: Mapping[str, Any]) -> str:
        """The reference's boxes in Qwen3-VL's JSON. Raises `BadReferenceError` where they are no boxes in 0-1000."""
        return write_boxes(reference_boxes(reference))

    def _agreement(self, overlaps: Sequence[float], said: int, wanted: int) -> float:
        if self.measure == "iou":
            return sum(overlaps) / max(said, wanted)
        hits = [sum(overlap >= threshold for overlap in overlaps) for threshold in self.thresholds]
        return sum(2 * hit / (said + wanted) for hit in hits) / len(hits)


def matched_ious(predicted: Sequence[Box], gold: Sequence[Box], *, match_label: bool) -> list[float]:
    """IoU of each matched pair in the one-to-one matching with the largest sum of IoUs; pairs apart are left out."""
    if not predicted or not gold:
        return []
    from scipy.optimize import linear_sum_assignment  # loads for a third of a second; most runs have no boxes

    overlaps = iou_matrix(predicted, gold)
    if match_label:
        overlaps *= label_matrix([box.label for box in predicted], [target.label for target in gold], wild=True)
    overlaps = overlaps[overlaps.any(axis=1)]  # boxes that meet nothing cannot match, and the matching is cubic
    overlaps = overlaps[:, overlaps.any(axis=0)]
    rows, columns = linear_sum_assignment(overlaps, maximize=True)
    return [float(overlap) for overlap in overlaps[rows, columns] if overlap > 0]


def num_duplicates(boxes: Sequence[Box]) -> int:
    """How many boxes repeat one that came before: the same label, and an IoU of at least `DUPLICATE_IOU` with it."""
    if len(boxes) < 2:
        return 0
    import numpy as np

    labels = [box.label for box in boxes]
    repeats = (iou_matrix(boxes, boxes) >= DUPLICATE_IOU) & label_matrix(labels, labels, wild=False)
    return int(np.tril(repeats, k=-1).any(axis=1).sum())


def reference_boxes(reference: Mapping[str, Any]) -> list[Box]:
    """The reference's boxes, from `boxes` or `bbox_2d` (with `label`, if there is one).

    Raises `BadReferenceError` unless each has four numbers with 0 <= x1 < x2 <= 1000 and 0 <= y1 < y2 <= 1000.
    """
    if reference.get("boxes") is None:
        return [_reference_box(reference_field(reference, "bbox_2d"), reference.get("label") or "")]
    items = reference["boxes"]
    if not isinstance(items, list | tuple):
        raise BadReferenceError(f"'boxes' must be a list of boxes, got {items!r:.80}")
    if len(items) > MAX_REFERENCE_BOXES:
        raise BadReferenceError(
            f"'boxes' holds {len(items)} boxes; at most {MAX_REFERENCE_BOXES} can be matched in time"
        )
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
