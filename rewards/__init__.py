"""Rewards: text, boxes and references in, a `Score` out. Imports no torch."""

from .batching import BatchReward
from .boxes import Box, giou, iou, parse_boxes, write_boxes
from .exact import ExactMatch, MultipleChoice
from .extraction import extract_answer
from .formatting import FormatReward
from .functions import FunctionReward
from .grounding import GroundingBoxes, GroundingIoU
from .maths import MathReward
from .registry import Option, RewardSpec, available, describe, make_reward, register
from .score import BadReferenceError, Completion, Reward, Score
from .table import RewardTable, TaskRewards, WeightedReward, make_table
from .workers import WorkerError, WorkerPool, shared_pool

__all__ = [
    "BadReferenceError",
    "BatchReward",
    "Box",
    "Completion",
    "ExactMatch",
    "FormatReward",
    "FunctionReward",
    "GroundingBoxes",
    "GroundingIoU",
    "MathReward",
    "MultipleChoice",
    "Option",
    "Reward",
    "RewardSpec",
    "RewardTable",
    "Score",
    "TaskRewards",
    "WeightedReward",
    "WorkerError",
    "WorkerPool",
    "available",
    "describe",
    "extract_answer",
    "giou",
    "iou",
    "make_reward",
    "make_table",
    "parse_boxes",
    "register",
    "shared_pool",
    "write_boxes",
]
