"""Group advantages: how much better a completion was than the others of its prompt."""

from enum import StrEnum

import torch
from torch import Tensor


class AdvantageKind(StrEnum):
    GRPO = "grpo"
    """(R - mean) / (std + eps), unbiased std (DeepSeekMath eq. 3; SAPO eq. 2)."""
    DR_GRPO = "dr_grpo"
    """R - mean, free of difficulty bias (Dr. GRPO, 2503.20783)."""
    LEAVE_ONE_OUT = "leave_one_out"
    """R - mean of the others = G / (G - 1) * (R - mean) (RLOO, 2402.14740)."""


def group_advantages(rewards_G: Tensor, kind: AdvantageKind, *, epsilon: float = 1e-4) -> Tensor:
    """[G] float32 advantages of one group; NaN rewards mark unscored members.

    Unscored members leave the group's statistics and get advantage 0. A group with fewer than two scores, or with
    equal ones, has no signal: all its advantages are exactly 0.
    """
    rewards_G = rewards_G.to(torch.float32)
    scored_G = ~rewards_G.isnan()
    kept = rewards_G[scored_G]
    advantages_G = torch.zeros_like(rewards_G)
    if kept.numel() < 2 or bool((kept == kept[0]).all()):
        return advantages_G
    centred = kept - kept.mean()
    match kind:
        case AdvantageKind.GRPO:
            centred = centred / (kept.std() + epsilon)
        case AdvantageKind.LEAVE_ONE_OUT:
            centred = centred * (kept.numel() / (kept.numel() - 1))
        case AdvantageKind.DR_GRPO:
            pass
    advantages_G[scored_G] = centred
    return advantages_G


def decoupled_advantages(rewards_GK: Tensor, weights_K: Tensor, *, epsilon: float = 1e-4) -> Tensor:
    """[G] float32: each of K rewards normalised within the group, weighted and summed (GDPO, 2601.05242).

    Completions with different rewards that happen to have equal sums keep different advantages. A member without one of
    its K rewards (NaN) is unscored: it leaves the statistics of all K, and gets 0. A reward that is equal for the whole
    group adds exactly 0. What is left of GDPO is to divide by `batch_deviation`, over all groups of a batch.
    """
    if rewards_GK.shape[1:] != weights_K.shape:
        raise ValueError(f"{rewards_GK.shape[1]} rewards have {tuple(weights_K.shape)} weights; give one for each")
    unscored_G = rewards_GK.isnan().any(dim=1)
    columns = rewards_GK.to(torch.float32).masked_fill(unscored_G[:, None], float("nan")).unbind(dim=1)
    normalised_GK = torch.stack([group_advantages(c, AdvantageKind.GRPO, epsilon=epsilon) for c in columns], dim=1)
    return normalised_GK @ weights_K.to(torch.float32)


def batch_deviation(sum_of_squares: float, count: float) -> float:
    """Unbiased standard deviation of a batch's `decoupled_advantages`; 0 for fewer than two.

    Their mean is 0, since it is so in every group; so the sum of squares and the count of the scored members, which add
    up over groups and ranks, are all that is needed.
    """
    return (sum_of_squares / (count - 1)) ** 0.5 if count > 1 else 0.0


def has_signal(advantages_G: Tensor) -> bool:
    """False for a group that cannot move the policy: every advantage is 0."""
    return bool((advantages_G != 0).any())
