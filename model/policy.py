"""The packed forward pass: a row in, the loss and the log-probabilities of its trained tokens out."""

from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from .attention import ATTENTION_NAME, Kernel, RowAttention, default_kernel
from .families import ModelFacts
from .head import HeadOutput, TokenLoss, token_loss_head
from .lora import adapters_off
from .matching import Matching
from .packing import Budget, PackedRow, pack
from .sequences import ImagePatches, TokenSequence
from .top_logprobs import TopLogprobs, top_logprobs
from .vision import ImageFeatures, language_inputs, run_tower


class FeatureCache:
    """Features of images under a frozen tower, kept between passes up to a number of bytes, oldest out first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.bytes = max_bytes, 0
        self._kept: OrderedDict[str, ImageFeatures] = OrderedDict()

    def get(self, key: str) -> ImageFeatures | None:
        return self._kept.get(key)

    def put(self, key: str, features: ImageFeatures) -> None:
        size = sum(t.numel() * t.element_size() for t in (features.merged, *features.deepstack))
        if size > self.max_bytes:
            return
        while self._kept and self.bytes + size > self.max_bytes:
            _, dropped = self._kept.popitem(last=False)
            self.bytes -= sum(t.numel() * t.element_size() for t in (dropped.merged, *dropped.deepstack))
        self._kept[key] = features
        self.bytes += size

    def clear(self) -> None:
        self._kept.clear()
        self.bytes = 0


class PackedPolicy(nn.Module):
    """A transformers model (peft-wrapped or not) that reads packed rows. This is what accelerate wraps and shards.

    The vision tower runs once per distinct image of a row; where tower and merger are frozen its features are also kept
    for later passes over the same images (`feature_cache_bytes`). Logits are never materialised.
    """

    def __init__(
        self,
        model: nn.Module,
        facts: ModelFacts,
        *,
        kernel: Kernel | None = None,
        feature_cache_bytes: int = 1 << 30,
    ) -> None:
        super().__init__()
        self.model = model
        self.facts = facts
        self.kernel = kernel
        self.features = FeatureCache(feature_cache_bytes)
        self.always_run_vision = False
        """True under sharded or data-parallel training: a row without images joins in the tower's collectives too."""
        self.aligned_passes: Callable[[int], int] = int
        """Forward passes that every rank makes where this one needs n; sharded weights want equal numbers."""
        inner = self.base_model
        if facts.has_vision:
            inner.set_attn_implementation({"text_config": ATTENTION_NAME, "vision_config": "sdpa"})
            _multiply_patches(inner.model.visual.patch_embed.proj)
        else:
            inner.set_attn_implementation(ATTENTION_NAME)

    @property
    def base_model(self) -> PreTrainedModel:
        """The transformers model, without peft around it."""
        from peft import PeftModel

        model = self.model.get_base_model() if isinstance(self.model, PeftModel) else self.model
        assert isinstance(model, PreTrainedModel)
        return model

    @property
    def vision_is_frozen(self) -> bool:
        """True where no parameter of the vision tower and its mergers is trained."""
        if not self.facts.has_vision:
            return True
        return not any(p.requires_grad for p in self.base_model.model.visual.parameters())

    def forward(
        self,
        row: PackedRow,
        token_loss: TokenLoss,
        *,
        temperature: float = 1.0,
        separable: bool = True,
        matching: Matching | None = None,
    ) -> HeadOutput:
        """The sum of `token_loss` over the row's trained tokens, with their log-probabilities, [T] each.

        matching: adds divergences from another model's distribution of the same tokens.
        """
        hidden_TH = self.hidden_states(row)
        with torch.autocast(hidden_TH.device.type, enabled=False):
            return token_loss_head(
                hidden_TH,
                self._head_weight,
                row.targets_T,
                token_loss,
                temperature=temperature,
                separable=separable,
                matching=matching,
            )

    @property
    def _head_weight(self) -> Tensor:
        head = self.base_model.get_output_embeddings()
        assert isinstance(head, nn.Linear)
        return head.weight

    @contextmanager
    def without_adapters(self) -> Iterator[None]:
        """Inside the block it is the model that its adapters adapt: the reference policy, at no memory.

        Raises ValueError where it has none. Adapters on the vision tower change an image's features, and their frozen
        ones are kept: in here an image has features of its own.
        """
        kept = self.features
        adapted = self.facts.has_vision and any(
            ".lora_" in name for name, _ in self.base_model.model.visual.named_parameters()
        )
        try:
            with adapters_off(self.model):
                self.features = FeatureCache(kept.max_bytes) if adapted else kept
                yield
        finally:
            self.features = kept

    def hidden_states(self, row: PackedRow) -> Tensor:
        """[T, H] last hidden states at the positions that predict the row's trained tokens."""
        attention = RowAttention.of(
            row.segments, row.num_tokens, row.token_ids_L.device, self.kernel or default_kernel(row.token_ids_L.device)
        )
        inner = self.base_model.model
        if not self.facts.has_vision:
            output = inner(
                input_ids=row.token_ids_L[None],
                position_ids=row.position_ids_RL,
                attention_mask={"full_attention": None},  # made here already: transformers must not guess packing
                use_cache=False,
                row_attention=attention,
            )
            return output.last_hidden_state[0][row.predictor_T]
        features, unused = self._vision(row)
        output = inner.language_model(
            position_ids=row.position_ids_RL[:, None],
            use_cache=False,
            row_attention=attention,
            **language_inputs(inner, self.facts, row.token_ids_L[None], features),
        )
        hidden_TH = output.last_hidden_state[0][row.predictor_T]
        return hidden_TH if unused is None else hidden_TH + unused

    def _vision(self, row: PackedRow) -> tuple[Sequence[ImageFeatures], Tensor | None]:
        """The features of every occurrence, and a zero that keeps an idle tower in the graph."""
        if row.images:
            features = self._features(row.images)
            return [features[i] for i in row.image_order], None
        if not self.always_run_vision:
            return (), None
        blank = self._features((_blank_image(self.facts),))
        return (), sum(
            (t.sum() for f in blank for t in f.tensors), torch.zeros((), device=row.token_ids_L.device)
        ) * 0.0

    def _features(self, images: Sequence[ImagePatches]) -> list[ImageFeatures]:
        frozen = self.vision_is_frozen
        missing = [image for image in images if not frozen or self.features.get(image.key) is None]
        made: dict[str, ImageFeatures] = {}
        if missing:
            with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
                found = run_tower(self.base_model.model, self.facts, missing)
                made = dict(zip((image.key for image in missing), found, strict=True))
        features = [made.get(image.key) or self.features.get(image.key) for image in images]
        if frozen:
            for key, value in made.items():
                self.features.put(key, value)
        return [f for f in features if f is not None]

    @torch.no_grad()
    def logprobs(self, sequences: Sequence[TokenSequence], budget: Budget, *, temperature: float = 1.0) -> list[Tensor]:
        """For each sequence, the [trained tokens] float32 log-probabilities of its trained tokens, on the CPU."""
        device = next(self.model.parameters()).device
        found = [torch.empty(0)] * len(sequences)
        rows = pack(sequences, self.facts, budget)
        for _ in range(self.aligned_passes(len(rows)) - len(rows)):
            self(blank_row(self.facts).to(device), _nothing)
        for row in rows:
            output = self(row.to(device), _nothing, temperature=temperature)
            parts = output.logprobs_T.cpu().split(row.lengths_S.tolist())
            for place, part in zip(row.sequence_ids, parts, strict=True):
                found[place] = part
        return found

    @torch.no_grad()
    def top_logprobs(self, sequences: Sequence[TokenSequence], budget: Budget, k: int) -> list[TopLogprobs]:
        """For each sequence, the k likeliest tokens in the place of each of its trained tokens, on the CPU.

        For models whose weights are whole on this rank: a forward pass of its own, which sharding does not gather for.
        """
        device = next(self.model.parameters()).device
        none = TopLogprobs(torch.empty(0, k, dtype=torch.int32), torch.empty(0, k), torch.empty(0), torch.empty(0))
        found = [none] * len(sequences)
        for row in pack(sequences, self.facts, budget):
            row = row.to(device)
            hidden_TH = self.hidden_states(row)
            with torch.autocast(device.type, enabled=False):
                top = top_logprobs(hidden_TH, self._head_weight, row.targets_T, k)
            parts = zip(*(field.cpu().split(row.lengths_S.tolist()) for field in top), strict=True)
            for place, part in zip(row.sequence_ids, parts, strict=True):
                found[place] = TopLogprobs(*part)
        return found


