"""The model and the random sequences of the whole-step benchmarks: a small Qwen3-VL, proportioned as a real one."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from posttrain.model import ImagePatches, ModelFacts, TokenSequence, facts_of
from posttrain.model.families import Family
from posttrain.model.tiny import TinySize, build_tiny
from transformers import AutoModelForImageTextToText, AutoProcessor, PreTrainedModel, ProcessorMixin

SIZE = TinySize(
    hidden=256,
    intermediate=768,
    layers=6,
    heads=4,
    kv_heads=2,
    head_dim=64,
    vocab=8192,
    max_positions=16_384,
    vision_hidden=64,
    vision_intermediate=256,
    vision_layers=4,
    vision_heads=4,
    num_deepstack=3,
    patch=16,
    image_side=256,
    initializer_range=0.04,
    rope_theta=1e6,
)
"""6.8 M parameters of language, 0.8 M of vision; vision costs about a fifth of a step, as it does in Qwen3-VL-4B."""

TEACHER = replace(SIZE, hidden=384, intermediate=1152, layers=8, heads=6)
"""Half as wide and a third as deep again as the student: 14 M parameters of language."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    model: PreTrainedModel
    processor: ProcessorMixin
    facts: ModelFacts


def load_subject(folder: Path, size: TinySize = SIZE, *, seed: int = 0) -> Subject:
    """The benchmarks' model, built in `folder` on first use: random weights, float32, in training mode."""
    if not (folder / "config.json").is_file():
        build_tiny(Family.QWEN3_VL, folder, size=size, seed=seed)
    model = AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).train()
    processor = AutoProcessor.from_pretrained(folder)
    return Subject(model=model, processor=processor, facts=facts_of(model.config, processor.tokenizer))


class Draw:
    """Random text, images and lengths from one seed."""

    def __init__(self, facts: ModelFacts, seed: int) -> None:
        self.facts = facts
        self.random = random.Random(seed)
        self.arrays = np.random.default_rng(seed)
        self.pixels = torch.Generator().manual_seed(seed)
        self.images_drawn = 0
        special = (*facts.banned_token_ids, *facts.eos_token_ids, facts.pad_token_id)
        self.words = np.setdiff1d(np.arange(facts.vocab_size), special)

    def text(self, num_tokens: int) -> np.ndarray:
        return self.arrays.choice(self.words, num_tokens)

    def length(self, median: float, spread: float, least: float, most: float) -> int:
        """Log-normal, clipped."""
        return int(min(most, max(least, self.random.lognormvariate(math.log(median), spread))))

    def image(self, height: int, width: int) -> ImagePatches:
        """An image of height x width patches; each has a key of its own."""
        self.images_drawn += 1
        numbers = 3 * self.facts.temporal_patch_size * self.facts.patch_size**2
        return ImagePatches(
            pixel_values_PD=torch.randn(height * width, numbers, generator=self.pixels),
            grid_thw=(1, height, width),
            key=f"image {self.images_drawn}",
        )

    def prompt(self, num_text_tokens: int, images: Sequence[ImagePatches]) -> np.ndarray:
        """A quarter of the text, the images between their marks, and the rest of the text."""
        before = num_text_tokens // 4
        parts = [self.text(before)]
        for image in images:
            parts.append(np.array([self.facts.vision_start_token_id]))
            parts.append(np.full(image.num_tokens(self.facts.merge_size), self.facts.image_token_id))
            parts.append(np.array([self.facts.vision_end_token_id]))
        return np.concatenate([*parts, self.text(num_text_tokens - before)]).astype(np.int64)


def join(
    prompt: np.ndarray,
    completion: np.ndarray,
    images: Sequence[ImagePatches],
    *,
    shared: bool,
    advantage: float | None = None,
) -> TokenSequence:
    """A sequence that trains on its completion; `shared` says that other sequences may have the same prompt."""
    token_ids = np.concatenate([prompt, completion]).astype(np.int64)
    streams = {} if advantage is None else {"advantages": np.full(len(token_ids), advantage, dtype=np.float32)}
    return TokenSequence(
        token_ids=token_ids,
        mask=np.arange(len(token_ids)) >= len(prompt),
        images=tuple(images),
        prefix_length=len(prompt) if shared else 0,
        streams=streams,
    )
