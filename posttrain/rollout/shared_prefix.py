"""Decoding attention in which the samples of a prompt read one copy of its keys and values.

The prompt's part is one matrix product for all samples of a group instead of one product a sample over repeated keys;
the two parts of the softmax are joined by their log-sum-exps (Hydragen, arXiv 2402.05099, eq. 4-6). What a sample owns
is its generated tokens alone: memory grows with those, and dropping a sample that has ended copies nothing else.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, PreTrainedModel
from transformers.cache_utils import Cache, DynamicLayer
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

_NAME = "posttrain_shared_prefix"


@dataclass(frozen=True, slots=True)
class SharedPrefix:
    """Keys and values of U prompts, and which of them each of B samples starts from."""

    keys: Sequence[Tensor]
    """One [U, kv heads, L, D] for each layer."""
    values: Sequence[Tensor]
    visible_UL: Tensor | None
    """bool, False at padding; None where no prompt is padded."""
    prompt_B: Tensor
    """int64, ascending."""
    slot_B: Tensor
    """Place of each sample in a table of U prompts x `slots` samples."""
    slots: int
    """Samples of the prompt that has the most."""

    @classmethod
    def of(
        cls, keys: Sequence[Tensor], values: Sequence[Tensor], visible_UL: Tensor | None, prompt_B: Tensor
    ) -> "SharedPrefix":
        """prompt_B: ascending; the samples of a prompt are neighbours."""
        counts_U = prompt_B.bincount(minlength=keys[0].shape[0])
        slots = int(counts_U.max())
        place_B = torch.arange(len(prompt_B), device=prompt_B.device) - (counts_U.cumsum(0) - counts_U)[prompt_B]
        return cls(keys, values, visible_UL, prompt_B, prompt_B * slots + place_B, slots)

    def kept(self, kept: Tensor) -> "SharedPrefix":
        """For the samples at these places alone. Prompts without samples go once they are an eighth of all."""
        prompts, prompt_B = self.prompt_B[kept].unique_consecutive(return_inverse=True)
        if len(prompts) > 0.875 * self.keys[0].shape[0]:
            return SharedPrefix.of(self.keys, self.values, self.visible_UL, self.prompt_B[kept])
        visible_UL = self.visible_UL if self.visible_UL is None else self.visible_UL[prompts]
        return SharedPrefix.of([k[prompts] for k in self.keys], [v[prompts] for v in self.values], visible_UL, prompt_B)

    def attend(self, layer: int, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """query [B, heads, 1, D], own key and value [B, kv heads, T, D] -> [B, 1, heads, D]."""
        batch, heads, _, width = query.shape
        kv_heads = key.shape[1]
        repeats = heads // kv_heads
        # The query heads that read one kv head are rows of one product: nothing is repeated.
        query = query.reshape(batch, kv_heads, repeats, width) * scale
        own, own_logsum = _attend(query, key, value, None)
        num_prompts = self.keys[layer].shape[0]
        table = query.new_zeros(num_prompts * self.slots, kv_heads, repeats, width)
        table[self.slot_B] = query
        table = table.unflatten(0, (num_prompts, self.slots)).transpose(1, 2).flatten(2, 3)
        hidden_UL = None if self.visible_UL is None else ~self.visible_UL[:, None, None, :]
        shared, shared_logsum = _attend(table, self.keys[layer], self.values[layer], hidden_UL)
        shared, shared_logsum = (
            x.unflatten(2, (self.slots, repeats)).transpose(1, 2).flatten(0, 1)[self.slot_B]
            for x in (shared, shared_logsum)
        )
        joined = torch.lerp(own, shared, torch.sigmoid(shared_logsum - own_logsum).to(own.dtype))
        return joined.reshape(batch, 1, heads, width)


def _attend(query: Tensor, key: Tensor, value: Tensor, hidden: Tensor | None) -> tuple[Tensor, Tensor]:
    """Attention [.., Q, D] over [.., K, D] and its float32 log-sum-exps [.., Q, 1]; `hidden` True is not read."""
    scores = (query @ key.transpose(-1, -2)).float()
    if hidden is not None:
        scores.masked_fill_(hidden, float("-inf"))
    logsum = scores.logsumexp(-1, keepdim=True)
    return scores.sub_(logsum).exp_().to(value.dtype) @ value, logsum


class RoomyLayer(DynamicLayer):
    """Keys and values [B, heads, T, D] of one layer in buffers with room: a step writes one token and copies none."""

    def __init__(self) -> None:
        super().__init__()
        self.length = 0

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, self.length = self.length, self.length + key_states.shape[2]
        self.keys = _written(self.keys, key_states, start)
        self.values = _written(self.values, value_states, start)
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]

    def get_seq_length(self) -> int:
        return self.length


def _written(buffer: Tensor | None, states: Tensor, start: int) -> Tensor:
    """The buffer with `states` at `start`; a larger one, with what it held, where they do not fit."""
    batch, heads, added, width = states.shape
    end = start + added
    if buffer is None or start == 0:
        buffer = states.new_empty(batch, heads, end + 32, width)
    elif end > buffer.shape[2]:
        larger = states.new_empty(batch, heads, end + max(32, end // 2), width)
        larger[:, :, :start] = buffer[:, :, :start]
        buffer = larger
    buffer[:, :, start:end] = states
    return buffer


def cached(cache: Cache) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values of every layer after a prefill."""
    layers = [layer for layer in cache.layers if isinstance(layer, DynamicLayer)]
    keys, values = [layer.keys for layer in layers], [layer.values for layer in layers]
    return [k for k in keys if k is not None], [v for v in values if v is not None]


def own_cache(num_layers: int) -> Cache:
    """An empty cache for the tokens that samples generate."""
    return Cache(layers=[RoomyLayer() for _ in range(num_layers)])


@contextmanager
def shared_prefix_decoding(model: PreTrainedModel) -> Iterator[None]:
    """Within it, the language model reads a keyword `shared_prefix`; without that keyword it is transformers' SDPA."""
    text = model.config.get_text_config()
    before = text._attn_implementation or "sdpa"
    _set_attention(model, _NAME)
    try:
        yield
    finally:
        _set_attention(model, before)


def _set_attention(model: PreTrainedModel, name: str) -> None:
    has_parts = model.config.get_text_config() is not model.config
    model.set_attn_implementation({"text_config": name} if has_parts else name)


def _shared_prefix_attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float | None = None,
    shared_prefix: SharedPrefix | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """transformers' attention interface."""
    if shared_prefix is None:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **kwargs)
    scale = scaling if scaling is not None else query.shape[-1] ** -0.5
    layer: Any = module.layer_idx
    return shared_prefix.attend(layer, query, key, value, scale), None


AttentionInterface.register(_NAME, _shared_prefix_attention)
AttentionMaskInterface.register(_NAME, sdpa_mask)
