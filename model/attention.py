"""Attention over a packed row: each segment sees its prefix and, causally, itself; nothing leaks between completions.

Registered with transformers under one name; the row's segments travel as a keyword argument through the decoder layers.
Without segments (generate(), padded batches) it is transformers' own SDPA. Three kernels, numerically equal:
`segments` fused kernels over blocks of the row, merged by their log-sum-exps (the fastest on a CPU, no mask at all);
`dense` one SDPA call with an [L, L] mask (everywhere, O(L^2) memory);
`flex` a compiled FlexAttention with a block mask, which skips what is masked (CUDA).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

from .packing import Segment

ATTENTION_NAME = "posttrain_packed"
_FLEX_BUCKET = 512
"""Rows are padded to a multiple of this inside the kernel, so that few lengths are ever compiled."""


class Kernel(StrEnum):
    SEGMENTS = "segments"
    DENSE = "dense"
    FLEX = "flex"


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A run of queries that sees a run of keys: all of them, or, where they are the same tokens, causally."""

    queries: slice
    keys: slice
    causal: bool


@dataclass(slots=True)
class RowAttention:
    """How one row attends: the kernel, and what that kernel needs, made once for all layers."""

    kernel: Kernel
    blocks: tuple[Block, ...] = ()
    """Of the kernel `segments`."""
    mask: Any = None
    """Of the kernels `dense` and `flex`."""

    @classmethod
    def of(cls, segments: Sequence[Segment], num_tokens: int, device: torch.device, kernel: Kernel) -> "RowAttention":
        match kernel:
            case Kernel.SEGMENTS:
                return cls(kernel=kernel, blocks=segment_blocks(segments))
            case Kernel.DENSE:
                return cls(kernel=kernel, mask=dense_mask(segments, num_tokens, device))
            case Kernel.FLEX:
                return cls(kernel=kernel, mask=flex_block_mask(segments, num_tokens, device))


def default_kernel(device: torch.device) -> Kernel:
    """Segments on a CPU (1.0-1.14x the dense mask, less memory), FlexAttention on CUDA, the dense mask elsewhere."""
    return {"cpu": Kernel.SEGMENTS, "cuda": Kernel.FLEX}.get(device.type, Kernel.DENSE)


def packed_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    dropout: float = 0.0,
    row_attention: RowAttention | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' interface: query [1, heads, L, D], key and value [1, kv heads, L, D] -> [1, L, heads, D]."""
    if row_attention is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
        return output, None
    if dropout:
        raise ValueError("attention dropout is not supported in packed rows; set attention_dropout to 0")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    if torch.is_autocast_enabled(query.device.type):  # norms and rotary positions gave float32, projections did not
        dtype = torch.get_autocast_dtype(query.device.type)
        query, key, value = query.to(dtype), key.to(dtype), value.to(dtype)
    match row_attention.kernel:
        case Kernel.SEGMENTS:
            output = _BlockAttention.apply(query, key, value, row_attention.blocks, scale)
        case Kernel.DENSE:
            output = F.scaled_dot_product_attention(
                query, key, value, attn_mask=row_attention.mask, scale=scale, enable_gqa=query.shape[1] != key.shape[1]
            )
        case Kernel.FLEX:
            output = _flex_attention(query, key, value, row_attention.mask, scale)
    assert isinstance(output, Tensor)
    return output.transpose(1, 2).contiguous(), None


def dense_mask(segments: Sequence[Segment], num_tokens: int, device: torch.device) -> Tensor:
    """[1, 1, L, L] bool, True where a query (third axis) sees a key (fourth)."""
    mask = torch.zeros(num_tokens, num_tokens, dtype=torch.bool, device=device)
    for segment in segments:
        own = slice(segment.start, segment.end)
        mask[own, own] = torch.ones(segment.end - segment.start, segment.end - segment.start, device=device).tril() > 0
        mask[own, segment.prefix_start : segment.prefix_end] = True
    return mask[None, None]


