"""The head without logits: every number and gradient equals plain float64 autograd over whole logits."""

import pytest
import torch
from posttrain.algorithms import gspo_token_losses
from posttrain.model import head, token_loss_head

NUM_TOKENS, HIDDEN, VOCABULARY = 37, 16, 53
TEMPERATURE = 0.7
FLOAT32_ERROR = 1e-6
"""Of a whole tensor, relative to its norm: a few float32 roundings (6e-8 each) over sums of 16 to 53 products."""


def inputs(num_tokens=NUM_TOKENS, dtype=torch.float32, scale=1.0):
    """Hidden states, weight and targets; every third target is the most likely token."""
    generator = torch.Generator().manual_seed(0)
    hidden_TH = (scale * torch.randn(num_tokens, HIDDEN, generator=generator)).to(dtype)
    weight_VH = (0.5 * torch.randn(VOCABULARY, HIDDEN, generator=generator)).to(dtype)
    targets_T = torch.randint(VOCABULARY, (num_tokens,), generator=generator)
    targets_T[::3] = (hidden_TH.double() @ weight_VH.double().t()).argmax(-1)[::3]
    return hidden_TH.requires_grad_(), weight_VH.requires_grad_(), targets_T


def soft_gated(logprobs_T, span):
    """A loss like SAPO's, of each token alone, in the precision of the log-probabilities; all differ in weight."""
    where_T = torch.arange(span.start, span.stop, dtype=logprobs_T.dtype)
    ratios_T = torch.exp(logprobs_T + 4 + torch.sin(where_T))
    return -4 / 1.05 * torch.sigmoid(1.05 * (ratios_T - 1)) * torch.cos(where_T) / (1 + where_T % 5)


def whole_sequences(logprobs_T, span):
    """GSPO's surrogate, unclipped: no token's slope is known before all log-probabilities are."""
    assert span == slice(0, len(logprobs_T))
    index_T = torch.arange(len(logprobs_T)) // 10
    counts_S = index_T.bincount().to(logprobs_T.dtype)
    sums_S = torch.zeros_like(counts_S).index_add(0, index_T, logprobs_T + 4)
    ratios_S = torch.exp(sums_S / counts_S)
    return -ratios_S * torch.tensor([1.0, -0.5, 2.0, -1.0], dtype=logprobs_T.dtype)[: len(ratios_S)]


def reference(hidden_TH, weight_VH, targets_T, token_loss, temperature):
    """The same, over float64 logits of all tokens at once: (loss, logprobs, entropies, is_top1, gradients)."""
    hidden, weight = (x.detach().double().requires_grad_() for x in (hidden_TH, weight_VH))
    logprobs_TV = torch.log_softmax(hidden @ weight.t() / temperature, dim=-1)
    chosen_T = logprobs_TV.gather(1, targets_T[:, None])[:, 0]
    loss = token_loss(chosen_T, slice(0, len(targets_T))).sum()
    loss.backward()
    entropies_T = -(logprobs_TV.exp() * logprobs_TV).sum(-1)
    return loss, chosen_T, entropies_T, logprobs_TV.argmax(-1) == targets_T, hidden.grad, weight.grad


def error(actual, expected):
    assert actual is not None and actual.shape == expected.shape
    return float((actual.double() - expected).norm() / expected.norm())


def small_chunks(monkeypatch, tokens, rows):
    """Chunks of `tokens` tokens, in passes of `rows` rows."""
    monkeypatch.setattr(head, "_CHUNK_TOKENS", 1)
    monkeypatch.setattr(head, "_CHUNK_BYTES", {"cpu": 4 * VOCABULARY * tokens})
    monkeypatch.setattr(head, "_SCRATCH_BYTES", {"cpu": 4 * VOCABULARY * rows})


@pytest.mark.parametrize("temperature", [1.0, TEMPERATURE])
@pytest.mark.parametrize(("tokens", "rows"), [(1, 1), (5, 2), (16, 16), (NUM_TOKENS, 7), (1000, 1000)])
@pytest.mark.parametrize(
    ("token_loss", "separable"), [(soft_gated, True), (soft_gated, False), (whole_sequences, False)]
)
def test_everything_equals_float64_autograd_for_every_size_of_chunk(
    monkeypatch, token_loss, separable, tokens, rows, temperature
):
    small_chunks(monkeypatch, tokens, rows)
    hidden_TH, weight_VH, targets_T = inputs()
    output = token_loss_head(hidden_TH, weight_VH, targets_T, token_loss, temperature=temperature, separable=separable)
    output.loss.backward()
    loss, logprobs_T, entropies_T, is_top1_T, hidden_grad, weight_grad = reference(
        hidden_TH, weight_VH, targets_T, token_loss, temperature
    )
    assert output.loss.item() == pytest.approx(loss.item(), rel=FLOAT32_ERROR)
    assert error(output.logprobs_T, logprobs_T.detach()) < FLOAT32_ERROR
    assert error(output.entropies_T, entropies_T.detach()) < FLOAT32_ERROR
    assert output.is_top1_T.equal(is_top1_T) and 0 < is_top1_T.sum() < NUM_TOKENS
    assert error(hidden_TH.grad, hidden_grad) < FLOAT32_ERROR
    assert error(weight_VH.grad, weight_grad) < FLOAT32_ERROR


