"""GSPO: the clipped surrogate of the sequence-level ratio (arXiv 2507.18071)."""

import torch
from torch import Tensor

from .ratios import log_ratios
from .reductions import sequence_mean


def sequence_ratios(logprobs_T: Tensor, old_logprobs_T: Tensor, sequence_index_T: Tensor, num_sequences: int) -> Tensor:
    """[S] `s_i = exp(mean_t log r_t)`, the length-normalised likelihood ratio of each sequence (eq. 7)."""
    return torch.exp(sequence_mean(log_ratios(logprobs_T, old_logprobs_T), sequence_index_T, num_sequences))


def gspo_token_losses(
    *,
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    sequence_index_T: Tensor,
    num_sequences: int,
    clip_low: float = 3e-4,
    clip_high: float = 4e-4,
) -> Tensor:
    """[T] float32 losses of the GSPO-token form `s_t = sg[s_i] * pi_t / sg[pi_t]` (eq. 13-14), averaged per sequence.

    All log-probabilities of a sequence are needed before any loss. The advantage may differ from token to token.
    """
    logprobs_T, advantages_T = logprobs_T.float(), advantages_T.float()
    s_S = sequence_ratios(logprobs_T.detach(), old_logprobs_T, sequence_index_T, num_sequences)
    ratios_T = s_S[sequence_index_T] * torch.exp(logprobs_T - logprobs_T.detach())
    clipped_T = ratios_T.clamp(1 - clip_low, 1 + clip_high)
    return -torch.minimum(ratios_T * advantages_T, clipped_T * advantages_T)