def flex_block_mask(segments: Sequence[Segment], num_tokens: int, device: torch.device) -> Any:
    """FlexAttention's block mask of the row, padded to a whole number of buckets (padding sees only itself)."""
    from torch.nn.attention.flex_attention import create_block_mask

    length = -(-num_tokens // _FLEX_BUCKET) * _FLEX_BUCKET
    segment_L = torch.arange(length, device=device) + len(segments)  # padding: a segment for each token
    prefix_L = torch.full((length,), -1, device=device)
    by_start = {segment.start: place for place, segment in enumerate(segments)}
    for place, segment in enumerate(segments):
        segment_L[segment.start : segment.end] = place
        if segment.prefix_end > segment.prefix_start:
            prefix_L[segment.start : segment.end] = by_start[segment.prefix_start]

    def sees(batch: Tensor, head: Tensor, q: Tensor, k: Tensor) -> Tensor:
        return (q >= k) & ((segment_L[q] == segment_L[k]) | (prefix_L[q] == segment_L[k]))

    return create_block_mask(sees, None, None, length, length, device=device)  # pyright: ignore[reportArgumentType]


_compiled_flex: Any = None


def _flex_attention(query: Tensor, key: Tensor, value: Tensor, block_mask: Any, scale: float) -> Tensor:
    from torch.nn.attention.flex_attention import flex_attention

    global _compiled_flex
    if _compiled_flex is None:
        _compiled_flex = torch.compile(flex_attention, dynamic=False) if query.is_cuda else flex_attention
    length, padded = query.shape[2], block_mask.seq_lengths[0]
    query, key, value = (F.pad(x, (0, 0, 0, padded - length)) for x in (query, key, value))
    grouped = query.shape[1] != key.shape[1]
    return _compiled_flex(query, key, value, block_mask=block_mask, scale=scale, enable_gqa=grouped)[:, :, :length]


def segment_blocks(segments: Sequence[Segment]) -> tuple[Block, ...]:
    """Every segment on itself, which covers each token of the row once, then every run of completions on its prefix.

    Neighbours under one prefix are one block: eight completions of 64 tokens cost one kernel call of 512 queries, and
    the prefix's keys and values are read where they lie.
    """
    own = [Block(queries=slice(s.start, s.end), keys=slice(s.start, s.end), causal=True) for s in segments]
    shared: list[Block] = []
    for segment in segments:
        if segment.prefix_end == segment.prefix_start:
            continue
        prefix, start = slice(segment.prefix_start, segment.prefix_end), segment.start
        if shared and shared[-1].keys == prefix and shared[-1].queries.stop == start:
            start = shared.pop().queries.start
        shared.append(Block(queries=slice(start, segment.end), keys=prefix, causal=False))
    return (*own, *shared)


class _BlockAttention(torch.autograd.Function):
    """One fused kernel a block. Saves q, k, v, the output and its log-sum-exps: no scores and no copy of a prefix.

    Softmax over a union of keys is the mean of the softmaxes over its parts, weighted by exp(log-sum-exp). With the
    merged output and log-sum-exps, each block's backward kernel gives its exact share of the gradients.
    """

    @staticmethod
    def forward(ctx, query, key, value, blocks, scale):  # pyright: ignore
        output = torch.empty_like(query)
        log_sums = query.new_empty(query.shape[:3], dtype=torch.float32)
        for block in blocks:
            part, part_log_sums = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[:, :, block.queries],
                key[:, :, block.keys],
                value[:, :, block.keys],
                0.0,
                block.causal,
                scale=scale,
            )
            if not block.causal:  # on a prefix: its queries have seen themselves before
                own, own_log_sums = output[:, :, block.queries], log_sums[:, :, block.queries]
                merged = torch.logaddexp(own_log_sums, part_log_sums)
                part = (
                    part * (part_log_sums - merged).exp_()[..., None] + own * (own_log_sums - merged).exp_()[..., None]
                )
                part_log_sums = merged
            output[:, :, block.queries] = part
            log_sums[:, :, block.queries] = part_log_sums
        ctx.save_for_backward(query, key, value, output, log_sums)
        ctx.blocks, ctx.scale = blocks, scale
        return output

    @staticmethod
    def backward(ctx, grad_output):  # pyright: ignore
        query, key, value, output, log_sums = ctx.saved_tensors
        dq, dk, dv = torch.empty_like(query), torch.empty_like(key), torch.empty_like(value)
        for block in ctx.blocks:
            grads = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad_output[:, :, block.queries],
                query[:, :, block.queries],
                key[:, :, block.keys],
                value[:, :, block.keys],
                output[:, :, block.queries],
                log_sums[:, :, block.queries],
                0.0,
                block.causal,
                scale=ctx.scale,
            )
            for whole, tokens, part in zip((dq, dk, dv), (block.queries, block.keys, block.keys), grads, strict=True):
                if block.causal:  # these blocks come first and cover every token
                    whole[:, :, tokens] = part
                else:
                    whole[:, :, tokens] += part
        return dq, dk, dv, None, None


AttentionInterface.register(ATTENTION_NAME, packed_attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