def test_a_separable_loss_sees_each_token_once_in_spans_of_one_chunk(monkeypatch):
    small_chunks(monkeypatch, 10, 4)
    spans = []

    def noting(logprobs_T, span):
        assert len(logprobs_T) == span.stop - span.start
        spans.append((span.start, span.stop))
        return logprobs_T

    token_loss_head(*inputs(), noting)
    assert spans == [(0, 10), (10, 20), (20, 30), (30, 37)]


def test_gspo_through_the_head_equals_plain_autograd_over_logits():
    hidden_TH, weight_VH, targets_T = inputs()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        on_policy_T = token_loss_head(hidden_TH, weight_VH, targets_T, soft_gated).logprobs_T
    old_T = on_policy_T + 0.1 * torch.randn(NUM_TOKENS, generator=generator)
    index_T = torch.arange(NUM_TOKENS) // 10
    advantages_T = torch.tensor([1.0, -0.5, 2.0, -1.0])[index_T]

    def gspo(logprobs_T, span):
        return gspo_token_losses(
            logprobs_T=logprobs_T,
            old_logprobs_T=old_T[span],
            advantages_T=advantages_T[span],
            sequence_index_T=index_T[span],
            num_sequences=4,
            clip_low=0.5,
            clip_high=0.5,
        )

    output = token_loss_head(hidden_TH, weight_VH, targets_T, gspo, separable=False)
    output.loss.backward()
    loss, *_, hidden_grad, weight_grad = reference(hidden_TH, weight_VH, targets_T, gspo, 1.0)
    assert output.loss.item() == pytest.approx(loss.item(), rel=FLOAT32_ERROR)
    assert error(hidden_TH.grad, hidden_grad) < FLOAT32_ERROR
    assert error(weight_VH.grad, weight_grad) < FLOAT32_ERROR


@pytest.mark.parametrize("separable", [True, False])
@pytest.mark.parametrize("frozen", ["hidden", "weight"])
def test_a_frozen_input_gets_no_gradient_and_leaves_the_other_one_exact(frozen, separable):
    hidden_TH, weight_VH, targets_T = inputs()
    (hidden_TH if frozen == "hidden" else weight_VH).requires_grad_(False)
    output = token_loss_head(hidden_TH, weight_VH, targets_T, soft_gated, temperature=TEMPERATURE, separable=separable)
    output.loss.backward()
    *_, hidden_grad, weight_grad = reference(hidden_TH, weight_VH, targets_T, soft_gated, TEMPERATURE)
    if frozen == "hidden":
        assert hidden_TH.grad is None and error(weight_VH.grad, weight_grad) < FLOAT32_ERROR
    else:
        assert weight_VH.grad is None and error(hidden_TH.grad, hidden_grad) < FLOAT32_ERROR


@pytest.mark.parametrize(("token_loss", "separable"), [(soft_gated, True), (whole_sequences, False)])
def test_without_gradients_the_numbers_are_the_same_and_there_is_no_graph(token_loss, separable):
    hidden_TH, weight_VH, targets_T = inputs()
    output = token_loss_head(hidden_TH, weight_VH, targets_T, token_loss, separable=separable)
    with torch.no_grad():
        measured = token_loss_head(hidden_TH, weight_VH, targets_T, token_loss, separable=separable)
    frozen = token_loss_head(hidden_TH.detach(), weight_VH.detach(), targets_T, token_loss, separable=separable)
    for other in (measured, frozen):
        assert not other.loss.requires_grad
        assert other.loss.item() == pytest.approx(output.loss.item(), rel=FLOAT32_ERROR)
        assert other.logprobs_T.equal(output.logprobs_T)
        assert other.entropies_T.equal(output.entropies_T)
        assert other.is_top1_T.equal(output.is_top1_T)
    assert output.loss.requires_grad
    assert not (output.logprobs_T.requires_grad or output.entropies_T.requires_grad)


@pytest.mark.parametrize("separable", [True, False])
def test_a_scaled_loss_scales_its_gradients_and_two_forwards_add_up(separable):
    hidden_TH, weight_VH, targets_T = inputs()
    *_, hidden_grad, weight_grad = reference(hidden_TH, weight_VH, targets_T, soft_gated, 1.0)
    (3 * token_loss_head(hidden_TH, weight_VH, targets_T, soft_gated, separable=separable).loss).backward()
    assert error(hidden_TH.grad, 3 * hidden_grad) < FLOAT32_ERROR
    assert error(weight_VH.grad, 3 * weight_grad) < FLOAT32_ERROR
    (0.5 * token_loss_head(hidden_TH, weight_VH, targets_T, soft_gated, separable=separable).loss).backward()
    assert error(hidden_TH.grad, 3.5 * hidden_grad) < FLOAT32_ERROR
    assert error(weight_VH.grad, 3.5 * weight_grad) < FLOAT32_ERROR


