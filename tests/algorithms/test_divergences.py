"""Divergences and their derivatives: laws, numbers made by hand, autograd in float64; the sampled-token estimator."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from posttrain.algorithms import (
    distillation_advantages,
    distillation_metrics,
    divergence,
    forward_kl,
    jensen_shannon,
    reverse_kl,
)
from posttrain.algorithms.divergences import LOWEST_LOGPROB

BETAS = [0.0, 0.1, 0.5, 0.9, 1.0]


def draw(rows=6, columns=40, scale=2.0, seed=0, dtype=torch.float32):
    """Student and teacher log-probabilities; at scale 30 both are all but sure of one outcome, and differ."""
    generator = torch.Generator().manual_seed(seed)
    both = scale * torch.randn(2, rows, columns, generator=generator, dtype=torch.float64)
    student, teacher = both.log_softmax(-1).to(dtype)
    return student, teacher


def plain(student, teacher, beta):
    """The definition, in the teacher's own terms: for autograd."""
    if beta == 0:
        return (teacher.exp() * (teacher - student)).sum(-1)
    if beta == 1:
        return (student.exp() * (student - teacher)).sum(-1)
    m = torch.logaddexp(teacher + math.log(beta), student + math.log(1 - beta))
    return (beta * teacher.exp() * (teacher - m) + (1 - beta) * student.exp() * (student - m)).sum(-1)


@pytest.mark.parametrize("scale", [0.1, 2.0, 30.0])
@pytest.mark.parametrize("beta", BETAS)
def test_values_and_derivatives_are_those_of_autograd_in_float64(beta, scale):
    student, teacher = draw(scale=scale)
    logits = student.double().requires_grad_()
    wanted = plain(logits.log_softmax(-1), teacher.double().log_softmax(-1), beta)
    (slopes,) = torch.autograd.grad(wanted.sum(), logits)
    values, gradients = divergence(beta)(student, teacher)
    # Log-probabilities are off by 1e-7 of their size, up to 100 nats at scale 30, and a derivative by p times that.
    size = float(wanted.detach().max())
    assert torch.allclose(values.double(), wanted, rtol=1e-6, atol=1e-6)
    assert torch.allclose(gradients.double(), slopes, rtol=1e-5, atol=2e-7 * (1 + size))
    assert float(gradients.sum(-1).abs().max()) < 1e-6 * (1 + size)


@pytest.mark.parametrize("beta", BETAS)
def test_it_is_zero_with_zero_derivatives_between_equals(beta):
    student, _ = draw()
    values, gradients = divergence(beta)(student, student.clone())
    assert float(values.abs().max()) < 1e-7
    assert float(gradients.abs().max()) < 1e-7


@settings(deadline=None)
@given(
    beta=st.sampled_from(BETAS),
    seed=st.integers(0, 1000),
    scale=st.floats(0, 50),
    nearness=st.sampled_from([1.0, 1e-3, 1e-5, 1e-7]),
)
def test_it_is_never_negative(beta, seed, scale, nearness):
    student, other = draw(rows=3, columns=7, scale=scale, seed=seed)
    teacher = torch.lerp(student, other, nearness).log_softmax(-1)
    values, _ = divergence(beta)(student, teacher)
    assert bool((values >= 0).all())


def test_a_quarter_against_a_half_as_worked_out_by_hand():
    student, teacher = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.75]]).log()
    values, gradients = forward_kl(student, teacher)
    assert float(values) == pytest.approx(0.25 * math.log(1 / 2) + 0.75 * math.log(3 / 2), rel=1e-6)
    assert gradients[0].tolist() == pytest.approx([0.25, -0.25], rel=1e-6)
    values, gradients = reverse_kl(student, teacher)
    assert float(values) == pytest.approx(0.5 * math.log(4 / 3), rel=1e-6)
    assert gradients[0].tolist() == pytest.approx([0.25 * math.log(3), -0.25 * math.log(3)], rel=1e-6)
    values, gradients = jensen_shannon(student, teacher, beta=0.5)  # m = (3/8, 5/8)
    from_teacher = 0.25 * math.log(2 / 3) + 0.75 * math.log(6 / 5)
    from_student = 0.5 * math.log(4 / 3) + 0.5 * math.log(4 / 5)
    assert float(values) == pytest.approx(0.5 * from_teacher + 0.5 * from_student, rel=1e-5)
    assert gradients[0].tolist() == pytest.approx([math.log(5 / 3) / 8, -math.log(5 / 3) / 8], rel=1e-5)


def test_the_two_kls_are_each_other_swapped():
    student, teacher = draw()
    assert torch.allclose(forward_kl(student, teacher)[0], reverse_kl(teacher, student)[0], rtol=1e-6)


@pytest.mark.parametrize("beta", [0.5, 0.2])
def test_swapping_sides_and_beta_leaves_jensen_shannon(beta):
    student, teacher = draw()
    here, there = jensen_shannon(student, teacher, beta=beta)[0], jensen_shannon(teacher, student, beta=1 - beta)[0]
    assert torch.allclose(here, there, rtol=1e-5)


