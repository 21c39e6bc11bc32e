"""Divergences inside the fused head: against float64 autograd, TRL's tiles, and the same thing done in other ways."""

import math
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from posttrain.algorithms import divergence
from posttrain.model import DenseReference, Matching, TopReference, token_loss_head, top_logprobs
from posttrain.model import head as head_module
from torch.utils._python_dispatch import TorchDispatchMode

T, V, H, TEACHER_H = 37, 301, 24, 16
BETAS = [0.0, 0.5, 1.0]


@pytest.fixture(params=[None, 5, 1], ids=["one chunk", "chunks of 5", "chunks of 1"])
def chunks(request, monkeypatch):
    """Chunks that do not divide the number of tokens, and two rows at a time between the products."""
    if request.param is not None:
        small_chunks(monkeypatch, request.param)


def small_chunks(monkeypatch, tokens):
    monkeypatch.setitem(head_module._CHUNK_BYTES, "cpu", 4 * V * tokens)
    monkeypatch.setattr(head_module, "_CHUNK_TOKENS", tokens)
    monkeypatch.setitem(head_module._COMPARED_BYTES, "cpu", 4 * V * 2)


class Problem:
    """A student and a teacher of other widths, which may have padded rows beyond the V tokens that both know."""

    def __init__(self, *, dtype=torch.float32, scale=0.5, student_rows=V, teacher_rows=V):
        draw = torch.Generator().manual_seed(0)
        self.hidden = torch.randn(T, H, generator=draw).to(dtype).requires_grad_()
        self.weight = (scale * torch.randn(student_rows, H, generator=draw)).to(dtype).requires_grad_()
        self.teacher_hidden = torch.randn(T, TEACHER_H, generator=draw).to(dtype)
        self.teacher_weight = (scale * torch.randn(teacher_rows, TEACHER_H, generator=draw)).to(dtype)
        self.targets = torch.randint(0, V, (T,), generator=draw)
        self.weights = torch.rand(T, generator=draw)
        self.coefficients = torch.randn(T, generator=draw)

    def dense(self, beta, **options):
        reference = DenseReference(hidden_TH=self.teacher_hidden, weight_VH=self.teacher_weight)
        return Matching(divergence=divergence(beta), reference=reference, weights_T=self.weights, **options)

    def top(self, beta, k):
        found = top_logprobs(self.teacher_hidden, self.teacher_weight, self.targets, k)
        reference = TopReference(token_ids_TK=found[0], logprobs_TK=found[1], tail_T=found[2])
        return Matching(divergence=divergence(beta), reference=reference, weights_T=self.weights)

    def curved(self, logprobs_T, span):
        """A token-separable loss whose slope depends on the log-probability."""
        return self.coefficients[span].to(logprobs_T) * (logprobs_T + 0.1 * logprobs_T**2)

    def run(self, matching, token_loss=None, **options):
        """(output, gradients by the hidden states and the weight); None where there is none."""
        self.hidden.grad = self.weight.grad = None
        output = token_loss_head(
            self.hidden, self.weight, self.targets, token_loss or no_loss, matching=matching, **options
        )
        output.loss.backward()
        return output, self.hidden.grad, self.weight.grad


def no_loss(logprobs_T, span):
    return logprobs_T * 0


def plain(student, teacher, beta):
    """[T] divergences of log-probabilities, by their definition."""
    if beta == 0:
        return (teacher.exp() * (teacher - student)).sum(-1)
    if beta == 1:
        return (student.exp() * (student - teacher)).sum(-1)
    m = torch.logaddexp(teacher + math.log(beta), student + math.log(1 - beta))
    return (beta * teacher.exp() * (teacher - m) + (1 - beta) * student.exp() * (student - m)).sum(-1)


def in_buckets(log_TV, ids_TK):
    """Log-probabilities of the K tokens and of all others together."""
    others_TV = log_TV.masked_fill(torch.zeros_like(log_TV, dtype=torch.bool).scatter(1, ids_TK, True), -torch.inf)
    return torch.cat([log_TV.gather(1, ids_TK), others_TV.logsumexp(-1, keepdim=True)], dim=1)


