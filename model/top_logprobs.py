"""What a teacher says of each trained token, small enough to keep: its K likeliest tokens and all others' mass."""

from typing import NamedTuple

import torch
from torch import Tensor

from .buckets import bucket, normalise
from .head import chunk_tokens, scratch_tokens
from .products import project


class TopLogprobs(NamedTuple):
    """Of T trained tokens, at temperature 1."""

    token_ids_TK: Tensor
    """int32, the likeliest first."""
    logprobs_TK: Tensor
    """float32 nats, normalised over the whole vocabulary."""
    tail_T: Tensor
    """float32 nats: log of the others' mass, their own sum; -inf where K is the whole vocabulary."""
    target_logprobs_T: Tensor
    """float32 nats: of the trained tokens themselves."""


@torch.no_grad()
def top_logprobs(hidden_TH: Tensor, weight_VH: Tensor, targets_T: Tensor, k: int) -> TopLogprobs:
    """The k likeliest of V tokens at each of T positions, without gradients, a chunk of logits at a time (one product).

    hidden_TH, weight_VH, targets_T: as in `token_loss_head`. Raises ValueError for a k outside 1 to V. States or
    weights that are not finite give log-probabilities that are not.
    """
    num_tokens, vocabulary = hidden_TH.shape[0], weight_VH.shape[0]
    if not 1 <= k <= vocabulary:
        raise ValueError(f"the {k} likeliest of {vocabulary} tokens were asked for; ask for 1 to {vocabulary}")
    device, weight = hidden_TH.device, weight_VH.to(hidden_TH.dtype)
    found = TopLogprobs(
        token_ids_TK=torch.empty(num_tokens, k, dtype=torch.int32, device=device),
        logprobs_TK=torch.empty(num_tokens, k, device=device),
        tail_T=torch.full((num_tokens,), -torch.inf, device=device),
        target_logprobs_T=torch.empty(num_tokens, device=device),
    )
    size = chunk_tokens(num_tokens, vocabulary, device)
    rows = scratch_tokens(size, vocabulary, device)
    logits_buffer = torch.empty(size, vocabulary, device=device)
    scratch = torch.empty(rows, vocabulary, device=device)
    for first in range(0, num_tokens, size):
        n = min(size, num_tokens - first)
        logits_NV = project(hidden_TH[first : first + n], weight, out_NV=logits_buffer[:n])
        for row in range(0, n, rows):
            logits_RV = logits_NV[row : min(row + rows, n)]
            scratch_RV = scratch[: len(logits_RV)]
            part = slice(first + row, first + row + len(logits_RV))
            logprobs_RV = normalise(logits_RV, scratch_RV)
            ids_RK = logprobs_RV.topk(k).indices
            buckets_RB, _ = bucket(logprobs_RV, ids_RK, others_RV=scratch_RV)
            found.token_ids_TK[part] = ids_RK
            found.logprobs_TK[part] = buckets_RB[:, :k]
            if k < vocabulary:
                found.tail_T[part] = buckets_RB[:, k]
            found.target_logprobs_T[part] = logprobs_RV.gather(1, targets_T[part, None])[:, 0]
    return found
