"""Losses as pure functions of tensors: SFT, distillation, SAPO with GRPO and GSPO beside it, advantages, reductions."""

from .advantages import AdvantageKind, batch_deviation, decoupled_advantages, group_advantages, has_signal
from .diagnostics import Average, average, gate_histogram, gate_metrics, log_ratio_metrics, rollout_gap_metrics
from .distillation import distillation_advantages, distillation_metrics
from .divergences import Divergence, divergence, forward_kl, jensen_shannon, reverse_kl
from .grpo import clipped, grpo_token_losses
from .gspo import gspo_token_losses, sequence_ratios
from .ratios import k3_divergence, log_ratios, truncated_importance_weights
from .reductions import Reduction, denominator_of, sequence_mean, sequence_sum, token_weights
from .sapo import gate, sapo_token_losses
from .sft import sft_token_losses

__all__ = [
    "AdvantageKind",
    "Average",
    "Divergence",
    "Reduction",
    "average",
    "batch_deviation",
    "clipped",
    "decoupled_advantages",
    "denominator_of",
    "distillation_advantages",
    "distillation_metrics",
    "divergence",
    "forward_kl",
    "gate",
    "gate_histogram",
    "gate_metrics",
    "group_advantages",
    "grpo_token_losses",
    "gspo_token_losses",
    "has_signal",
    "jensen_shannon",
    "k3_divergence",
    "log_ratio_metrics",
    "log_ratios",
    "reverse_kl",
    "rollout_gap_metrics",
    "sapo_token_losses",
    "sequence_mean",
    "sequence_ratios",
    "sequence_sum",
    "sft_token_losses",
    "token_weights",
    "truncated_importance_weights",
]