@pytest.mark.parametrize("separable", [True, False])
def test_a_second_backward_is_refused_rather_than_wrong(separable):
    hidden_TH, weight_VH, targets_T = inputs()
    loss = token_loss_head(hidden_TH, weight_VH, targets_T, soft_gated, separable=separable).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="backward once a forward"):
        loss.backward()


@pytest.mark.parametrize("separable", [True, False])
def test_one_token_is_enough(separable):
    hidden_TH, weight_VH, targets_T = inputs(num_tokens=1)
    output = token_loss_head(hidden_TH, weight_VH, targets_T, soft_gated, separable=separable)
    output.loss.backward()
    loss, logprobs_T, *_, weight_grad = reference(hidden_TH, weight_VH, targets_T, soft_gated, 1.0)
    assert output.loss.item() == pytest.approx(loss.item(), rel=FLOAT32_ERROR)
    assert output.logprobs_T.tolist() == pytest.approx(logprobs_T.tolist(), rel=FLOAT32_ERROR)
    assert output.is_top1_T.tolist() == [True]
    assert error(weight_VH.grad, weight_grad) < 5 * FLOAT32_ERROR  # 1 - p cancels where the target is likely


@pytest.mark.parametrize("separable", [True, False])
def test_no_token_at_all_gives_a_loss_and_gradients_of_zero(separable):
    hidden_TH, weight_VH, targets_T = inputs(num_tokens=0)
    output = token_loss_head(hidden_TH, weight_VH, targets_T, soft_gated, separable=separable)
    output.loss.backward()
    assert output.loss.item() == 0 and len(output.logprobs_T) == 0
    assert weight_VH.grad is not None and not weight_VH.grad.any()


def test_bfloat16_products_keep_log_probabilities_to_two_hundredths_and_gradients_to_one_percent():
    hidden_TH, weight_VH, targets_T = inputs(dtype=torch.bfloat16)
    output = token_loss_head(hidden_TH, weight_VH, targets_T, soft_gated)
    output.loss.backward()
    _, logprobs_T, entropies_T, _, hidden_grad, weight_grad = reference(
        hidden_TH, weight_VH, targets_T, soft_gated, 1.0
    )
    # Logits up to 8 are rounded to 2 ** -9 of themselves; so is every gradient, once or twice.
    assert output.logprobs_T.dtype == torch.float32
    assert (output.logprobs_T - logprobs_T).abs().max() < 0.02
    assert (output.entropies_T - entropies_T).abs().max() < 0.02
    assert hidden_TH.grad is not None and hidden_TH.grad.dtype == torch.bfloat16
    assert weight_VH.grad is not None and weight_VH.grad.dtype == torch.bfloat16
    assert error(hidden_TH.grad, hidden_grad) < 0.01
    assert error(weight_VH.grad, weight_grad) < 0.01


def test_a_float32_weight_under_bfloat16_states_keeps_a_float32_gradient():
    hidden_TH, weight_VH, targets_T = inputs(dtype=torch.bfloat16)
    weight_VH = weight_VH.detach().float().requires_grad_()
    token_loss_head(hidden_TH, weight_VH, targets_T, soft_gated).loss.backward()
    *_, weight_grad = reference(hidden_TH, weight_VH, targets_T, soft_gated, 1.0)
    assert weight_VH.grad is not None and weight_VH.grad.dtype == torch.float32
    assert error(weight_VH.grad, weight_grad) < 0.01


def test_logits_of_ten_thousand_stay_finite():
    hidden_TH = torch.tensor([[1.0], [1.0], [-1.0]], requires_grad=True)
    weight_VH = torch.tensor([[1e4], [0.0], [-1e4]], requires_grad=True)
    output = token_loss_head(hidden_TH, weight_VH, torch.tensor([0, 1, 0]), lambda logprobs_T, span: -logprobs_T)
    output.loss.backward()
    assert output.logprobs_T.tolist() == [0, -1e4, -2e4]
    assert output.entropies_T.tolist() == [0, 0, 0]
    assert output.is_top1_T.tolist() == [True, False, False]
    # d loss / d logits is softmax - onehot: [0, 0, 0], [1, -1, 0], [-1, 0, 1]
    assert hidden_TH.grad is not None and hidden_TH.grad.tolist() == [[0], [1e4], [-2e4]]
    assert weight_VH.grad is not None and weight_VH.grad.tolist() == [[2], [-1], [-1]]


def test_temperature_divides_the_logits_of_losses_and_of_entropies():
    hidden_TH, weight_VH, targets_T = inputs()
    with torch.no_grad():
        warm = token_loss_head(hidden_TH, weight_VH, targets_T, soft_gated, temperature=2.0)
        halved = token_loss_head(hidden_TH / 2, weight_VH, targets_T, soft_gated)
    assert torch.allclose(warm.logprobs_T, halved.logprobs_T, atol=1e-6)
    assert torch.allclose(warm.entropies_T, halved.entropies_T, atol=1e-6)
    assert warm.loss.item() == pytest.approx(halved.loss.item(), rel=1e-6)
