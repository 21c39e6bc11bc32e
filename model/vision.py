"""Images on their way into the language model: features once per distinct image, placed where their tokens stand.

The parts of transformers' models are called one by one (tower, embeddings, language model), as their own forward pass
does, because features that are shared between occurrences, or kept between passes, cannot be handed to it in every
version that is supported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .families import ModelFacts
from .sequences import ImagePatches


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """What the vision tower gives for one image: merged tokens [n, H], and the same for each DeepStack level."""

    merged: Tensor
    deepstack: tuple[Tensor, ...]

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        return (self.merged, *self.deepstack)

    @property
    def num_bytes(self) -> int:
        return sum(t.numel() * t.element_size() for t in self.tensors)


def run_tower(inner: Any, facts: ModelFacts, images: Sequence[ImagePatches]) -> list[ImageFeatures]:
    """Features of each image. `inner`: the transformers model without head, with `visual` and `language_model`."""
    tower: nn.Module = inner.visual
    first = next(tower.parameters())
    pixels = torch.cat([image.pixel_values_PD for image in images]).to(first.device, first.dtype, non_blocking=True)
    grids = torch.tensor([image.grid_thw for image in images], device=first.device)
    output = tower(pixels, grid_thw=grids, return_dict=True)
    counts = [image.num_tokens(facts.merge_size) for image in images]
    levels = [level.split(counts) for level in (output.deepstack_features if facts.num_deepstack else ())]
    return [
        ImageFeatures(merged=merged, deepstack=tuple(level[place] for level in levels))
        for place, merged in enumerate(output.pooler_output.split(counts))
    ]


def language_inputs(
    inner: Any, facts: ModelFacts, token_ids_BL: Tensor, occurrences: Sequence[ImageFeatures]
) -> Mapping[str, Any]:
    """Keyword arguments of `inner.language_model`: embeddings with every image in its place, and its DeepStack levels.

    occurrences: the features of each image that stands in `token_ids_BL`, in reading order, row by row; an image that
    stands twice is named twice. Raises ValueError naming both numbers where tokens and features differ.
    """
    embeddings_BLH = inner.get_input_embeddings()(token_ids_BL)
    if not occurrences:
        return {"inputs_embeds": embeddings_BLH}
    is_image_BL = token_ids_BL == facts.image_token_id
    merged = torch.cat([features.merged for features in occurrences]).to(embeddings_BLH.dtype)
    if int(is_image_BL.sum()) != merged.shape[0]:
        raise ValueError(f"{int(is_image_BL.sum())} image tokens, but the images have {merged.shape[0]} merged patches")
    inputs: dict[str, Any] = {"inputs_embeds": embeddings_BLH.masked_scatter(is_image_BL[..., None], merged)}
    if facts.num_deepstack:
        inputs["visual_pos_masks"] = is_image_BL
        inputs["deepstack_visual_embeds"] = [
            torch.cat([features.deepstack[level] for features in occurrences]) for level in range(facts.num_deepstack)
        ]
    return inputs
