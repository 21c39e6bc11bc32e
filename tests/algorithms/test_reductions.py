"""Reductions: hand-computed weights, and the same loss and gradient however a step is cut into micro-batches."""

from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from posttrain.algorithms import Reduction, denominator_of, sequence_mean, sequence_sum, token_weights

LENGTHS = torch.tensor([3, 1, 0, 2])
INDEX = torch.tensor([0, 0, 0, 1, 3, 3])


@pytest.mark.parametrize(
    ("reduction", "denominator", "weights"),
    [
        (Reduction.TOKEN_MEAN, 6.0, [1 / 6] * 6),
        (Reduction.SEQUENCE_MEAN, 3.0, [1 / 9, 1 / 9, 1 / 9, 1 / 3, 1 / 6, 1 / 6]),
        (Reduction.CONSTANT, 30.0, [1 / 30] * 6),
    ],
)
def test_each_reduction_gives_a_token_its_share(reduction, denominator, weights):
    assert denominator_of(LENGTHS, reduction, constant_length=10) == denominator
    assert token_weights(LENGTHS, INDEX, reduction, denominator=denominator).tolist() == pytest.approx(weights)


@given(
    lengths=st.lists(st.integers(0, 6), min_size=1, max_size=12).filter(any),
    cuts=st.lists(st.integers(0, 12), max_size=8),
    reduction=st.sampled_from(Reduction),
    seed=st.integers(0, 1000),
)
def test_accumulated_micro_batches_equal_the_whole_step(lengths, cuts, reduction, seed):
    """1 x 8 equals 8 x 1, and every other way to cut the sequences into micro-batches."""
    values = torch.randn(sum(lengths), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    lengths_S = torch.tensor(lengths)
    denominator = denominator_of(lengths_S, reduction, constant_length=7)

    def step(bounds):
        leaf_T = values.clone().requires_grad_()
        total, summed = 0.0, 0.0
        for first, last in pairwise(bounds):
            part_S = lengths_S[first:last]
            index_T = torch.repeat_interleave(torch.arange(len(part_S)), part_S)
            start = int(lengths_S[:first].sum())
            loss_T = leaf_T[start : start + len(index_T)] ** 2
            loss = (token_weights(part_S, index_T, reduction, denominator=denominator) * loss_T).sum()
            loss.backward()
            total += float(loss.detach())
            summed += denominator_of(part_S, reduction, constant_length=7)
        return total, summed, leaf_T.grad

    bounds = sorted({0, len(lengths), *(min(cut, len(lengths)) for cut in cuts)})
    whole, parts = step([0, len(lengths)]), step(bounds)
    assert parts[0] == pytest.approx(whole[0], rel=1e-6)
    assert parts[1] == whole[1] == denominator
    assert torch.allclose(parts[2], whole[2], rtol=1e-6)


@pytest.mark.parametrize("reduction", Reduction)
def test_a_step_without_a_trained_token_is_refused(reduction):
    empty = torch.tensor([0, 0])
    assert denominator_of(empty, reduction) == 0
    with pytest.raises(ValueError, match="no trained token"):
        token_weights(empty, torch.tensor([], dtype=torch.long), reduction, denominator=0.0)


def test_sums_and_means_over_sequences_and_their_gradients():
    values_T = torch.tensor([1.0, 2.0, 6.0, 4.0, -1.0, 3.0], requires_grad=True)
    assert sequence_sum(values_T, INDEX, 4).tolist() == [9.0, 4.0, 0.0, 2.0]
    means_S = sequence_mean(values_T, INDEX, 4)
    assert means_S.tolist() == [3.0, 4.0, 0.0, 1.0]
    means_S[0].backward()
    assert values_T.grad.tolist() == pytest.approx([1 / 3, 1 / 3, 1 / 3, 0, 0, 0])
