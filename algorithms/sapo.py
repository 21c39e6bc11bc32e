"""SAPO: soft adaptive policy optimisation (arXiv 2511.20347)."""

import torch
from torch import Tensor

from .ratios import log_ratios

TAU_POSITIVE, TAU_NEGATIVE = 1.0, 1.05
"""The paper's temperatures: negative advantages, noisier off-policy, are gated more sharply (eq. 9)."""


def temperatures(advantages_T: Tensor, tau_positive: float, tau_negative: float) -> Tensor:
    """[T] tau by the sign of the advantage; 0 counts as negative (eq. 8) and contributes nothing."""
    return torch.where(advantages_T > 0, tau_positive, tau_negative).to(torch.float32)


def sapo_token_losses(
    *,
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    tau_positive: float = TAU_POSITIVE,
    tau_negative: float = TAU_NEGATIVE,
) -> Tensor:
    """[T] float32 losses `-f(r) A`, `f(r) = 4 / tau * sigmoid(tau (r - 1))` (eq. 5-8), to be averaged per sequence.

    The gradient is `-w r A dlogp` with the gate `w = sech^2(tau / 2 (r - 1))`: 1 on-policy whatever tau, where SAPO is
    the policy gradient. The value is offset by 2 / tau: it does not compare with GRPO's, only its gradient matters.
    Beyond the paper: the log-ratio is clamped to +-20, without which an overflowing ratio gives NaN gradients.
    """
    ratios_T = torch.exp(log_ratios(logprobs_T, old_logprobs_T))
    tau_T = temperatures(advantages_T, tau_positive, tau_negative)
    return -torch.sigmoid(tau_T * (ratios_T - 1)) * (4 / tau_T) * advantages_T.float()


def gate(
    *,
    logprobs_T: Tensor,
    old_logprobs_T: Tensor,
    advantages_T: Tensor,
    tau_positive: float = TAU_POSITIVE,
    tau_negative: float = TAU_NEGATIVE,
) -> Tensor:
    """[T] gate `w = 4 p (1 - p)`, `p = sigmoid(tau (r - 1))`, in (0, 1]: the share of its update that a token keeps."""
    ratios_T = torch.exp(log_ratios(logprobs_T, old_logprobs_T))
    p_T = torch.sigmoid(temperatures(advantages_T, tau_positive, tau_negative) * (ratios_T - 1))
    return 4 * p_T * (1 - p_T)