def test_jensen_shannon_tends_to_the_kls_after_division_and_to_nothing_before():
    student, teacher = draw(dtype=torch.float64)
    for exact, beta, part in ((forward_kl, 1e-6, 1e-6), (reverse_kl, 1 - 1e-6, 1e-6)):
        (values, gradients), (wanted, slopes) = jensen_shannon(student, teacher, beta=beta), exact(student, teacher)
        assert torch.allclose(values / part, wanted, rtol=1e-3)
        assert torch.allclose(gradients / part, slopes, atol=1e-3 * float(slopes.abs().max()))
        assert float(values.max()) < 1e-4


def test_jensen_shannon_of_strangers_is_the_entropy_of_the_coin_between_them():
    student = torch.tensor([[0.0, -200.0]])
    for teacher in (torch.tensor([[-200.0, 0.0]]), torch.tensor([[-torch.inf, 0.0]])):
        values, gradients = jensen_shannon(student, teacher, beta=0.3)
        assert float(values) == pytest.approx(-0.3 * math.log(0.3) - 0.7 * math.log(0.7), rel=1e-6)
        assert gradients.isfinite().all()


def test_what_the_teacher_rules_out_adds_nothing_to_forward_kl_and_a_finite_price_to_reverse_kl():
    student = torch.tensor([[0.25, 0.25, 0.5]]).log()
    teacher = torch.tensor([[0.5, 0.5, 0.0]]).log()
    values, gradients = forward_kl(student, teacher)
    assert float(values) == pytest.approx(math.log(2), rel=1e-6)
    assert gradients[0].tolist() == pytest.approx([-0.25, -0.25, 0.5])
    values, gradients = reverse_kl(student, teacher)
    assert float(values) == pytest.approx(0.5 * (math.log(0.5) - LOWEST_LOGPROB) + 0.5 * math.log(0.5), rel=1e-6)
    assert gradients.isfinite().all() and float(gradients[0, 2]) > 0


@pytest.mark.parametrize("beta", BETAS)
def test_not_a_number_is_not_hidden(beta):
    student, teacher = draw()
    teacher[2] = torch.nan
    values, _ = divergence(beta)(student, teacher)
    assert values.isnan().tolist() == [False, False, True, False, False, False]


@pytest.mark.parametrize("beta", BETAS)
def test_a_workspace_changes_nothing_and_the_arguments_stay(beta):
    student, teacher = draw()
    kept = student.clone(), teacher.clone()
    values, gradients = divergence(beta)(student, teacher)
    workspace = torch.full((3, *student.shape), torch.nan)
    others, in_place = divergence(beta)(student, teacher, workspace)
    assert torch.equal(values, others) and torch.equal(gradients, in_place)
    assert torch.equal(student, kept[0]) and torch.equal(teacher, kept[1])
    assert workspace.data_ptr() <= in_place.data_ptr() < workspace.data_ptr() + 4 * workspace.numel()


@pytest.mark.parametrize("beta", [-0.1, 1.5, math.nan])
def test_a_beta_outside_its_range_is_refused(beta):
    with pytest.raises(ValueError, match="outside \\[0, 1\\]"):
        divergence(beta)


def test_sampled_token_advantages_are_the_coefficient_times_the_log_ratio():
    student = torch.tensor([-1.0, -2.0, -0.5], requires_grad=True)
    advantages = distillation_advantages(
        teacher_logprobs_T=torch.tensor([-0.5, -4.0, -0.5]), student_logprobs_T=student, coefficient=0.5
    )
    assert advantages.tolist() == [0.25, -1.0, 0.0]
    assert not advantages.requires_grad and advantages.dtype == torch.float32


def test_the_policy_gradient_with_these_advantages_is_minus_that_of_reverse_kl_in_expectation():
    """Over all tokens that the student may sample, each with its probability: sum_y p(y) A(y) dlog p(y)."""
    student, teacher = draw(rows=1, columns=9, dtype=torch.float64)
    advantages = distillation_advantages(teacher_logprobs_T=teacher[0], student_logprobs_T=student[0]).double()
    p = student[0].exp()
    expected = (p * advantages)[:, None] * (torch.eye(9, dtype=torch.float64) - p)
    _, gradients = reverse_kl(student, teacher)
    assert torch.allclose(-expected.sum(0), gradients[0], atol=1e-6)  # the advantages are float32


def test_both_estimates_of_reverse_kl_are_right_on_average():
    student, teacher = draw(rows=1, columns=9, scale=1.0)
    tokens = torch.multinomial(student[0].exp(), 40_000, replacement=True, generator=torch.Generator().manual_seed(0))
    metrics = distillation_metrics(teacher_logprobs_T=teacher[0, tokens], student_logprobs_T=student[0, tokens])
    wanted = float(reverse_kl(student, teacher)[0])
    assert {name: metric.value for name, metric in metrics.items()} == {
        "teacher/reverse_kl_k1": pytest.approx(wanted, rel=0.05),
        "teacher/reverse_kl_k3": pytest.approx(wanted, rel=0.05),
    }
