"""GRPO: the clipped surrogate per token (DeepSeekMath, arXiv 2402.03300; asymmetric clip of DAPO, 2503.14476)."""

import torch
from torch import Tensor

from .ratios import log_ratios


def grpo_token_losses(
    *,
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    clip_low: float = 0.2,
    clip_high: float = 0.2,
) -> Tensor:
    """[T] float32 losses `-min(r A, clip(r, 1 - clip_low, 1 + clip_high) A)`."""
    ratios_T = torch.exp(log_ratios(logprobs_T, old_logprobs_T))
    advantages_T = advantages_T.float()
    clipped_T = ratios_T.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratios_T * advantages_T, clipped_T * advantages_T)


def clipped(
    *, logprobs_T: Tensor, old_logprobs_T: Tensor, advantages_T: Tensor, clip_low: float = 0.2, clip_high: float = 0.2
) -> Tensor:
    """[T] bool: True where the clip removes the token's gradient."""
    ratios_T = torch.exp(log_ratios(logprobs_T, old_logprobs_T))
    return torch.where(advantages_T > 0, ratios_T > 1 + clip_high, ratios_T < 1 - clip_low) & (advantages_T != 0)
