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


def has_signal(advantages_G: Tensor) -> bool:
    """False for a group that cannot move the policy: every advantage is 0."""
    return bool((advantages_G != 0).any())
