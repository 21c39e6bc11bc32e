"""What the library knows of each Qwen generation, in one table, and the facts of one checkpoint read from its config.

Token ids always come from the checkpoint's own config and tokenizer: a fine-tune may have moved them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Literal

from transformers import GenerationConfig, PreTrainedConfig, PreTrainedTokenizerBase

Coordinates = Literal["relative_1000", "absolute"]
"""How a generation writes boxes: 0-1000 of the image's sides, or pixels of the image as it was resized."""


class Family(StrEnum):
    """A generation, under the `model_type` of its transformers config."""

    QWEN2_VL = "qwen2_vl"
    QWEN2_5_VL = "qwen2_5_vl"
    QWEN3_VL = "qwen3_vl"
    QWEN3_VL_MOE = "qwen3_vl_moe"
    QWEN3 = "qwen3"


@dataclass(frozen=True, slots=True, kw_only=True)
class Anatomy:
    """Where the parts of a generation lie in its transformers model: a parameter belongs to its longest prefix."""

    title: str
    """The generation's name in messages."""
    auto_class: Literal["AutoModelForImageTextToText", "AutoModelForCausalLM"]
    vision: tuple[str, ...]
    """Prefixes of the parameter names of the vision tower, without its mergers."""
    merger: tuple[str, ...]
    """Prefixes of the merger (the projector to the language model), with the DeepStack mergers."""
    language: tuple[str, ...]
    embeddings: tuple[str, ...]
    """Prefixes of the token embeddings and the head that predicts tokens, which many checkpoints tie together."""
    no_split_layers: tuple[str, ...]
    """Classes of the layers that a sharding wrapper keeps whole."""
    coordinates: Coordinates
    stored_transposed: tuple[str, ...] = ()
    """Endings of parameters whose last two axes are swapped in a checkpoint. transformers reads both layouts and writes
    its own; vLLM reads the published one alone."""


def _vision_language(
    title: str, coordinates: Coordinates, *no_split_layers: str, stored_transposed: tuple[str, ...] = ()
) -> Anatomy:
    return Anatomy(
        title=title,
        auto_class="AutoModelForImageTextToText",
        vision=("model.visual.",),
        merger=("model.visual.merger.", "model.visual.deepstack_merger_list."),
        language=("model.language_model.",),
        embeddings=("model.language_model.embed_tokens.", "lm_head."),
        no_split_layers=no_split_layers,
        coordinates=coordinates,
        stored_transposed=stored_transposed,
    )


