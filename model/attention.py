"""Attention over a packed row: each segment sees its prefix and, causally, itself; nothing leaks between completions.

Registered with transformers under one name; the row's segments travel as a keyword argument through the decoder layers.
Without segments (generate(), padded batches) it is transformers' own SDPA. Three kernels, numerically equal:
`segments` one fused kernel a segment, saving no copy of a prefix (the fastest on a CPU);
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


@dataclass(slots=True)
class RowAttention:
    """How one row attends: its segments, the kernel, and what that kernel needs, made once for all layers."""

    segments: tuple[Segment, ...]
    kernel: Kernel
    mask: Any = None

    @classmethod
    def of(cls, segments: Sequence[Segment], num_tokens: int, device: torch.device, kernel: Kernel) -> "RowAttention":
        match kernel:
            case Kernel.SEGMENTS:
                mask = None
            case Kernel.DENSE:
                mask = dense_mask(segments, num_tokens, device)
            case Kernel.FLEX:
                mask = flex_block_mask(segments, num_tokens, device)
        return cls(segments=tuple(segments), kernel=kernel, mask=mask)


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
    """transformers' attention interface. query [1, heads, L, D], key and value [1, kv heads, L, D] -> [1, L, heads, D]."""
    if row_attention is None:
        output, _ = sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **kwargs
        )
        return output, None
    if dropout:
        raise ValueError("attention dropout is not supported in packed rows; set attention_dropout to 0")
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    match row_attention.kernel:
        case Kernel.SEGMENTS:
            output = _SegmentAttention.apply(query, key, value, row_attention.segments, scale)
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


class _SegmentAttention(torch.autograd.Function):
    """One fused kernel a segment over [prefix | own] keys; saves q, k, v, out and log-sum-exps: never prefix copies."""

    @staticmethod
    def forward(ctx, query, key, value, segments, scale):  # pyright: ignore
        output = torch.empty_like(query)
        log_sums = []
        for segment in segments:
            keys, values, mask = _segment_keys(key, value, segment, query.shape[1], query.dtype)
            own = slice(segment.start, segment.end)
            output[:, :, own], log_sum = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
                query[:, :, own], keys, values, 0.0, mask is None, attn_mask=mask, scale=scale
            )
            log_sums.append(log_sum)
        ctx.save_for_backward(query, key, value, output, *log_sums)
        ctx.segments, ctx.scale = segments, scale
        return output

    @staticmethod
    def backward(ctx, grad_output):  # pyright: ignore
        query, key, value, output, *log_sums = ctx.saved_tensors
        heads, kv_heads = query.shape[1], key.shape[1]
        dq, dk, dv = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for segment, log_sum in zip(ctx.segments, log_sums, strict=True):
            keys, values, mask = _segment_keys(key, value, segment, heads, query.dtype)
            own = slice(segment.start, segment.end)
            dq[:, :, own], dkeys, dvalues = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward(
                grad_output[:, :, own],
                query[:, :, own],
                keys,
                values,
                output[:, :, own],
                log_sum,
                0.0,
                mask is None,
                attn_mask=mask,
                scale=ctx.scale,
            )
            if heads != kv_heads:
                dkeys = dkeys.unflatten(1, (kv_heads, -1)).sum(2)
                dvalues = dvalues.unflatten(1, (kv_heads, -1)).sum(2)
            shared = segment.prefix_end - segment.prefix_start
            prefix = slice(segment.prefix_start, segment.prefix_end)
            if shared:
                dk[:, :, prefix] += dkeys[:, :, :shared]
                dv[:, :, prefix] += dvalues[:, :, :shared]
            dk[:, :, own] += dkeys[:, :, shared:]
            dv[:, :, own] += dvalues[:, :, shared:]
        return dq, dk, dv, None, None


def _segment_keys(
    key: Tensor, value: Tensor, segment: Segment, heads: int, dtype: torch.dtype
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Keys and values [1, heads, prefix + own, D] of a segment, and its additive mask; None where plain causal serves."""
    own = slice(segment.start, segment.end)
    shared = segment.prefix_end - segment.prefix_start
    if shared:
        prefix = slice(segment.prefix_start, segment.prefix_end)
        key = torch.cat([key[:, :, prefix], key[:, :, own]], 2)
        value = torch.cat([value[:, :, prefix], value[:, :, own]], 2)
        mask = _lower_right_mask(segment.end - segment.start, shared, dtype)
    else:
        key, value, mask = key[:, :, own], value[:, :, own], None
    repeats = heads // key.shape[1]
    if repeats > 1:
        key, value = key.repeat_interleave(repeats, 1), value.repeat_interleave(repeats, 1)
    return key, value, mask


_CACHED_MASK_ENTRIES = 1 << 20
_masks: dict[tuple[int, int, torch.dtype], Tensor] = {}


def _lower_right_mask(own: int, shared: int, dtype: torch.dtype) -> Tensor:
    """Additive [own, shared + own]: all of the prefix, and causally the segment. Layers of a row share it."""
    found = _masks.get((own, shared, dtype))
    if found is None:
        found = torch.full((own, shared + own), float("-inf"), dtype=dtype).triu_(shared + 1)
        if len(_masks) >= 64:
            _masks.clear()
        if found.numel() <= _CACHED_MASK_ENTRIES:
            _masks[own, shared, dtype] = found
    return found


AttentionInterface.register(ATTENTION_NAME, packed_attention)
AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
