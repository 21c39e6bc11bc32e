"""Decoding attention in which the samples of a prompt read one copy of its keys and values.

The prompt's part is one matrix product for all samples of a group instead of one product a sample over repeated keys,
as in Hydragen (arXiv 2402.05099, sec. 3.1-3.2); one softmax runs over the scores of both parts, so that their
log-sum-exps (eq. 4-6 there) need not be joined. What a sample owns is its generated tokens alone.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

_NAME = "posttrain_shared_prefix"


@dataclass(frozen=True, slots=True, kw_only=True)
class Seats:
    """Where each of B samples sits in a table of U prompts x `slots` samples."""

    num_prompts: int
    slots: int
    """Samples of the prompt that has the most."""
    seat_B: Tensor | None
    """int64; None where sample b sits at seat b and no seat is empty."""

    @classmethod
    def of(cls, prompt_B: np.ndarray, num_prompts: int, device: torch.device) -> "Seats":
        """prompt_B: int64, the prompt that each sample starts from, in any order."""
        order = prompt_B.argsort(kind="stable")
        sorted_B = prompt_B[order]
        within_B = np.arange(len(sorted_B)) - sorted_B.searchsorted(sorted_B)
        slots = int(within_B.max()) + 1
        seat_B = np.empty_like(prompt_B)
        seat_B[order] = sorted_B * slots + within_B
        if len(seat_B) == num_prompts * slots and bool((seat_B == np.arange(len(seat_B))).all()):
            return cls(num_prompts=num_prompts, slots=slots, seat_B=None)
        return cls(num_prompts=num_prompts, slots=slots, seat_B=torch.from_numpy(seat_B).to(device))

    def seated(self, rows: Tensor) -> Tensor:
        """[B, kv heads, R, X], R query heads reading one kv head -> [U, kv heads, slots * R, X]; empty seats are 0."""
        if self.seat_B is not None:
            empty = rows.new_zeros(self.num_prompts * self.slots, *rows.shape[1:])
            rows = empty.index_copy_(0, self.seat_B, rows)
        if self.slots == 1:
            return rows
        _, kv_heads, repeats, width = rows.shape
        rows = rows.view(self.num_prompts, self.slots, kv_heads, repeats, width).transpose(1, 2)
        return rows.reshape(self.num_prompts, kv_heads, self.slots * repeats, width)

    def risen(self, table: Tensor) -> Tensor:
        """The other way round."""
        if self.slots > 1:
            _, kv_heads, rows, width = table.shape
            table = table.view(self.num_prompts, kv_heads, self.slots, rows // self.slots, width).transpose(1, 2)
            table = table.reshape(self.num_prompts * self.slots, kv_heads, rows // self.slots, width)
        return table if self.seat_B is None else table.index_select(0, self.seat_B)


def shared_prefix_attention(
    query: Tensor,
    own_key: Tensor,
    own_value: Tensor,
    prompt_key: Tensor,
    prompt_value: Tensor,
    seats: Seats,
    *,
    bias_BT: Tensor | None = None,
    bias_UL: Tensor | None = None,
) -> Tensor:
    """[B, heads, D], each sample's attention over its prompt and its own tokens.

    query: [B, heads, D], scaled. own_key, own_value: [B, kv heads, T, D]. prompt_key, prompt_value: [U, kv heads, L,
    D].
    bias_BT, bias_UL: added to the scores, -inf at entries that are not read and 0 elsewhere; None where all are read.
    The softmax is float32.
    """
    num_samples, heads, width = query.shape
    # The query heads that read one kv head are rows of one product: nothing is repeated.
    query = query.view(num_samples, own_key.shape[1], -1, width)
    own = query @ own_key.transpose(-1, -2)
    shared = seats.seated(query) @ prompt_key.transpose(-1, -2)
    if bias_BT is not None:  # adding takes a sixth of the time of masked_fill_ on a CPU
        own += bias_BT[:, None, None]
    if bias_UL is not None:
        shared += bias_UL[:, None, None]
    length = prompt_key.shape[2]
    weights = torch.cat((shared, seats.seated(own)), -1).softmax(-1, dtype=torch.float32).to(own_value.dtype)
    read = seats.risen(weights[..., :length] @ prompt_value)
    read += seats.risen(weights[..., length:]) @ own_value
    return read.reshape(num_samples, heads, width)


class Decoding(Protocol):
    """Samples that take a token together: they keep its keys and values, and read what is before it."""

    @property
    def num_rows(self) -> int: ...

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """query [B, heads, D], scaled, key and value [B, kv heads, 1, D] of the new token -> [B, heads, D]."""
        ...


@contextmanager
def shared_prefix_decoding(model: PreTrainedModel) -> Iterator[None]:
    """Within it, the language model reads a keyword `decoding`; without that keyword it is transformers' SDPA."""
    text = model.config.get_text_config()
    before = text._attn_implementation
    text._attn_implementation = _NAME  # set_attn_implementation walks all modules: the time of half a step
    try:
        yield
    finally:
        text._attn_implementation = before


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    decoding: Sequence[Decoding] | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface. `decoding`: whose rows the batch is made of, one after the other."""
    if decoding is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    query = query[:, :, 0] * (scaling if scaling is not None else query.shape[-1] ** -0.5)
    if torch.is_autocast_enabled(query.device.type):  # norms and rotary positions gave float32, projections did not
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    layer: Any = module.layer_idx
    if len(decoding) == 1:
        return decoding[0].attend(layer, query, key, value)[:, None], None
    counts = [part.num_rows for part in decoding]
    parts = zip(decoding, query.split(counts), key.split(counts), value.split(counts), strict=True)
    return torch.cat([part.attend(layer, q, k, v) for part, q, k, v in parts])[:, None], None


AttentionInterface.register(_NAME, _attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