def reference(problem, beta, *, token_loss=no_loss, temperature=1.0, top_k=None, support="teacher"):
    """(loss, divergences, gradients) in float64 by autograd over whole distributions; top_k: a number, or tokens."""
    hidden, weight = (x.detach().double().requires_grad_() for x in (problem.hidden, problem.weight))
    logits_TV = hidden @ weight.t() / temperature
    teacher_TV = problem.teacher_hidden.double() @ problem.teacher_weight.double().t() / temperature
    both = min(logits_TV.shape[1], teacher_TV.shape[1])
    student, teacher = (z[:, :both].log_softmax(-1) for z in (logits_TV, teacher_TV))
    if isinstance(top_k, torch.Tensor):
        student, teacher = in_buckets(student, top_k), in_buckets(teacher, top_k)
    elif top_k is not None:
        ids = (teacher if support == "teacher" else student).topk(top_k).indices
        student, teacher = in_buckets(student, ids), in_buckets(teacher, ids)
    divergences = plain(student, teacher, beta)
    logprobs = logits_TV.log_softmax(-1).gather(1, problem.targets[:, None])[:, 0]
    loss = (problem.weights.double() * divergences).sum() + token_loss(logprobs, slice(0, T)).sum()
    loss.backward()
    return loss.detach(), divergences.detach(), hidden.grad, weight.grad


def close(found, wanted, tolerance=6e-6):
    """Largest error relative to the largest entry. Log-probabilities of 20 nats are off by 1e-6, gradients are smaller
    than 1: TRL's tiles are off by up to 8e-6 here, ours by 5e-6."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("beta", [0.0, 0.3, 0.5, 1.0])
def test_divergences_and_gradients_equal_the_float64_reference(chunks, beta, temperature):
    problem = Problem()
    output, *gradients = problem.run(problem.dense(beta), temperature=temperature)
    loss, divergences, *wanted = reference(problem, beta, temperature=temperature)
    assert float(output.loss.detach()) == pytest.approx(float(loss), rel=1e-5)
    assert close(output.divergences_T, divergences)
    assert all(map(close, gradients, wanted))
    assert not output.divergences_T.requires_grad


@pytest.mark.parametrize("beta", BETAS)
def test_losses_and_gradients_equal_those_of_trl(beta):
    kernels = pytest.importorskip("trl.kernels.chunked_divergence")
    problem = Problem()
    output, *gradients = problem.run(problem.dense(beta))
    problem.hidden.grad = problem.weight.grad = None
    divergences, entropies = kernels.ChunkedDivergenceFunction.apply(
        problem.hidden, problem.weight, None, problem.teacher_hidden, problem.teacher_weight, None, beta
    )
    loss = (problem.weights * divergences).sum()
    loss.backward()
    assert float(output.loss.detach()) == pytest.approx(float(loss.detach()), rel=2e-5)
    assert close(output.divergences_T, divergences, 2e-5) and close(output.entropies_T, entropies, 2e-5)
    assert close(gradients[0], problem.hidden.grad, 2e-5) and close(gradients[1], problem.weight.grad, 2e-5)


@pytest.mark.parametrize("support", ["teacher", "student"])
@pytest.mark.parametrize("beta", BETAS)
def test_top_k_with_a_tail_equals_autograd_through_the_buckets(chunks, beta, support):
    problem = Problem()
    output, *gradients = problem.run(problem.dense(beta, top_k=7, support=support))
    _, divergences, *wanted = reference(problem, beta, top_k=7, support=support)
    assert close(output.divergences_T, divergences)
    assert all(map(close, gradients, wanted))


@pytest.mark.parametrize("beta", BETAS)
def test_a_teacher_known_by_its_top_k_equals_a_teacher_at_hand_cut_to_them(chunks, beta):
    problem = Problem()
    output, *gradients = problem.run(problem.top(beta, 7))
    dense, *wanted = problem.run(problem.dense(beta, top_k=7))
    assert close(output.divergences_T, dense.divergences_T)
    assert all(map(close, gradients, wanted))


@pytest.mark.parametrize("beta", BETAS)
def test_the_whole_vocabulary_as_top_k_is_the_whole_vocabulary(chunks, beta):
    problem = Problem()
    whole, *wanted = problem.run(problem.dense(beta))
    for matching in (
        problem.top(beta, V),
        problem.dense(beta, top_k=V),
        problem.dense(beta, top_k=V, support="student"),
    ):
        output, *gradients = problem.run(matching)
        assert close(output.divergences_T, whole.divergences_T)
        assert all(map(close, gradients, wanted))


@pytest.mark.parametrize("beta", BETAS)
def test_fewer_buckets_never_tell_more(beta):
    """The data-processing inequality: merging tokens into one bucket cannot raise a divergence."""
    problem = Problem()
    by_k = [problem.run(problem.dense(beta, top_k=k))[0].divergences_T for k in (1, 4, 16, 64, V)]
    assert all(bool((fewer <= more + 1e-6).all()) for fewer, more in pairwise(by_k))


def test_a_confident_students_tail_is_the_sum_of_the_others():
    """In float32, 1 minus the sum of the top k is 0 or less here: its log would be lost, and the gradient with it."""
    problem = Problem(scale=8.0)
    problem.teacher_hidden, problem.teacher_weight = problem.hidden.detach(), 0.2 * problem.weight.detach()
    log_TV = (problem.hidden @ problem.weight.t()).log_softmax(-1).detach()
    ids_TK = log_TV.topk(3).indices
    surest = int(in_buckets(log_TV, ids_TK)[:, -1].argmin())
    assert float(1 - log_TV.gather(1, ids_TK).exp().sum(-1)[surest]) <= 0
    problem.weights = torch.zeros(T)
    problem.weights[surest] = 1
    output, *gradients = problem.run(problem.top(0.0, 3))
    _, divergences, *wanted = reference(problem, 0.0, top_k=3)
    # Logits reach 180, where float32 is off by 1e-5 nats, and the shares of the tail by as much.
    assert float(divergences[surest]) > 0.01 and close(output.divergences_T, divergences, 2e-5)
    assert all(close(found, right, 1e-4) for found, right in zip(gradients, wanted, strict=True))


@pytest.mark.parametrize("beta", BETAS)
def test_a_tail_that_rounding_lost_costs_a_finite_price(beta):
    problem = Problem()
    whole = problem.top(beta, 7)
    logprobs = whole.reference.logprobs_TK.log_softmax(-1)  # all mass in the seven: the tail is gone
    cut = replace(whole.reference, logprobs_TK=logprobs, tail_T=torch.full((T,), -torch.inf))
    output, *gradients = problem.run(replace(whole, reference=cut))
    assert output.divergences_T.isfinite().all() and float(output.divergences_T.max()) < 17
    assert all(gradient.isfinite().all() for gradient in gradients)


@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("kind", ["dense", "top k of dense", "top"])
def test_a_mix_with_a_token_loss_is_the_sum_of_both_alone(chunks, kind, separable):
    problem = Problem()
    matchings = {
        "dense": problem.dense(0.5),
        "top k of dense": problem.dense(0.5, top_k=7),
        "top": problem.top(0.5, 7),
    }

    def token_loss(logprobs_T, span):
        """GSPO's form where it is not separable: each slope depends on the mean over all tokens."""
        if separable:
            return problem.curved(logprobs_T, span)
        return logprobs_T.mean().exp() * 100 + problem.curved(logprobs_T, span)

    both, *mixed = problem.run(matchings[kind], token_loss, separable=separable)
    alone, *first = problem.run(matchings[kind], separable=separable)
    other, *second = problem.run(None, token_loss, separable=separable)
    assert float(both.loss.detach()) == pytest.approx(float((alone.loss + other.loss).detach()), rel=1e-5)
    assert torch.equal(both.divergences_T, alone.divergences_T) and other.divergences_T is None
    assert torch.equal(both.logprobs_T, other.logprobs_T)
    assert all(close(m, a + b) for m, a, b in zip(mixed, first, second, strict=True))


