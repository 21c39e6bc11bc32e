"""What other libraries do not log: how the gate acts, how far the policy moved, how far the engine differs."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from .ratios import log_ratios
from .reductions import sequence_mean


@dataclass(frozen=True, slots=True, kw_only=True)
class Average:
    """A mean that can be merged over micro-batches and ranks: sum and count, both plain floats."""

    total: float
    count: float

    def merge(self, other: "Average") -> "Average":
        return Average(total=self.total + other.total, count=self.count + other.count)

    @property
    def value(self) -> float:
        return self.total / self.count if self.count else float("nan")


def average(values: Tensor) -> Average:
    return Average(total=float(values.double().sum()), count=float(values.numel()))


def gate_metrics(gate_T: Tensor, advantages_T: Tensor) -> Mapping[str, Average]:
    """Mean gate and fractions below 0.9 and 0.5, by the sign of the advantage."""
    metrics: dict[str, Average] = {}
    for sign, chosen_T in (("positive", advantages_T > 0), ("negative", advantages_T < 0)):
        kept = gate_T[chosen_T]
        metrics[f"gate/{sign}_mean"] = average(kept)
        metrics[f"gate/{sign}_below_0.9_frac"] = average((kept < 0.9).float())
        metrics[f"gate/{sign}_below_0.5_frac"] = average((kept < 0.5).float())
    return metrics


def gate_histogram(gate_T: Tensor, *, bins: int = 20) -> Tensor:
    """[bins] counts of gate weights over equal bins of [0, 1]."""
    return torch.histc(gate_T.float().cpu(), bins=bins, min=0.0, max=1.0)


def log_ratio_metrics(
    logprobs_T: Tensor, old_logprobs_T: Tensor, sequence_index_T: Tensor, num_sequences: int
) -> Mapping[str, Average]:
    """Mean |log r| over tokens, and Var_t(log r) within each sequence (SAPO expects < 0.02 for its link to GSPO)."""
    delta_T = log_ratios(logprobs_T, old_logprobs_T).double()
    mean_S = sequence_mean(delta_T, sequence_index_T, num_sequences)
    variance_S = sequence_mean((delta_T - mean_S[sequence_index_T]) ** 2, sequence_index_T, num_sequences)
    return {"log_ratio/mean_abs": average(delta_T.abs()), "log_ratio/var": average(variance_S)}


def rollout_gap_metrics(logprobs_T: Tensor, rollout_logprobs_T: Tensor) -> Mapping[str, Average]:
    """|trainer - engine| log-probabilities at equal weights: 1e-5 in float32, 1e-2 in bfloat16; more is a fault."""
    gap_T = (logprobs_T.double() - rollout_logprobs_T.double()).abs()
    return {"rollout_gap/mean": average(gap_T), "rollout_gap/above_0.1_frac": average((gap_T > 0.1).float())}
