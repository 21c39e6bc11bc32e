"""Log-ratios, truncated importance weights and the k3 estimate of a divergence."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from posttrain.algorithms import k3_divergence, log_ratios, sft_token_losses, truncated_importance_weights

logprobs = st.floats(-30, 0, width=32)


def test_log_ratios_are_float32_and_their_gradient_stops_at_the_clamp():
    logprobs_T = torch.tensor([-1.0, -50.0, 25.0], requires_grad=True)
    ratios_T = log_ratios(logprobs_T, torch.tensor([-1.5, -1.0, 0.0]))
    ratios_T.sum().backward()
    assert ratios_T.tolist() == [0.5, -20.0, 20.0]
    assert logprobs_T.grad.tolist() == [1.0, 0.0, 0.0]


def test_importance_weights_are_capped_constants():
    old_T = torch.tensor([-1.0, -1.0, -1.0, -1.0], requires_grad=True)
    weights_T = truncated_importance_weights(old_T, torch.tensor([-1.0, -3.0, -0.5, -90.0]), cap=2.0)
    assert weights_T.tolist() == pytest.approx([1.0, 2.0, math.exp(-0.5), 2.0])
    assert not weights_T.requires_grad


@given(logprobs, logprobs)
def test_k3_is_never_negative_and_zero_only_where_the_policies_agree(policy, reference):
    # -1e-6: r - 1 - log r cancels in float32 where r is near 1
    value = float(k3_divergence(torch.tensor([policy]), torch.tensor([reference])))
    assert value >= -1e-6
    if abs(policy - reference) > 0.01:
        assert value > 0
    if policy == reference:
        assert value == 0


def test_k3_is_unbiased_for_the_reverse_divergence():
    """Its mean over all tokens, weighted by the policy, is sum p log(p / q)."""
    p = torch.tensor([0.6, 0.3, 0.1], dtype=torch.float64)
    q = torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64)
    estimate = (p * k3_divergence(p.log(), q.log())).sum()
    assert float(estimate) == pytest.approx(float((p * (p / q).log()).sum()), rel=1e-6)


def test_the_sft_loss_is_the_surprise_of_the_token():
    assert sft_token_losses(logprobs_T=torch.tensor([0.5]).log()).tolist() == pytest.approx([math.log(2)])
