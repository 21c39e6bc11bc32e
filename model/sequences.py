"""One training sequence: its tokens, which of them are trained on, its images, and named streams of numbers."""

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
import torch


@dataclass(frozen=True, slots=True, kw_only=True)
class ImagePatches:
    """One image as the vision tower reads it: resized once, cut into patches, normalised."""

    pixel_values_PD: torch.Tensor
    """[P, channels * temporal patch * patch * patch] float32."""
    grid_thw: tuple[int, int, int]
    """Patches in time, height and width; their product is P."""
    key: str
    """Hash of the pixels: images with equal keys are forwarded once."""

    def __post_init__(self) -> None:
        t, h, w = self.grid_thw
        if self.pixel_values_PD.shape[0] != t * h * w:
            raise ValueError(f"{self.pixel_values_PD.shape[0]} patches do not fill a grid of {t} x {h} x {w}")

    @property
    def num_patches(self) -> int:
        return self.pixel_values_PD.shape[0]

    def num_tokens(self, merge_size: int) -> int:
        """Language-model tokens of the image: merged patches."""
        return self.num_patches // merge_size**2


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenSequence:
    """One sequence. Index t speaks of token t: `logprobs[t] = log p(token_ids[t] | token_ids[:t])`, in nats.

    A group of G completions of one prompt is G sequences whose first `prefix_length` tokens (and the images in them)
    agree: the packer finds them by those tokens and forwards the prefix once.
    Example with symbols, P prompt, A policy, E environment: `P0 A0 E0 A1`, mask False True False True, prefix P0.
    """

    token_ids: np.ndarray
    """[T] int64; image tokens are expanded, one per merged patch."""
    mask: np.ndarray
    """[T] bool; True = trained on, nothing else."""
    images: tuple[ImagePatches, ...] = ()
    """In the order of their tokens."""
    prefix_length: int = 0
    """Leading tokens that other sequences may share; none of them is trained on."""
    streams: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Named [T] float32: behaviour_logprobs, advantages, ... aligned with token_ids; read where mask is True."""
    tables: Mapping[str, np.ndarray] = field(default_factory=dict)
    """Named [trained tokens, columns] of any dtype: what is too wide for a stream, for the trained tokens alone."""
    lane: int = 0
    """Sequences of different lanes never share a row: they are compared with different teachers."""

    def __post_init__(self) -> None:
        n = len(self.token_ids)
        if self.token_ids.dtype != np.int64 or self.mask.dtype != np.bool_:
            raise TypeError(f"token_ids must be int64 and mask bool, got {self.token_ids.dtype} and {self.mask.dtype}")
        if len(self.mask) != n:
            raise ValueError(f"mask has {len(self.mask)} entries for {n} tokens")
        for name, stream in self.streams.items():
            if stream.shape != (n,):
                raise ValueError(f"stream '{name}' has shape {stream.shape} for {n} tokens")
        for name, table in self.tables.items():
            if table.ndim != 2 or len(table) != self.mask.sum():
                raise ValueError(f"table '{name}' has shape {table.shape} for {self.mask.sum()} trained tokens")
        if not 0 <= self.prefix_length <= n or self.mask[: self.prefix_length].any():
            raise ValueError(f"the first {self.prefix_length} tokens are a shared prefix and cannot be trained on")
        if n and self.mask[0]:
            raise ValueError("the first token of a sequence has nothing to be predicted from: it cannot be trained on")

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_trained(self) -> int:
        return int(self.mask.sum())
