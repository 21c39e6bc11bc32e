"""Random token sequences for the packing tests, and what transformers itself says of them, unpacked."""

from pathlib import Path

import numpy as np
import torch
from posttrain.model import ImagePatches, ModelFacts, TokenSequence, facts_of
from posttrain.model.families import Family
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoTokenizer, PreTrainedModel

FAMILIES = tuple(Family)
WITH_VISION = tuple(family for family in Family if family is not Family.QWEN3)


def load(folder: Path) -> tuple[PreTrainedModel, ModelFacts]:
    """A fresh float32 model of a tiny checkpoint, with transformers' SDPA attention."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    auto = AutoModelForCausalLM if folder.name == Family.QWEN3 else AutoModelForImageTextToText
    model = auto.from_pretrained(folder, dtype=torch.float32)
    return model, facts_of(model.config, tokenizer)


def text(rng: np.random.Generator, num_tokens: int) -> np.ndarray:
    return rng.integers(20, 200, num_tokens)  # bytes: no special token


def image(facts: ModelFacts, height: int, width: int, seed: int) -> ImagePatches:
    numbers = 3 * facts.temporal_patch_size * facts.patch_size**2
    pixels = torch.randn(height * width, numbers, generator=torch.Generator().manual_seed(seed))
    return ImagePatches(pixel_values_PD=pixels, grid_thw=(1, height, width), key=f"{height}x{width} {seed}")


def with_images(facts: ModelFacts, rng: np.random.Generator, images: list[ImagePatches]) -> np.ndarray:
    """Text with the images between their marks."""
    parts = [text(rng, 5)]
    for one in images:
        marks = np.array([facts.vision_start_token_id]), np.array([facts.vision_end_token_id])
        parts += [marks[0], np.full(one.num_tokens(facts.merge_size), facts.image_token_id), marks[1], text(rng, 3)]
    return np.concatenate(parts).astype(np.int64)


def groups(facts: ModelFacts, *, prompts: int = 3, completions: int = 4, tools: bool = True) -> list[TokenSequence]:
    """Groups of completions under prompts with one or two images, some of them shared between prompts.

    With `tools`, the third completion of each group is `A0 E0 A1`, and E0, which is not trained on, holds an image.
    Streams: behaviour_logprobs of about -6, advantages that are one number a sequence.
    """
    rng = np.random.default_rng(0)
    drawn = [image(facts, 4, 6, 1), image(facts, 8, 4, 2)] if facts.has_vision else []
    found = []
    for p in range(prompts):
        held = [drawn[:1], drawn, drawn[1:]][p % 3]
        prompt = with_images(facts, rng, held)
        for c in range(completions):
            own, images = [text(rng, 7 + c)], list(held)
            mask = [np.ones(7 + c, dtype=bool)]
            if tools and c == 2:
                shown = [image(facts, 4, 4, 9)] if facts.has_vision else []
                result, answer = with_images(facts, rng, shown), text(rng, 4)
                own += [result, answer]
                mask += [np.zeros(len(result), dtype=bool), np.ones(4, dtype=bool)]
                images += shown
            ids = np.concatenate([prompt, *own]).astype(np.int64)
            streams = {
                "behaviour_logprobs": rng.normal(-6, 0.5, len(ids)).astype(np.float32),
                "advantages": np.full(len(ids), rng.normal(), dtype=np.float32),
            }
            found.append(
                TokenSequence(
                    token_ids=ids,
                    mask=np.concatenate([np.zeros(len(prompt), dtype=bool), *mask]),
                    images=tuple(images),
                    prefix_length=len(prompt),
                    streams=streams,
                )
            )
    return found


def unpacked_logprobs(model: PreTrainedModel, facts: ModelFacts, sequence: TokenSequence) -> Tensor:
    """[trained tokens] log-probabilities by transformers' own forward pass of this sequence alone, differentiable."""
    ids = torch.from_numpy(sequence.token_ids)[None]
    vision = {}
    if sequence.images:
        vision = {
            "pixel_values": torch.cat([one.pixel_values_PD for one in sequence.images]),
            "image_grid_thw": torch.tensor([one.grid_thw for one in sequence.images]),
            "mm_token_type_ids": (ids == facts.image_token_id).int(),
        }
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids), **vision).logits[0, :-1]
    logprobs = logits.log_softmax(-1).gather(1, ids[0, 1:, None])[:, 0]
    return logprobs[torch.from_numpy(sequence.mask[1:])]


def gradients_of(model: torch.nn.Module) -> dict[str, Tensor]:
    """All gradients by parameter name; the model's own are dropped."""
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


def worst_gradient_error(found: dict[str, Tensor], reference: dict[str, Tensor]) -> float:
    """Largest, over parameters, of max |difference| / max |reference|; both sides must have the same parameters."""
    assert found.keys() == reference.keys() and reference
    return max(
        float((found[name] - g).abs().max() / g.abs().max().clamp(min=1e-20))
        for name, g in reference.items()
        if g.abs().max() > 0 or found[name].abs().max() > 0
    )