def _nothing(logprobs_T: Tensor, span: slice) -> Tensor:
    """The loss of a pass that only wants log-probabilities."""
    return logprobs_T * 0


def blank_row(facts: ModelFacts) -> PackedRow:
    """Two padding tokens: what a rank without rows of its own forwards."""
    ids = np.full(2, facts.pad_token_id, dtype=np.int64)
    blank = TokenSequence(token_ids=ids, mask=np.array([False, True]))
    return pack([blank], facts, Budget(tokens=2))[0]


def _multiply_patches(projection: nn.Module) -> None:
    """Lets a patch embedding run as the matrix product that it is: its convolution's kernel covers a whole patch.

    Conv3d takes 8 times as long on a CPU (0.1 s for two images of 42 x 42 patches), and has no fast bfloat16 kernel on
    every GPU. An adapter around the convolution keeps its own forward pass.
    """
    if isinstance(projection, nn.Conv3d):
        projection.forward = partial(_project_patches, projection)  # pyright: ignore[reportAttributeAccessIssue]


def _project_patches(projection: nn.Conv3d, patches: Tensor) -> Tensor:
    """[P, channels, time, height, width] -> [P, embedding]."""
    return F.linear(patches.flatten(1), projection.weight.flatten(1), projection.bias)


def _blank_image(facts: ModelFacts) -> ImagePatches:
    """The smallest image: one merged patch of zeros."""
    side = facts.merge_size
    width = 3 * facts.temporal_patch_size * facts.patch_size**2
    return ImagePatches(pixel_values_PD=torch.zeros(side * side, width), grid_thw=(1, side, side), key="blank")