def test_a_mix_equals_the_float64_reference_at_a_temperature():
    problem = Problem()
    output, *gradients = problem.run(problem.dense(1.0), problem.curved, temperature=0.7)
    loss, _, *wanted = reference(problem, 1.0, token_loss=problem.curved, temperature=0.7)
    assert float(output.loss.detach()) == pytest.approx(float(loss), rel=1e-5)
    assert all(map(close, gradients, wanted))


class Products(TorchDispatchMode):
    """Counts matrix products, and notes the largest tensor made by anything."""

    def __init__(self):
        super().__init__()
        self.count, self.largest = 0, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        self.count += func._schema.name in ("aten::mm", "aten::addmm", "aten::addmm_", "aten::bmm", "aten::matmul")
        if isinstance(result, torch.Tensor):
            self.largest = max(self.largest, result.numel())
        return result


@pytest.mark.parametrize(
    ("kind", "products"), [("none", 3), ("dense", 4), ("top k of dense", 4), ("top", 3)], ids=lambda value: str(value)
)
def test_a_matching_costs_one_more_product_or_none_and_no_logits_are_whole(monkeypatch, kind, products):
    problem = Problem()
    matching = {
        "none": None,
        "dense": problem.dense(0.5),
        "top k of dense": problem.dense(0.5, top_k=7),
        "top": problem.top(0.5, 7),
    }[kind]
    for token_loss in (no_loss, problem.curved):
        with Products() as counted:
            problem.run(matching, token_loss)
        assert counted.count == products
    problem.weight.requires_grad_(False)
    with Products() as counted:
        problem.run(matching)
    assert counted.count == products - 1
    with torch.no_grad(), Products() as counted:
        token_loss_head(problem.hidden, problem.weight, problem.targets, no_loss, matching=matching)
    assert counted.count == products - 2
    small_chunks(monkeypatch, 5)
    problem.weight.requires_grad_(True)
    with Products() as counted:
        problem.run(matching, problem.curved)
    assert counted.largest == V * H < T * V


