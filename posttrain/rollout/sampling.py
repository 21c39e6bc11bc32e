"""Drawing one token for each row of logits, and the log-probability that a trainer will compute for it."""

from collections.abc import Iterator
from itertools import chain, repeat

import numpy as np
import torch
from torch import Tensor

from posttrain.rollout.engine import Sampling


def draw_tokens(
    logits_NV: Tensor, uniforms_N: Tensor, sampling: Sampling, banned_V: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """(int64 [N] tokens, float32 [N] log-probabilities) of one step.

    logits_NV: float32. uniforms_N: float64 in [0, 1), one a row, turned into a token by inverting the cumulative
    distribution: a row's token depends on its own logits and its own number alone, not on its neighbours.
    banned_V: True where a token must not be drawn; what is left is renormalised before drawing, and so it is after
    top_k and top_p. The log-probabilities are `log_softmax(logits / temperature)` over the *full* vocabulary all the
    same, because that is what a trainer computes for the same tokens: on the weights that sampled, the ratio of the two
    is 1, at the price of the banned mass (a token's probability of being drawn is higher by that factor). Greedy tokens
    (temperature 0) get their log-probability at temperature 1.
    """
    if sampling.temperature not in (0.0, 1.0):
        logits_NV = logits_NV / sampling.temperature
    allowed_NV = logits_NV
    if banned_V is not None:  # added: a tenth of the time of masked_fill on a CPU
        allowed_NV = logits_NV + torch.zeros_like(logits_NV[0]).masked_fill_(banned_V, float("-inf"))
    if sampling.temperature == 0:
        tokens_N = allowed_NV.argmax(-1)
    else:
        if sampling.top_k > 0 or sampling.top_p < 1:
            allowed_NV = keep_likely(allowed_NV, top_k=sampling.top_k, top_p=sampling.top_p)
        cumulative_NV = allowed_NV.softmax(-1).cumsum(-1, dtype=torch.float64)
        reached_N1 = uniforms_N[:, None] * cumulative_NV[:, -1:]
        # The first entry *above* the number: an entry without mass repeats its left neighbour and is never the first.
        tokens_N = torch.searchsorted(cumulative_NV, reached_N1, right=True)[:, 0]
    chosen_N = logits_NV.gather(-1, tokens_N[:, None])[:, 0]
    return tokens_N, chosen_N - logits_NV.logsumexp(-1)


def keep_likely(logits_NV: Tensor, *, top_k: int, top_p: float) -> Tensor:
    """The logits with -inf outside the `top_k` most likely tokens (0 keeps all) and, of those, outside the fewest that
    together have probability `top_p`. The most likely token always stays."""
    if 0 < top_k < logits_NV.shape[-1]:
        least_N1 = logits_NV.topk(top_k, dim=-1).values[:, -1:]
        logits_NV = logits_NV.masked_fill(logits_NV < least_N1, float("-inf"))
    if top_p < 1:
        sorted_NV, order_NV = logits_NV.sort(dim=-1, descending=True)
        before_NV = sorted_NV.softmax(-1).cumsum(-1).roll(1, dims=-1)
        before_NV[:, 0] = 0
        beyond_NV = torch.zeros_like(logits_NV, dtype=torch.bool).scatter_(-1, order_NV, before_NV >= top_p)
        logits_NV = logits_NV.masked_fill(beyond_NV, float("-inf"))
    return logits_NV


def uniforms(*, seed: int, index: int) -> Iterator[float]:
    """Numbers in [0, 1) without end: what draws the tokens of a request's sample `index`, one after the other.

    They come from the request's seed alone (any int): whatever else is sampled changes nothing. They are at most
    1 - 2^-40, so that a product with a total stays below the total.
    """
    generator = np.random.default_rng([seed % (1 << 64), index])
    drawn = (np.minimum(generator.random(_DRAWN_AT_ONCE), 1 - 2**-40).tolist() for _ in repeat(None))
    return chain.from_iterable(drawn)


_DRAWN_AT_ONCE = 32
