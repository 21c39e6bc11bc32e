"""The Qwen-VL family as trainers need it: loading, packing, shared-prefix attention, chunked log-probabilities."""

from .families import ANATOMY, Family, ModelFacts, facts_of
from .head import HeadOutput, TokenLoss, token_loss_head
from .matching import DenseReference, Divergence, Matching, TopReference
from .packing import Budget, PackedRow, Segment, pack
from .policy import PackedPolicy, blank_row
from .positions import image_spans, rope_positions
from .sequences import ImagePatches, TokenSequence
from .top_logprobs import TopLogprobs, top_logprobs

__all__ = [
    "ANATOMY",
    "Budget",
    "DenseReference",
    "Divergence",
    "Family",
    "HeadOutput",
    "ImagePatches",
    "Matching",
    "ModelFacts",
    "PackedPolicy",
    "PackedRow",
    "Segment",
    "TokenLoss",
    "TokenSequence",
    "TopLogprobs",
    "TopReference",
    "blank_row",
    "facts_of",
    "image_spans",
    "pack",
    "rope_positions",
    "token_loss_head",
    "top_logprobs",
]