@pytest.mark.parametrize("kind", ["dense", "top"])
def test_a_frozen_weight_gets_no_gradient_and_the_hidden_states_the_same(kind):
    problem = Problem()
    matching = problem.dense(0.5) if kind == "dense" else problem.top(0.5, 7)
    _, wanted, _ = problem.run(matching, problem.curved)
    problem.weight.requires_grad_(False)
    _, found, none = problem.run(matching, problem.curved)
    assert torch.equal(found, wanted) and none is None


@pytest.mark.parametrize("separable", [True, False])
def test_without_gradients_it_gives_the_same_numbers_and_no_graph(separable):
    problem = Problem()
    trained, *_ = problem.run(problem.dense(0.5), problem.curved, separable=separable)
    with torch.no_grad():
        inputs = (problem.hidden, problem.weight, problem.targets, problem.curved)
        output = token_loss_head(*inputs, separable=separable, matching=problem.dense(0.5))
    assert not output.loss.requires_grad
    assert float(output.loss) == pytest.approx(float(trained.loss.detach()), rel=1e-5)
    assert torch.equal(output.divergences_T, trained.divergences_T)


def test_weights_scale_each_tokens_gradient_and_zero_leaves_it_out():
    problem = Problem()
    problem.weights = torch.zeros(T)
    problem.weights[3], problem.weights[4] = 2.0, 1.0
    output, hidden_grad, _ = problem.run(problem.dense(1.0))
    assert hidden_grad.abs().sum(-1).nonzero()[:, 0].tolist() == [3, 4]
    assert float(output.loss.detach()) == pytest.approx(
        float(2 * output.divergences_T[3] + output.divergences_T[4]), rel=1e-6
    )
    problem.weights = torch.ones(T)
    _, whole, _ = problem.run(problem.dense(1.0))
    assert torch.allclose(hidden_grad[3], 2 * whole[3]) and torch.allclose(hidden_grad[4], whole[4])


def test_a_student_that_is_its_teacher_has_nothing_to_learn():
    problem = Problem()
    itself = DenseReference(hidden_TH=problem.hidden.detach(), weight_VH=problem.weight.detach())
    for beta in BETAS:
        output, *gradients = problem.run(replace(problem.dense(beta), reference=itself))
        assert float(output.divergences_T.max()) < 1e-6
        assert all(float(gradient.abs().max()) < 1e-5 for gradient in gradients)


@pytest.mark.parametrize("top_k", [None, 7])
@pytest.mark.parametrize(("student_rows", "teacher_rows"), [(V, V + 19), (V + 19, V)])
def test_padded_rows_that_one_side_alone_has_are_left_out(chunks, student_rows, teacher_rows, top_k):
    problem = Problem(student_rows=student_rows, teacher_rows=teacher_rows)
    _, divergences, *wanted = reference(problem, 0.5, token_loss=problem.curved, top_k=top_k)
    output, *gradients = problem.run(problem.dense(0.5, top_k=top_k), problem.curved)
    assert close(output.divergences_T, divergences)
    assert all(map(close, gradients, wanted))
    _, _, weight_grad = problem.run(problem.dense(0.5, top_k=top_k))
    assert float(weight_grad[V:].abs().sum()) == 0 and len(weight_grad) == student_rows


@pytest.mark.parametrize("kind", ["dense", "top"])
def test_bfloat16_is_within_its_own_precision(kind):
    problem = Problem(dtype=torch.bfloat16)
    matching = problem.dense(1.0) if kind == "dense" else problem.top(1.0, 7)
    output, *gradients = problem.run(matching)
    ids = None if kind == "dense" else matching.reference.token_ids_TK.long()  # rounding may have chosen others
    _, divergences, *wanted = reference(problem, 1.0, top_k=ids)
    assert output.divergences_T.dtype == torch.float32
    assert all(gradient.dtype == torch.bfloat16 for gradient in gradients)
    # 8 bits: 2^-8 relative in each logit of up to 10 on both sides, and in each entry of a gradient
    assert close(output.divergences_T, divergences, 2e-2)
    assert all(close(found, right, 3e-2) for found, right in zip(gradients, wanted, strict=True))


