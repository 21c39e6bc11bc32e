"""A vocabulary's distribution seen as K tokens and one bucket for all others: proper, and exact in its tail."""

import torch
from torch import Tensor


def normalise(logits_RV: Tensor, scratch_RV: Tensor) -> Tensor:
    """The logits as log-probabilities, in their own place."""
    logits_RV.sub_(logits_RV.amax(-1, keepdim=True))
    return logits_RV.sub_(torch.exp(logits_RV, out=scratch_RV).sum(-1, keepdim=True).log_())


def bucket(logprobs_RV: Tensor, ids_RK: Tensor, *, others_RV: Tensor) -> tuple[Tensor, Tensor]:
    """([R, K + 1] log-probabilities of the K tokens and of all others, [R, 1] mass of `others_RV`).

    The tail is the sum of the others, not 1 minus the sum of the K, which a confident model leaves to rounding.
    others_RV, a buffer, becomes the others' probabilities up to a factor, 0 at the K; its mass is their sum.
    Where K is the whole vocabulary there is no tail: [R, K], and `others_RV` is 0.
    """
    chosen_RK = logprobs_RV.gather(1, ids_RK)
    if ids_RK.shape[1] == logprobs_RV.shape[1]:
        return chosen_RK, others_RV.zero_().new_ones(len(ids_RK), 1)
    others_RV.copy_(logprobs_RV).scatter_(1, ids_RK, -torch.inf)
    most_R1 = others_RV.amax(-1, keepdim=True)
    mass_R1 = others_RV.sub_(most_R1).exp_().sum(-1, keepdim=True)
    return torch.cat([chosen_RK, most_R1 + mass_R1.log()], dim=1), mass_R1


def spread(gradients_RB: Tensor, ids_RK: Tensor, *, others_RV: Tensor, mass_R1: Tensor) -> Tensor:
    """The gradient by all logits of one by K (+ 1) bucket log-probabilities, in the place of `bucket`'s `others_RV`.

    Among the others, token i takes p_i / p_tail of the tail's.
    """
    num_ids = ids_RK.shape[1]
    if gradients_RB.shape[1] > num_ids:
        others_RV.mul_(gradients_RB[:, num_ids:] / mass_R1)
    return others_RV.scatter_(1, ids_RK, gradients_RB[:, :num_ids])
