"""The head without logits against a float64 reference of ten lines, in every way it may be asked."""

import pytest
import torch
from posttrain.model import head as head_module
from posttrain.model.head import chunk_tokens, token_loss_head

T, V, H = 37, 301, 24


@pytest.fixture(params=[None, 5, 1], ids=["one chunk", "chunks of 5", "chunks of 1"])
def chunks(request, monkeypatch):
    """Chunks that do not divide the number of tokens, and one row at a time between the products."""
    if request.param is not None:
        monkeypatch.setattr(head_module, "chunk_tokens", lambda num_tokens, vocabulary, device: request.param)
        monkeypatch.setitem(head_module._SCRATCH_BYTES, "cpu", 4 * V * 2)


def problem(dtype=torch.float32, scale=0.5):
    generator = torch.Generator().manual_seed(0)
    hidden_TH = torch.randn(T, H, generator=generator).to(dtype).requires_grad_()
    weight_VH = (scale * torch.randn(V, H, generator=generator)).to(dtype).requires_grad_()
    targets_T = torch.randint(0, V, (T,), generator=generator)
    coefficients_T = torch.randn(T, generator=generator)
    return hidden_TH, weight_VH, targets_T, coefficients_T


def curved(coefficients_T):
    """A token-separable loss whose slope depends on the log-probability."""
    return lambda logprobs_T, span: coefficients_T[span] * (logprobs_T + 0.1 * logprobs_T**2)


def reference(hidden_TH, weight_VH, targets_T, token_loss, temperature):
    hidden_TH, weight_VH = (x.detach().double().requires_grad_() for x in (hidden_TH, weight_VH))
    log_TV = (hidden_TH @ weight_VH.t() / temperature).log_softmax(-1)
    logprobs_T = log_TV.gather(1, targets_T[:, None])[:, 0]
    entropies_T = -(log_TV.exp() * log_TV).sum(-1)
    loss = token_loss(logprobs_T, slice(0, T)).sum()
    loss.backward()
    top1_T = log_TV.argmax(-1) == targets_T
    return loss, logprobs_T, entropies_T, top1_T, hidden_TH.grad, weight_VH.grad


def close(found, wanted, tolerance=1e-6):
    """Largest error relative to the largest entry; 1e-6 is some ten roundings of float32."""
    found, wanted = found.detach().double(), wanted.detach().double()
    return float((found - wanted).abs().max()) <= tolerance * float(wanted.abs().max())


@pytest.mark.parametrize("temperature", [1.0, 0.6, 1.7])
@pytest.mark.parametrize("separable", [True, False])
def test_everything_equals_the_float64_reference(chunks, temperature, separable):
    hidden_TH, weight_VH, targets_T, coefficients_T = problem()
    targets_T[3] = int((hidden_TH[3] @ weight_VH.t()).argmax())  # at least one token is the most likely one
    loss_of = curved(coefficients_T)
    output = token_loss_head(hidden_TH, weight_VH, targets_T, loss_of, temperature=temperature, separable=separable)
    output.loss.backward()
    loss, logprobs_T, entropies_T, top1_T, hidden_grad, weight_grad = reference(
        hidden_TH, weight_VH, targets_T, curved(coefficients_T.double()), temperature
    )
    assert float(output.loss.detach()) == pytest.approx(float(loss.detach()), rel=1e-5)
    assert close(output.logprobs_T, logprobs_T) and close(output.entropies_T, entropies_T)
    assert torch.equal(output.is_top1_T, top1_T) and top1_T.any()
    assert close(hidden_TH.grad, hidden_grad) and close(weight_VH.grad, weight_grad)
    assert not output.logprobs_T.requires_grad and not output.entropies_T.requires_grad


def test_a_loss_of_whole_sequences_wants_all_log_probabilities_at_once(chunks):
    """GSPO's form: the slope of each token depends on the mean over its sequence."""
    hidden_TH, weight_VH, targets_T, _ = problem()
    seen = []

    def sequence_loss(logprobs_T, span):
        seen.append(len(logprobs_T))
        return torch.stack([logprobs_T[:20].mean().exp(), logprobs_T[20:].mean().exp()])

    token_loss_head(hidden_TH, weight_VH, targets_T, sequence_loss, separable=False).loss.backward()
    *_, hidden_grad, weight_grad = reference(hidden_TH, weight_VH, targets_T, sequence_loss, 1.0)
    assert seen == [T, T]
    # the slopes are e^-8, so that float32's error in a log-probability of -8 shows: 8 * 6e-8 relative
    assert close(hidden_TH.grad, hidden_grad, 3e-6) and close(weight_VH.grad, weight_grad, 3e-6)