def test_a_float32_teacher_of_a_bfloat16_student_is_not_rounded():
    problem = Problem(dtype=torch.bfloat16)
    exact = Problem()
    problem.teacher_hidden, problem.teacher_weight = exact.teacher_hidden, exact.teacher_weight
    output, *_ = problem.run(problem.dense(1.0))
    assert close(output.divergences_T, reference(problem, 1.0)[1], 2e-2)


def test_half_precision_scores_from_a_cache_are_a_distribution_still():
    problem = Problem()
    matching = problem.top(0.0, 7)
    kept = matching.reference
    halved = replace(kept, logprobs_TK=kept.logprobs_TK.half(), tail_T=kept.tail_T.half())
    output, *gradients = problem.run(replace(matching, reference=halved))
    whole, *wanted = problem.run(matching)
    # 11 bits of log-probabilities of up to 10 nats
    assert torch.allclose(output.divergences_T, whole.divergences_T, atol=1e-2)
    assert all(close(found, right, 1e-2) for found, right in zip(gradients, wanted, strict=True))


@pytest.mark.parametrize("part", ["hidden", "weight"])
@pytest.mark.parametrize("top_k", [None, 7])
def test_a_dense_teacher_that_is_not_finite_is_refused(part, top_k):
    problem = Problem()
    (problem.teacher_hidden if part == "hidden" else problem.teacher_weight)[5, 2] = torch.nan
    num_bad = 1 if part == "hidden" else T
    with pytest.raises(ValueError, match=f"the teacher's distribution is not finite at {num_bad} of {T} tokens"):
        problem.run(problem.dense(1.0, top_k=top_k))


def test_a_student_that_is_not_finite_is_not_blamed_on_the_teacher():
    problem = Problem()
    problem.hidden = problem.hidden.detach().clone()
    problem.hidden[5, 2] = torch.nan
    output, *_ = problem.run(problem.dense(1.0))
    assert output.loss.isnan() and output.divergences_T.isnan().sum() == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda r: replace(r, logprobs_TK=r.logprobs_TK.index_fill(0, torch.tensor([4]), torch.nan)),
            "token 4",
        ),
        (lambda r: replace(r, tail_T=torch.full((T,), torch.nan)), "not a distribution"),
        (lambda r: replace(r, logprobs_TK=r.logprobs_TK.log_softmax(-1)), "not a distribution"),
        (lambda r: replace(r, tail_T=torch.full((T,), -torch.inf)), "not a distribution"),
        (lambda r: replace(r, token_ids_TK=r.token_ids_TK + V), "must share a tokenizer"),
        (lambda r: replace(r, tail_T=r.tail_T[:3]), "give \\[T, K\\], \\[T, K\\] and \\[T\\]"),
        (lambda r: replace(r, token_ids_TK=r.token_ids_TK[:3]), "3 reference tokens and 37 weights"),
    ],
    ids=["NaN", "NaN tail", "renormalised", "no tail", "other tokenizer", "ragged", "too few"],
)
def test_top_log_probabilities_that_are_no_distribution_are_refused(change, message):
    problem = Problem()
    matching = problem.top(1.0, 7)
    with pytest.raises(ValueError, match=message):
        problem.run(replace(matching, reference=change(matching.reference)))


def test_top_log_probabilities_at_another_temperature_are_refused():
    problem = Problem()
    with pytest.raises(ValueError, match="taken at temperature 1 and cannot be compared at 0.5"):
        problem.run(problem.top(1.0, 7), temperature=0.5)


def test_no_trained_token_gives_a_differentiable_zero():
    problem = Problem()
    for matching in (problem.dense(1.0), problem.top(1.0, 7)):
        kept = matching.reference
        if isinstance(kept, DenseReference):
            none = DenseReference(hidden_TH=kept.hidden_TH[:0], weight_VH=kept.weight_VH)
        else:
            none = TopReference(
                token_ids_TK=kept.token_ids_TK[:0], logprobs_TK=kept.logprobs_TK[:0], tail_T=kept.tail_T[:0]
            )
        output = token_loss_head(
            problem.hidden[:0],
            problem.weight,
            problem.targets[:0],
            no_loss,
            matching=replace(matching, reference=none, weights_T=matching.weights_T[:0]),
        )
        output.loss.backward()
        assert float(output.loss.detach()) == 0 and len(output.divergences_T) == 0
        assert problem.weight.grad.abs().max() == 0
