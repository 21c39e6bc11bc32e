"""The two forward passes of sampling: over prompts that wait, and over one more token of every sample that runs."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.cache_utils import DynamicCache, DynamicLayer

from posttrain.model import ImagePatches, ModelFacts, PackedPolicy, image_spans, rope_positions
from posttrain.model.policy import FeatureCache
from posttrain.model.vision import ImageFeatures, language_inputs, run_tower
from posttrain.rollout.continuous_kept import Continued, Past
from posttrain.rollout.shared_prefix import Decoding, shared_prefix_decoding


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prompt:
    """A prompt and where its tokens stand."""

    key: object
    """Equal for equal tokens and images."""
    token_ids: np.ndarray
    images: tuple[ImagePatches, ...]
    positions_RT: np.ndarray
    image_starts: np.ndarray
    """The place of each image's first token."""
    following: int
    """The rotary position after it."""

    @classmethod
    def of(cls, token_ids: np.ndarray, images: Sequence[ImagePatches], facts: ModelFacts) -> "Prompt":
        """Raises ValueError where the image tokens differ from the images' merged patches, or there is no token."""
        if not len(token_ids):
            raise ValueError("a prompt has no token: there is nothing to predict an answer from")
        if images and not facts.has_vision:
            raise ValueError(f"a prompt has {len(images)} images, but the model reads text alone")
        grids = [image.grid_thw for image in images]
        tokens: Any = {"image_token_id": facts.image_token_id, "merge_size": facts.merge_size}
        positions_RT, following = rope_positions(token_ids, grids, rows=facts.position_rows, **tokens)
        spans = image_spans(token_ids, grids, **tokens)
        return cls(
            key=(token_ids.tobytes(), *(image.key for image in images)),
            token_ids=token_ids,
            images=tuple(images),
            positions_RT=positions_RT,
            image_starts=np.array([start for start, _ in spans], dtype=np.int64),
            following=following,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Prefill:
    """What a forward pass over U prompts leaves."""

    hidden_UH: Tensor
    """Last hidden state of each prompt."""
    keys: list[Tensor]
    """[U, kv heads, L, D] for each layer; a prompt fills the first of the L."""
    values: list[Tensor]
    lengths_U: np.ndarray

    def part(self, start: int, end: int) -> "Prefill":
        """That of the prompts start .. end - 1."""
        if end - start == len(self.lengths_U):
            return self
        part = slice(start, end)
        return Prefill(
            hidden_UH=self.hidden_UH[part],
            keys=[keys[part].clone() for keys in self.keys],  # a table that took over a view would hold the whole
            values=[values[part].clone() for values in self.values],
            lengths_U=self.lengths_U[part],
        )


class ForwardPasses:
    """Forward passes of a policy as it samples: in eval mode, without gradients.

    autocast: the dtype of the trainer's mixed precision, None without it or where the caller has entered it.
    """

    def __init__(self, policy: PackedPolicy, facts: ModelFacts, autocast: torch.dtype | None) -> None:
        self.policy, self.facts, self.autocast = policy, facts, autocast
        self.device = next(policy.parameters()).device
        self.weights_version = 0
        self._inside = False
        self._head_VH: Tensor | None = None

    @contextmanager
    def inference(self) -> Iterator[None]:
        """The passes are made inside. The model leaves with the modes that it had: no dropout, no gradient
        checkpointing meanwhile. Entering it once more inside costs nothing."""
        if self._inside:
            yield
            return
        training = [module for module in self.policy.modules() if module.training]
        if training:
            self.policy.eval()
        self._inside = True
        try:
            mixed = torch.autocast(self.device.type, self.autocast) if self.autocast else nullcontext()
            with torch.no_grad(), mixed, shared_prefix_decoding(self.policy.base_model):
                yield
        finally:
            self._inside, self._head_VH = False, None
            for module in training:
                module.training = True

    def prefill(self, prompts: Sequence[Prompt], seen: FeatureCache, pasts: Sequence[Past] = ()) -> Prefill:
        """Prompts padded on the right, which causality hides; each distinct image passes the tower once.

        seen: features of images at the present weights, to be used and added to. pasts: what each prompt begins with,
        at the same weights; for all of them or none. Then their other tokens alone are forwarded.
        """
        facts, device = self.facts, self.device
        lengths_U = np.array([len(prompt.token_ids) for prompt in prompts])
        starts_U = np.array([len(past) for past in pasts]) if pasts else np.zeros_like(lengths_U)
        new_U = lengths_U - starts_U
        token_ids_UL = np.full((len(prompts), int(new_U.max())), facts.pad_token_id, dtype=np.int64)
        positions_RUL = np.zeros((facts.position_rows, *token_ids_UL.shape), dtype=np.int64)
        for u, prompt in enumerate(prompts):
            token_ids_UL[u, : new_U[u]] = prompt.token_ids[starts_U[u] :]
            positions_RUL[:, u, : new_U[u]] = prompt.positions_RT[:, starts_U[u] :]
        token_ids, positions = torch.from_numpy(token_ids_UL).to(device), torch.from_numpy(positions_RUL).to(device)
        inner: Any = self.policy.base_model.model
        if facts.has_vision:
            num_seen = [len(past.image_keys) for past in pasts] or [0] * len(prompts)
            images = [image for prompt, n in zip(prompts, num_seen, strict=True) for image in prompt.images[n:]]
            features = self._features(images, seen)
            text, inputs = inner.language_model, language_inputs(inner, facts, token_ids, features)
        else:
            text, inputs, positions = inner, {"input_ids": token_ids}, positions[0]
        continued = Continued(pasts, lengths_U) if pasts else None
        cache = continued.cache() if continued else DynamicCache()
        if continued:
            inputs = {**inputs, "attention_mask": continued.mask_UC(device)}
        output = text(position_ids=positions, past_key_values=cache, use_cache=True, **inputs)
        keys, values = [], []
        for layer in cache.layers:
            if isinstance(layer, DynamicLayer) and layer.keys is not None and layer.values is not None:
                both = self._kept(layer.keys), self._kept(layer.values)
                layer.keys = layer.values = None
                key, value = map(continued.joined, both) if continued else both
                keys.append(key)
                values.append(value)
        last_U = torch.from_numpy(new_U - 1).to(device)
        return Prefill(
            hidden_UH=output.last_hidden_state[torch.arange(len(prompts), device=device), last_U],
            keys=keys,
            values=values,
            lengths_U=lengths_U,
        )

    def decode(self, tokens_B: np.ndarray, positions_B: np.ndarray, decoding: Sequence[Decoding]) -> Tensor:
        """[B, H] last hidden states after one more token of every row of `decoding`."""
        inner: Any = self.policy.base_model.model
        tokens_B1 = torch.from_numpy(tokens_B).to(self.device)[:, None]
        positions = torch.from_numpy(positions_B).to(self.device)[:, None]
        mask: Any = {"full_attention": None}  # the new token alone: nothing to hide
        text = inner
        if self.facts.has_vision:
            text, positions, mask = inner.language_model, positions.expand(3, -1, -1), None
        output = text(
            input_ids=tokens_B1, position_ids=positions, attention_mask=mask, use_cache=False, decoding=decoding
        )
        return output.last_hidden_state[:, -1]

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """[N, V] float32, rounded as the trainer's head rounds: a product in the hidden states' dtype, then float32."""
        head_VH = self._head_VH
        if head_VH is None:
            head: Any = self.policy.base_model.get_output_embeddings()
            head_VH = self._head_VH = head.weight.to(hidden_NH.dtype)
        with torch.autocast(self.device.type, enabled=False):
            return torch.mm(hidden_NH, head_VH.t()).float()

    def _kept(self, states: Tensor) -> Tensor:
        """In the dtype that attention computes in: under autocast, norms and rotary positions give float32 keys."""
        is_mixed = torch.is_autocast_enabled(self.device.type)
        return states.to(torch.get_autocast_dtype(self.device.type)) if is_mixed else states

    def _features(self, images: Sequence[ImagePatches], seen: FeatureCache) -> list[ImageFeatures]:
        """Features of every occurrence, in order."""
        features = {image.key: seen.get(image.key) for image in images}
        missing = {image.key: image for image in images if features[image.key] is None}
        if missing:
            found = run_tower(self.policy.base_model.model, self.facts, list(missing.values()))
            for key, made in zip(missing, found, strict=True):
                features[key] = made
                seen.put(key, made)
        return [made for image in images if (made := features[image.key]) is not None]
