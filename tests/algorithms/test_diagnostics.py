"""What is logged about gates, log-ratios and the engine, and how it merges over micro-batches and ranks."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from posttrain.algorithms import (
    Average,
    average,
    gate_histogram,
    gate_metrics,
    log_ratio_metrics,
    rollout_gap_metrics,
)


@given(st.lists(st.lists(st.floats(-100, 100, width=32), max_size=6), min_size=1, max_size=5))
def test_merged_averages_equal_the_average_of_everything(parts):
    merged = Average(total=0.0, count=0.0)
    for part in parts:
        merged = merged.merge(average(torch.tensor(part)))
    everything = [value for part in parts for value in part]
    if everything:
        assert merged.value == pytest.approx(sum(everything) / len(everything), abs=1e-5)
    else:
        assert math.isnan(merged.value)


def test_gate_metrics_tell_the_signs_apart_and_leave_zero_advantages_out():
    gate_T = torch.tensor([1.0, 0.8, 0.4, 0.95, 0.1])
    metrics = gate_metrics(gate_T, torch.tensor([1.0, 2.0, 0.5, -1.0, 0.0]))
    values = {name: metric.value for name, metric in metrics.items()}
    assert values["gate/positive_mean"] == pytest.approx(2.2 / 3)
    assert values["gate/positive_below_0.9_frac"] == pytest.approx(2 / 3)
    assert values["gate/positive_below_0.5_frac"] == pytest.approx(1 / 3)
    assert values["gate/negative_mean"] == pytest.approx(0.95)
    assert values["gate/negative_below_0.9_frac"] == 0
    assert metrics["gate/negative_mean"].count == 1


def test_the_gate_histogram_counts_every_token_once():
    counts = gate_histogram(torch.tensor([0.0, 0.04, 0.051, 0.5, 1.0]), bins=20)
    assert counts.sum() == 5
    assert counts[0] == 2 and counts[1] == 1 and counts[10] == 1 and counts[19] == 1


def test_the_variance_of_log_ratios_is_within_sequences_not_between_them():
    old_T = torch.zeros(5)
    index_T = torch.tensor([0, 0, 1, 1, 1])
    metrics = log_ratio_metrics(torch.tensor([0.1, 0.1, -0.3, -0.1, -0.2]), old_T, index_T, 2)
    assert metrics["log_ratio/mean_abs"].value == pytest.approx(0.8 / 5)
    assert metrics["log_ratio/var"].value == pytest.approx((0 + 0.02 / 3) / 2, abs=1e-8)


def test_the_rollout_gap_is_absolute_and_counts_large_gaps():
    metrics = rollout_gap_metrics(torch.tensor([-1.0, -2.0, -3.0]), torch.tensor([-1.05, -1.95, -3.5]))
    assert metrics["rollout_gap/mean"].value == pytest.approx(0.6 / 3, abs=1e-6)
    assert metrics["rollout_gap/above_0.1_frac"].value == pytest.approx(1 / 3)
