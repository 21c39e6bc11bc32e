"""The language-model head without logits: log-probabilities, entropies and any token loss, a few MiB at a time.

With tokens x vocabulary x hidden multiply-adds as one unit, a token-separable loss costs three units, forward and
backward (logits, their gradient into the hidden states, and into the weight): the loss's derivative is known as soon as
a chunk's log-probabilities are, so the chunk's logits become their own gradient in place and are never recomputed.
A divergence from another model's distribution costs that model's logits, and shares the other three.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .comparison import Comparison
from .matching import Matching
from .products import accumulate, project

TokenLoss = Callable[[Tensor, slice], Tensor]
"""(log-probabilities [n] float32 of a span of tokens, the span) -> their losses [n], differentiable in the first."""

_CHUNK_BYTES = {"cpu": 32 << 20, "cuda": 512 << 20}
"""float32 logits at a time: enough for large matrix products. They become their own gradient in the same buffer."""
_CHUNK_TOKENS = 128
"""At least so many tokens at a time: each chunk adds to all of the weight gradient, [V, H], at the memory's speed."""
_SCRATCH_BYTES = {"cpu": 512 << 10, "cuda": 512 << 20}
"""float32 rows of logits at a time in the passes between the products: what stays in a CPU core's own cache."""
_COMPARED_BYTES = {"cpu": 512 << 10, "cuda": 128 << 20}
"""The same where a comparison works in three more buffers of that size."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadOutput:
    """What the head says of T trained tokens."""

    loss: Tensor
    """0-d float32: the sum of the token losses and of weighted divergences; backward() from here."""
    logprobs_T: Tensor
    """float32 nats, detached."""
    entropies_T: Tensor
    """float32 nats, detached."""
    is_top1_T: Tensor
    """bool: the token was the most likely one."""
    divergences_T: Tensor | None = None
    """float32 nats, detached and unweighted; None without a matching."""


def token_loss_head(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    token_loss: TokenLoss,
    *,
    temperature: float = 1.0,
    separable: bool = True,
    matching: Matching | None = None,
) -> HeadOutput:
    """Sum of `token_loss` over T tokens, differentiable in the hidden states and the head's weight.

    hidden_TH: states that predict the targets, float32 or bfloat16; weight_VH: the head's weight, V may exceed the
    tokenizer; targets_T: int64. temperature divides the logits (of losses, of entropies, and of both sides of a
    matching).
    separable: each token's loss depends on that token's log-probability alone (three units). Otherwise, for losses of
    whole sequences, a first pass gathers all log-probabilities and the second one recomputes (four units).
    matching: adds its weighted divergences to the loss. One more product, of the reference's hidden states with its
    head, or none where its top log-probabilities are given. Raises ValueError for a reference that is not finite or no
    distribution, or top log-probabilities at a temperature other than 1.
    Under `torch.no_grad()` only logits are made. Double backward is not possible.
    """
    with_grad = torch.is_grad_enabled() and (hidden_TH.requires_grad or weight_VH.requires_grad)
    inputs = (hidden_TH, weight_VH, targets_T)
    if separable:
        return _apply(*inputs, token_loss, temperature, matching, with_grad=with_grad)
    with torch.no_grad():
        first = _apply(*inputs, _no_loss, temperature, None if with_grad else matching, with_grad=False)
    with torch.enable_grad():
        logprobs_T = first.logprobs_T.detach().requires_grad_()
        value = token_loss(logprobs_T, slice(0, len(targets_T))).sum()
        (slopes_T,) = torch.autograd.grad(value, logprobs_T)
    if not with_grad:
        return replace(first, loss=first.loss + value.detach())

    def slopes_alone(logprobs_T: Tensor, span: slice) -> Tensor:
        """Exactly 0 in value, so that adding it rounds nothing away."""
        return slopes_T[span] * (logprobs_T - logprobs_T.detach())

    second = _apply(*inputs, slopes_alone, temperature, matching, with_grad=True)
    return replace(second, loss=second.loss + value.detach())


def _no_loss(logprobs_T: Tensor, span: slice) -> Tensor:
    return torch.zeros_like(logprobs_T)


def _apply(
    hidden_TH: Tensor,
    weight_VH: Tensor,
    targets_T: Tensor,
    token_loss: TokenLoss,
    temperature: float,
    matching: Matching | None,
    *,
    with_grad: bool,
) -> HeadOutput:
    loss, logprobs_T, entropies_T, is_top1_T, divergences_T = _FusedTokenLoss.apply(
        hidden_TH, weight_VH, targets_T, token_loss, temperature, matching, with_grad
    )  # pyright: ignore[reportGeneralTypeIssues]
    return HeadOutput(
        loss=loss, logprobs_T=logprobs_T, entropies_T=entropies_T, is_top1_T=is_top1_T, divergences_T=divergences_T
    )


def chunk_tokens(num_tokens: int, vocabulary: int, device: torch.device) -> int:
    """Tokens whose float32 logits fill one chunk."""
    fitting = _CHUNK_BYTES.get(device.type, _CHUNK_BYTES["cuda"]) // (4 * vocabulary)
    return min(num_tokens, max(_CHUNK_TOKENS, fitting)) or 1


def scratch_tokens(size: int, vocabulary: int, device: torch.device, *, compared: bool = False) -> int:
    """Tokens whose logits fill one slice of a chunk of `size`."""
    limits = _COMPARED_BYTES if compared else _SCRATCH_BYTES
    fitting = limits.get(device.type, limits["cuda"]) // (4 * vocabulary)
    return min(size, max(1, fitting))


class _FusedTokenLoss(torch.autograd.Function):
    @staticmethod
    def forward(ctx, hidden_TH, weight_VH, targets_T, token_loss, temperature, matching, with_grad):  # pyright: ignore
        num_tokens, vocabulary = hidden_TH.shape[0], weight_VH.shape[0]
        size = chunk_tokens(num_tokens, vocabulary, hidden_TH.device)
        rows = scratch_tokens(size, vocabulary, hidden_TH.device, compared=matching is not None)
        weight = weight_VH.to(hidden_TH.dtype)
        into_hidden = with_grad and ctx.needs_input_grad[0]
        into_weight = with_grad and ctx.needs_input_grad[1]
        hidden_grad_TH = torch.empty_like(hidden_TH) if into_hidden else None
        weight_grad_VH = torch.zeros_like(weight, dtype=torch.float32) if into_weight else None
        logprobs_T = torch.empty(num_tokens, dtype=torch.float32, device=hidden_TH.device)
        entropies_T, is_top1_T = torch.empty_like(logprobs_T), torch.empty_like(logprobs_T, dtype=torch.bool)
        loss = torch.zeros((), dtype=torch.float32, device=hidden_TH.device)
        logits_buffer = torch.empty(size, vocabulary, dtype=torch.float32, device=hidden_TH.device)
        scratch = torch.empty(rows, vocabulary, dtype=torch.float32, device=hidden_TH.device)
        comparison = None
        if matching is not None:
            comparison = Comparison(
                matching,
                num_tokens=num_tokens,
                vocabulary=vocabulary,
                chunk=size,
                slice_rows=rows,
                temperature=temperature,
            )
        for first in range(0, num_tokens, size):
            span = slice(first, min(first + size, num_tokens))
            n = span.stop - span.start
            hidden, target_N1 = hidden_TH[span], targets_T[span, None]
            logits_NV = project(hidden, weight, out_NV=logits_buffer[:n])
            if temperature != 1.0:
                logits_NV.div_(temperature)
            if comparison is not None:
                comparison.load(span)
            sum_N1 = torch.empty(n, 1, dtype=torch.float32, device=hidden_TH.device)
            for row in range(0, n, rows):
                part = slice(row, min(row + rows, n))
                whole = slice(first + part.start, first + part.stop)
                logits_RV = logits_NV[part]
                shifted_RV = torch.sub(logits_RV, logits_RV.amax(-1, keepdim=True), out=scratch[: part.stop - row])
                exp_RV = torch.exp(shifted_RV, out=logits_RV)  # takes the logits' place
                sum_R = exp_RV.sum(-1)
                log_sum_R = sum_R.log()
                chosen_R = shifted_RV.gather(1, target_N1[part])[:, 0]
                logprobs_T[whole] = chosen_R - log_sum_R
                entropies_T[whole] = log_sum_R - torch.linalg.vecdot(exp_RV, shifted_RV) / sum_R
                is_top1_T[whole] = chosen_R >= 0
                sum_N1[part, 0] = sum_R
                if comparison is not None:
                    comparison.compare(shifted_RV.sub_(log_sum_R[:, None]), part)
            with torch.enable_grad():
                x_N = logprobs_T[span].clone().requires_grad_(with_grad)
                value = token_loss(x_N, span).sum()
                slopes_N = torch.autograd.grad(value, x_N)[0] / temperature if with_grad else None
            loss += value.detach()
            if slopes_N is None:
                continue
            # d logp / d logits = onehot - softmax, in the buffer that holds the exponentials or added to a divergence's
            if comparison is None:
                grad_NV = logits_NV.mul_(-slopes_N[:, None] / sum_N1)
                grad_NV.scatter_add_(1, target_N1, slopes_N[:, None])
            else:
                grad_NV = comparison.gradient_NV[:n]
                if slopes_N.any():
                    grad_NV.addcmul_(logits_NV, slopes_N[:, None] / sum_N1, value=-1)
                    grad_NV.scatter_add_(1, target_N1, slopes_N[:, None])
            grad_NV = grad_NV.to(hidden.dtype)
            if hidden_grad_TH is not None:
                torch.mm(grad_NV, weight, out=hidden_grad_TH[span])
            if weight_grad_VH is not None:
                accumulate(weight_grad_VH, grad_NV.t(), hidden)
        if comparison is not None:
            comparison.check(logprobs_T)
            loss += comparison.loss()
        if weight_grad_VH is not None:
            weight_grad_VH = weight_grad_VH.to(weight_VH.dtype)
        ctx.save_for_backward(hidden_grad_TH, weight_grad_VH)
        ctx.spent = False
        divergences_T = None if comparison is None else comparison.divergences_T
        detached = [t for t in (logprobs_T, entropies_T, is_top1_T, divergences_T) if t is not None]
        ctx.mark_non_differentiable(*detached)
        ctx.set_materialize_grads(False)
        return loss, logprobs_T, entropies_T, is_top1_T, divergences_T

    @staticmethod
    def backward(ctx, grad_loss, *_):  # pyright: ignore
        if grad_loss is None:
            return (None,) * 7
        if ctx.spent:
            raise RuntimeError("the fused head's gradient was made in the forward pass: call backward once a forward")
        ctx.spent = True
        hidden_grad_TH, weight_grad_VH = ctx.saved_tensors
        # The saved gradients are this node's own and are used once: scaling in place saves a second [V, H] tensor.
        scaled = [None if g is None else g.mul_(grad_loss.to(g.dtype)) for g in (hidden_grad_TH, weight_grad_VH)]
        return scaled[0], scaled[1], None, None, None, None, None
