"""Rewards: text, boxes and references in, a `Score` out. Imports no torch."""

from .aggregation import Aggregation, gated_sum, weighted_sum
from .batching import BatchReward
from .boxes import Box, giou, iou, parse_boxes, write_boxes
from .clock import ClockReward
from .coding import CodeReward
from .corruption import corrupted
from .counting import CountReward
from .environment_score import EnvironmentScore
from .exact import ExactMatch, MultipleChoice
from .extraction import EXTRACTIONS, Extraction, extract, extract_answer
from .formatting import FormatReward
from .functions import FunctionReward
from .grounding import GroundingBoxes, GroundingIoU
from .instructions import InstructionReward
from .json_match import JSONMatch
from .json_schema import JSONSchemaReward
from .json_valid import JSONValid
from .judge import Judge, judge_metrics
from .judge_accuracy import JudgeAccuracy
from .judge_fallback import RuleThenJudge
from .judge_pairwise import JudgePairwise
from .judge_process import JudgeProcess
from .judge_reward import JudgeReward
from .judge_rubric import JudgeRubric
from .judge_server import JudgeServer
from .language import LanguagePenalty
from .length import LengthPenalty
from .maths import MathReward
from .number import NumberReward
from .ocr import OCRReward
from .pointing import CountPoints, PointHits
from .points import Point, parse_points, write_points
from .registry import Option, RewardSpec, available, describe, make_reward, register
from .repetition import RepetitionPenalty
from .score import (
    BadReferenceError,
    BadRewardError,
    Completion,
    ConversationTurn,
    OffersWrongAnswers,
    Reward,
    Score,
    StatesFullScore,
    TimedReward,
    ToolCall,
    WholeTextReward,
)
from .table import RewardTable, make_table
from .task_rewards import TaskRewards
from .text_similarity import TextSimilarity
from .tool_call_format import ToolCallFormat
from .tool_count import ToolCount
from .weighted import WeightedReward, weighted_reward
from .workers import WorkerError, WorkerPool, shared_pool

__all__ = [
    "Judge",
    "JudgeAccuracy",
    "JudgePairwise",
    "JudgeProcess",
    "JudgeReward",
    "JudgeRubric",
    "JudgeServer",
    "RuleThenJudge",
    "judge_metrics",
    "Aggregation",
    "BadReferenceError",
    "BadRewardError",
    "EXTRACTIONS",
    "Extraction",
    "OffersWrongAnswers",
    "TimedReward",
    "ToolCall",
    "WholeTextReward",
    "corrupted",
    "extract",
    "gated_sum",
    "weighted_reward",
    "weighted_sum",
    "BatchReward",
    "Box",
    "Completion",
    "ConversationTurn",
    "EnvironmentScore",
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
    "StatesFullScore",
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
    "CountPoints",
    "PointHits",
    "Point",
    "parse_points",
    "write_points",
    "InstructionReward",
    "ClockReward",
    "CountReward",
    "JSONMatch",
    "JSONSchemaReward",
    "JSONValid",
    "LanguagePenalty",
    "LengthPenalty",
    "NumberReward",
    "OCRReward",
    "RepetitionPenalty",
    "TextSimilarity",
    "ToolCallFormat",
    "ToolCount",
    "CodeReward",
]
