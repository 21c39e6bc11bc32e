"""How per-token losses become one number: weights per trained token, over the denominator of the whole step."""

from enum import StrEnum

import torch
from torch import Tensor


class Reduction(StrEnum):
    """What every trained token, or every sequence, counts."""

    TOKEN_MEAN = "token_mean"
    """Each token counts 1 / trained tokens of the step: SFT, DAPO, distillation."""
    SEQUENCE_MEAN = "sequence_mean"
    """Each sequence counts 1 / sequences of the step, shared evenly by its tokens: GRPO, SAPO (eq. 5)."""
    CONSTANT = "constant"
    """Each token counts 1 / (sequences x a constant length): Dr. GRPO, free of length bias."""


def denominator_of(lengths_S: Tensor, reduction: Reduction, *, constant_length: int = 1) -> float:
    """What this set of sequences adds to the step's denominator; sum it over micro-batches and ranks.

    lengths_S: trained tokens of each sequence, [S] integer. Sequences with no trained token count nothing.
    """
    match reduction:
        case Reduction.TOKEN_MEAN:
            return float(lengths_S.sum())
        case Reduction.SEQUENCE_MEAN:
            return float((lengths_S > 0).sum())
        case Reduction.CONSTANT:
            return float((lengths_S > 0).sum()) * constant_length


def token_weights(lengths_S: Tensor, sequence_index_T: Tensor, reduction: Reduction, *, denominator: float) -> Tensor:
    """[T] float32 weights such that `sum_t weight_t * loss_t` over micro-batches and ranks is the reduced loss.

    lengths_S: trained tokens of each sequence [S]; sequence_index_T: the sequence of every trained token [T];
    denominator: the whole optimiser step's, over all ranks, from `denominator_of`. Raises ValueError where it is not
    positive: a step with no trained token must be seen by the caller.
    """
    if denominator <= 0:
        raise ValueError(f"the step's denominator is {denominator}: it has no trained token")
    if reduction is Reduction.SEQUENCE_MEAN:
        return 1.0 / (lengths_S.to(torch.float32)[sequence_index_T] * denominator)
    return torch.full(sequence_index_T.shape, 1.0 / denominator, dtype=torch.float32, device=sequence_index_T.device)


def sequence_sum(values_T: Tensor, sequence_index_T: Tensor, num_sequences: int) -> Tensor:
    """[S] sums of a per-token quantity over the tokens of each sequence; differentiable."""
    zeros_S = torch.zeros(num_sequences, dtype=values_T.dtype, device=values_T.device)
    return zeros_S.index_add(0, sequence_index_T, values_T)


def sequence_mean(values_T: Tensor, sequence_index_T: Tensor, num_sequences: int) -> Tensor:
    """[S] means over the tokens of each sequence, 0 where a sequence has none; differentiable."""
    counts_S = sequence_sum(torch.ones_like(values_T), sequence_index_T, num_sequences)
    return sequence_sum(values_T, sequence_index_T, num_sequences) / counts_S.clamp(min=1)
