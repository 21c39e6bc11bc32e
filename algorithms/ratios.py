"""Importance ratios between the policy that is trained and the one that sampled, kept finite."""

import torch
from torch import Tensor

LOG_RATIO_LIMIT = 20.0
"""Beyond it float32 `exp` overflows on the way (log-ratio > 88) and the backward pass yields 0 * inf = NaN."""


def log_ratios(logprobs_T: Tensor, old_logprobs_T: Tensor, *, limit: float = LOG_RATIO_LIMIT) -> Tensor:
    """[T] float32 `log(pi / pi_old)`, clamped to +-limit; the gradient is 0 where it is clamped."""
    return (logprobs_T.float() - old_logprobs_T.float()).clamp(-limit, limit)


def truncated_importance_weights(old_logprobs_T: Tensor, rollout_logprobs_T: Tensor, *, cap: float) -> Tensor:
    """[T] `min(pi_old / pi_rollout, cap)`, a constant: corrects for an engine that differs from the trainer.

    old_logprobs_T: the trainer's, at the weights that sampled; rollout_logprobs_T: the engine's. Truncated importance
    sampling per token, as in verl's rollout correction (default cap 2).
    """
    return torch.exp(log_ratios(old_logprobs_T, rollout_logprobs_T)).clamp(max=cap).detach()


def k3_divergence(logprobs_T: Tensor, reference_logprobs_T: Tensor) -> Tensor:
    """[T] estimate of KL(pi || pi_ref) from the sampled tokens: `r - 1 - log r`, r = pi_ref / pi (Schulman's k3)."""
    delta_T = log_ratios(reference_logprobs_T, logprobs_T)
    return torch.exp(delta_T) - 1 - delta_T