ANATOMY: Mapping[Family, Anatomy] = {
    Family.QWEN2_VL: _vision_language("Qwen2-VL", "absolute", "Qwen2VLDecoderLayer", "Qwen2VLVisionBlock"),
    Family.QWEN2_5_VL: _vision_language("Qwen2.5-VL", "absolute", "Qwen2_5_VLDecoderLayer", "Qwen2_5_VLVisionBlock"),
    Family.QWEN3_VL: _vision_language("Qwen3-VL", "relative_1000", "Qwen3VLTextDecoderLayer", "Qwen3VLVisionBlock"),
    Family.QWEN3_VL_MOE: _vision_language(
        "Qwen3-VL-MoE",
        "relative_1000",
        "Qwen3VLMoeTextDecoderLayer",
        "Qwen3VLMoeVisionBlock",
        stored_transposed=(".mlp.experts.gate_up_proj", ".mlp.experts.down_proj"),
    ),
    Family.QWEN3: Anatomy(
        title="Qwen3",
        auto_class="AutoModelForCausalLM",
        vision=(),
        merger=(),
        language=("model.",),
        embeddings=("model.embed_tokens.", "lm_head."),
        no_split_layers=("Qwen3DecoderLayer",),
        coordinates="relative_1000",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """The facts of one checkpoint that training depends on."""

    family: Family
    has_vision: bool
    image_token_id: int | None
    """Of the token that stands for one merged patch of an image; this and the next three are None for a text model."""
    video_token_id: int | None
    vision_start_token_id: int | None
    vision_end_token_id: int | None
    merge_size: int
    """Patches on a side of the square that becomes one token; 1 for a text model."""
    patch_size: int
    """Pixels on a side of a patch; 1 for a text model."""
    temporal_patch_size: int
    """Frames in a patch; 1 for a text model."""
    num_deepstack: int
    """Vision levels that are added to the first layers of the language model; 0 before Qwen3-VL."""
    hidden_size: int
    vocab_size: int
    """Rows of the head that predicts tokens: often more than the tokenizer has entries."""
    num_layers: int
    """Of the language model."""
    tied_embeddings: bool
    """True when the head and the token embeddings are one tensor."""
    eos_token_ids: tuple[int, ...]
    """Every token that ends a turn, the tokenizer's own first."""
    pad_token_id: int
    coordinates: Coordinates
    position_rows: int
    """Rows of the position ids: 3 with M-RoPE (time, height, width), 1 for a text model."""

    @property
    def anatomy(self) -> Anatomy:
        return ANATOMY[self.family]

    @property
    def banned_token_ids(self) -> tuple[int, ...]:
        """The vision tokens: a policy that sampled one would announce an image that is not there."""
        ids = (self.image_token_id, self.video_token_id, self.vision_start_token_id, self.vision_end_token_id)
        return tuple(i for i in ids if i is not None)


def facts_of(
    config: PreTrainedConfig,
    tokenizer: PreTrainedTokenizerBase | None = None,
    generation_config: GenerationConfig | None = None,
) -> ModelFacts:
    """The facts of a checkpoint from its transformers config.

    End-of-turn tokens are united from the tokenizer, the generation config and the config, in that order; the padding
    token is the first that one of them names. Raises ValueError for another kind of model, and when nothing names an
    end-of-turn token, without which no generation would stop.
    """
    family = family_of(config)
    text = config.get_text_config().to_dict()
    sources: list[dict[str, Any]] = [generation_config.to_dict() if generation_config else {}, text, config.to_dict()]
    if tokenizer is not None:
        sources.insert(0, {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id})
    eos_token_ids = tuple(dict.fromkeys(i for source in sources for i in _ids(source.get("eos_token_id"))))
    if not eos_token_ids:
        raise ValueError(f"the config of this {ANATOMY[family].title} names no eos_token_id: pass its tokenizer too")
    pads = [i for source in sources for i in _ids(source.get("pad_token_id"))]
    return ModelFacts(
        family=family,
        hidden_size=text["hidden_size"],
        vocab_size=text["vocab_size"],
        num_layers=text["num_hidden_layers"],
        tied_embeddings=config.tie_word_embeddings,
        eos_token_ids=eos_token_ids,
        pad_token_id=(pads or eos_token_ids)[0],
        coordinates=ANATOMY[family].coordinates,
        **(_TEXT_ONLY if family is Family.QWEN3 else _vision_facts(config.to_dict())),
    )


def family_of(config: PreTrainedConfig) -> Family:
    """The generation of a config. Raises ValueError, naming those that work, for a model of another kind."""
    try:
        return Family(config.model_type)
    except ValueError:
        raise ValueError(
            f"a model of type '{config.model_type}' cannot be trained here; these can: {', '.join(Family)}"
        ) from None


def _ids(named: int | list[int] | None) -> list[int]:
    """Configs name no token, one, or a list of them."""
    if named is None:
        return []
    return named if isinstance(named, list) else [named]


_TEXT_ONLY: Mapping[str, Any] = {
    "has_vision": False,
    "image_token_id": None,
    "video_token_id": None,
    "vision_start_token_id": None,
    "vision_end_token_id": None,
    "merge_size": 1,
    "patch_size": 1,
    "temporal_patch_size": 1,
    "num_deepstack": 0,
    "position_rows": 1,
}


def _vision_facts(config: dict[str, Any]) -> dict[str, Any]:
    vision = config["vision_config"]
    return {
        "has_vision": True,
        "image_token_id": config["image_token_id"],
        "video_token_id": config["video_token_id"],
        "vision_start_token_id": config["vision_start_token_id"],
        "vision_end_token_id": config["vision_end_token_id"],
        "merge_size": vision["spatial_merge_size"],
        "patch_size": _one_number(vision["patch_size"], "patch_size"),
        "temporal_patch_size": _one_number(vision["temporal_patch_size"], "temporal_patch_size"),
        "num_deepstack": len(vision.get("deepstack_visual_indexes", ())),
        "position_rows": 3,
    }


def _one_number(value: int | list[int] | tuple[int, ...], name: str) -> int:
    numbers = {value} if isinstance(value, int) else set(value)
    if len(numbers) != 1:
        raise ValueError(f"vision {name} must be one number or the same number for every axis, got {value}")
    return numbers.pop()
