"""Keys and values of turns that have ended: the same trajectory's next turn begins with their tokens, and reads on."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Past:
    """Tokens that a forward pass has seen, from a conversation's first one on."""

    token_ids: np.ndarray
    """[P] int64."""
    image_keys: tuple[str, ...]
    """Of the images among them."""
    keys: list[Tensor]
    """[kv heads, P, D] for each layer."""
    values: list[Tensor]

    def __len__(self) -> int:
        return len(self.token_ids)

    def shared_with(self, token_ids: np.ndarray, image_keys: Sequence[str], image_starts: np.ndarray) -> "Past":
        """As much of it as a prompt begins with; the prompt's last token is left to be forwarded, and no image is cut.

        image_starts: the place of each image's first token.
        """
        most = min(len(self), len(token_ids) - 1)
        differ = np.flatnonzero(self.token_ids[:most] != token_ids[:most])
        end = int(differ[0]) if len(differ) else most
        same = 0
        for ours, theirs in zip(self.image_keys, image_keys, strict=False):
            if ours != theirs:
                break
            same += 1
        if same < len(image_keys):
            end = min(end, int(image_starts[same]))
        num_images = int(np.searchsorted(image_starts, end))
        if num_images == len(self.image_keys) and end == len(self):
            return self
        return Past(
            token_ids=self.token_ids[:end],
            image_keys=self.image_keys[:num_images],
            keys=[key[:, :end] for key in self.keys],
            values=[value[:, :end] for value in self.values],
        )


class KeptPasts:
    """Pasts that may be gone on with, by the key of who may, the oldest first."""

    def __init__(self) -> None:
        self._pasts: dict[int, Past] = {}
        self._num_tokens = 0

    def put(self, key: int, past: Past) -> None:
        self.take(key)
        self._pasts[key] = past
        self._num_tokens += len(past)

    def take(self, key: int) -> Past | None:
        """It is kept no more: who goes on has a longer one."""
        past = self._pasts.pop(key, None)
        if past is not None:
            self._num_tokens -= len(past)
        return past

    def shrink(self, max_tokens: int) -> None:
        """Forgets the oldest until the others have at most so many tokens."""
        while self._pasts and self._num_tokens > max_tokens:
            self.take(next(iter(self._pasts)))

    def clear(self) -> None:
        self._pasts.clear()
        self._num_tokens = 0


class Continued:
    """Where tokens stand in a forward pass over U prompts that begin with pasts: C columns, of which the first ones
    hold the pasts, as many as the longest has, and the others the tokens that are forwarded."""

    def __init__(self, pasts: Sequence[Past], lengths_U: np.ndarray) -> None:
        """lengths_U: of the whole prompts."""
        self._pasts = pasts
        self._starts_U1 = np.array([len(past) for past in pasts])[:, None]
        self._lengths_U1 = lengths_U[:, None]
        self._first = int(self._starts_U1.max())

    def cache(self) -> DynamicCache:
        """The pasts, padded on the right; they give up their own, layer by layer, so that nothing is held twice."""
        cache = DynamicCache()
        for layer in range(len(self._pasts[0].keys)):
            cache.update(
                self._padded([past.keys for past in self._pasts], layer),
                self._padded([past.values for past in self._pasts], layer),
                layer,
            )
        return cache

    def _padded(self, states: Sequence[list[Tensor]], layer: int) -> Tensor:
        first = states[0][layer]
        padded = first.new_zeros(len(states), first.shape[0], self._first, first.shape[-1])
        for row, held in enumerate(states):
            padded[row, :, : held[layer].shape[1]] = held[layer]
            held[layer] = first[:, :0]
        return padded

    def mask_UC(self, device: torch.device) -> Tensor:
        """int64, 1 where a token stands."""
        num_columns = self._first + int((self._lengths_U1 - self._starts_U1).max())
        column_C = np.arange(num_columns)
        is_new = (column_C >= self._first) & (column_C < self._first + self._lengths_U1 - self._starts_U1)
        return torch.from_numpy(((column_C < self._starts_U1) | is_new).astype(np.int64)).to(device)

    def joined(self, states: Tensor) -> Tensor:
        """[U, kv heads, C, D] -> [U, kv heads, L, D], where every prompt's tokens are the first ones."""
        token_L = np.arange(int(self._lengths_U1.max()))
        column_UL = np.where(token_L < self._starts_U1, token_L, token_L - self._starts_U1 + self._first)
        index = torch.from_numpy(column_UL.clip(max=states.shape[2] - 1)).to(states.device)
        _, heads, _, width = states.shape
        return states.gather(2, index[:, None, :, None].expand(-1, heads, -1, width))