@pytest.mark.parametrize("separable", [True, False])
def test_a_frozen_weight_gets_no_gradient_and_the_hidden_states_the_same(separable):
    hidden_TH, weight_VH, targets_T, coefficients_T = problem()
    options = {"separable": separable}
    token_loss_head(hidden_TH, weight_VH, targets_T, curved(coefficients_T), **options).loss.backward()
    whole, hidden_TH.grad = hidden_TH.grad, None
    frozen = weight_VH.detach()
    token_loss_head(hidden_TH, frozen, targets_T, curved(coefficients_T), **options).loss.backward()
    assert torch.equal(hidden_TH.grad, whole)
    assert frozen.grad is None


def test_frozen_hidden_states_leave_the_weight_trainable():
    hidden_TH, weight_VH, targets_T, coefficients_T = problem()
    token_loss_head(hidden_TH.detach(), weight_VH, targets_T, curved(coefficients_T)).loss.backward()
    assert hidden_TH.grad is None
    assert weight_VH.grad.abs().max() > 0


@pytest.mark.parametrize("separable", [True, False])
def test_without_gradients_it_gives_the_same_numbers_and_no_graph(separable):
    hidden_TH, weight_VH, targets_T, coefficients_T = problem()
    loss_of = curved(coefficients_T)
    trained = token_loss_head(hidden_TH, weight_VH, targets_T, loss_of, separable=separable)
    with torch.no_grad():
        output = token_loss_head(hidden_TH, weight_VH, targets_T, loss_of, separable=separable)
    assert not output.loss.requires_grad
    assert float(output.loss) == pytest.approx(float(trained.loss.detach()), rel=1e-5)
    assert torch.equal(output.logprobs_T, trained.logprobs_T)
    assert torch.equal(output.entropies_T, trained.entropies_T)


def test_bfloat16_is_within_its_own_precision():
    hidden_TH, weight_VH, targets_T, coefficients_T = problem(torch.bfloat16)
    output = token_loss_head(hidden_TH, weight_VH, targets_T, curved(coefficients_T))
    output.loss.backward()
    loss_of = curved(coefficients_T.double())
    _, logprobs_T, entropies_T, _, hidden_grad, weight_grad = reference(hidden_TH, weight_VH, targets_T, loss_of, 1.0)
    assert output.logprobs_T.dtype == torch.float32
    assert hidden_TH.grad.dtype == weight_VH.grad.dtype == torch.bfloat16
    # 8 bits: 2^-8 relative in each logit of up to 10, and in each entry of a gradient
    assert close(output.logprobs_T, logprobs_T, 1e-2) and close(output.entropies_T, entropies_T, 1e-2)
    assert close(hidden_TH.grad, hidden_grad, 2e-2) and close(weight_VH.grad, weight_grad, 2e-2)


def test_large_logits_do_not_overflow():
    hidden_TH, weight_VH, targets_T, coefficients_T = problem(scale=300.0)
    output = token_loss_head(hidden_TH, weight_VH, targets_T, curved(coefficients_T))
    output.loss.backward()
    loss_of = curved(coefficients_T.double())
    _, logprobs_T, entropies_T, *_ = reference(hidden_TH, weight_VH, targets_T, loss_of, 1.0)
    assert float(logprobs_T.abs().max()) > 1000
    assert close(output.logprobs_T, logprobs_T)
    assert torch.allclose(output.entropies_T.double(), entropies_T, atol=1e-2)
    assert hidden_TH.grad.isfinite().all()


def test_the_loss_may_be_scaled_before_its_backward_pass():
    hidden_TH, weight_VH, targets_T, coefficients_T = problem()
    token_loss_head(hidden_TH, weight_VH, targets_T, curved(coefficients_T)).loss.backward()
    whole, hidden_TH.grad = hidden_TH.grad, None
    (token_loss_head(hidden_TH, weight_VH, targets_T, curved(coefficients_T)).loss / 4).backward()
    assert torch.allclose(hidden_TH.grad, whole / 4)


def test_a_second_backward_pass_is_refused():
    hidden_TH, weight_VH, targets_T, coefficients_T = problem()
    loss = token_loss_head(hidden_TH, weight_VH, targets_T, curved(coefficients_T)).loss
    loss.backward(retain_graph=True)
    with pytest.raises(RuntimeError, match="call backward once a forward"):
        loss.backward()


def test_no_trained_token_gives_a_differentiable_zero():
    hidden_TH, weight_VH, targets_T, coefficients_T = problem()
    loss = token_loss_head(hidden_TH[:0], weight_VH, targets_T[:0], curved(coefficients_T)).loss
    loss.backward()
    assert float(loss.detach()) == 0
    assert weight_VH.grad.abs().max() == 0


def test_chunks_stay_within_their_bytes_unless_a_few_tokens_exceed_them():
    cpu = torch.device("cpu")
    assert chunk_tokens(100_000, 8192, cpu) * 8192 * 4 == head_module._CHUNK_BYTES["cpu"]
    assert chunk_tokens(100_000, 1 << 24, cpu) == head_module._CHUNK_TOKENS
    assert chunk_tokens(10, 8192, cpu) == 10
    assert chunk_tokens(0, 8192, cpu) == 1
