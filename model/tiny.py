"""Random checkpoints of every generation, small enough to train on one CPU core, in the ordinary checkpoint format.

The default size is the one that learns grounding from nothing in about a minute of CPU: a number of up to three digits
is one token, patches are 8 pixels, and the learned vision positions start as two-dimensional sines and cosines.
"""

import json
import random
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib.resources import files
from itertools import chain, islice
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLConfig,
    Qwen2_5_VLProcessor,
    Qwen2VLConfig,
    Qwen2VLImageProcessor,
    Qwen2VLProcessor,
    Qwen2VLVideoProcessor,
    Qwen3Config,
    Qwen3VLConfig,
    Qwen3VLMoeConfig,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from .families import ANATOMY, Family
from .loading import save_model

# Qwen's own split: the first group is hidden when text is decoded without special tokens, the second is kept.
_CONTROL = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
_MARKUP = ("<tool_call>", "</tool_call>", "<tool_response>", "</tool_response>", "<think>", "</think>")
# Identifiers with a leading space, numbers (a coordinate of 0-1000 is one piece), and runs of everything else.
_PIECES = r" ?[A-Za-z_][A-Za-z_0-9]*|1000|[0-9]{1,3}|[^A-Za-z0-9]+?(?= [A-Za-z]|[A-Za-z0-9]|$)"
_CHAT_WORDS = ("user\n", "assistant\n", "system\n", "\n")
_MERGE_SIZE = 2
_TEMPORAL_PATCH_SIZE = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class TinySize:
    """Sizes of a random checkpoint; the defaults give 0.37 M parameters for Qwen3-VL."""

    hidden: int = 96
    intermediate: int = 192
    """Of the language model's MLP."""
    layers: int = 2
    heads: int = 3
    kv_heads: int = 1
    head_dim: int = 32
    """Qwen2-VL and Qwen2.5-VL want hidden = heads * head_dim."""
    vocab: int = 448
    """Rows of the embeddings: 256 bytes, the special tokens, and merges learned from the corpus."""
    max_positions: int = 4096
    num_experts: int = 4
    experts_per_token: int = 2
    expert_intermediate: int = 64
    """Of each expert's MLP. Not hidden nor half of it: square weights would hide which layout a checkpoint is in."""
    vision_hidden: int = 48
    """A multiple of 4 * vision_heads, for the rotary positions."""
    vision_intermediate: int = 96
    """Qwen2-VL wants a multiple of vision_hidden."""
    vision_layers: int = 2
    vision_heads: int = 2
    num_deepstack: int = 1
    """Vision levels added to the first language layers (Qwen3-VL only)."""
    patch: int = 8
    """Pixels; one token covers a square of 2 * patch."""
    image_side: int = 64
    """Pixels of the square image whose patches get one learned position each (Qwen3-VL only; others interpolate)."""
    min_pixels: int = 32 * 32
    max_pixels: int = 256 * 256
    """Images of fewer or more pixels are resized to fit."""
    initializer_range: float = 0.06
    rope_theta: float = 1e4


def build_tiny(
    family: Family,
    folder: Path | str,
    *,
    seed: int = 0,
    corpus: Iterable[str] | None = None,
    size: TinySize | None = None,
) -> Path:
    """Writes a random checkpoint of `family` to `folder` and returns it.

    Weights, configs, tokenizer, processor and chat template are in the ordinary format: transformers' Auto classes and
    vLLM load them. The same seed, corpus and size give the same weights and the same tokenizer. `corpus` is the text
    whose frequent pieces become tokens; any text can be tokenised regardless.
    Raises ValueError for a size that the generation cannot have.
    """
    size = size or TinySize()
    tokenizer = train_tokenizer(default_corpus() if corpus is None else corpus, vocab=size.vocab)
    tokenizer.chat_template = _chat_template(family)
    model = _random_model(_config(family, size, tokenizer), seed)
    eos = tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    model.generation_config = GenerationConfig(eos_token_id=eos, pad_token_id=tokenizer.pad_token_id)
    return save_model(model, tokenizer if family is Family.QWEN3 else _processor(family, size, tokenizer), folder)


def train_tokenizer(corpus: Iterable[str], *, vocab: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with Qwen's special tokens and at most `vocab` entries, trained on `corpus`."""
    special = [AddedToken(t, special=True, normalized=False) for t in _CONTROL]
    special += [AddedToken(t, special=False, normalized=False) for t in _MARKUP]
    if vocab < 256 + len(special):
        raise ValueError(f"a vocabulary of {vocab} cannot hold 256 bytes and {len(special)} special tokens")
    bpe = Tokenizer(models.BPE())
    bytes_of = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(_PIECES), "isolated"), bytes_of])
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab - len(special),
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    # One set of chat words per text: without them "assistant" costs nine tokens in every turn.
    bpe.train_from_iterator(chain.from_iterable((text, *_CHAT_WORDS) for text in corpus), trainer)
    bpe.add_tokens(special)
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    tokenizer.add_special_tokens({"additional_special_tokens": list(_CONTROL)})
    return tokenizer


def default_corpus(num_texts: int = 2000) -> Iterator[str]:
    """A small built-in text: chat phrases, numbers of 0-1000, boxes as JSON, tool calls, colours and shapes."""
    return islice(_sentences(random.Random(0)), num_texts)


def _sentences(draw: random.Random) -> Iterator[str]:
    colours = ("red", "green", "blue", "yellow", "purple", "orange", "black", "white")
    shapes = ("circle", "square", "triangle", "plate", "star")
    while True:
        label = f"{draw.choice(colours)} {draw.choice(shapes)}"
        # Multiples of 125 are the corners of an 8 x 8 grid: they become one token each before the other numbers do.
        x, y = 125 * draw.randrange(8), 125 * draw.randrange(8)
        box = {"bbox_2d": [x, y, x + 125, y + 125], "label": label}
        yield f"Locate the {label}."
        yield json.dumps(box)
        yield f"Which digit is on the {label}? {draw.randrange(10)}"
        yield f"How many shapes are there? {draw.randrange(10)}. What is {draw.randrange(100)}+{draw.randrange(100)}?"
        yield f"Describe the image. The {label} lies at {draw.randrange(1001)}, {draw.randrange(1001)}."
        yield json.dumps({"name": "image_zoom_in_tool", "arguments": {**box, "img_idx": draw.randrange(3)}}) + "\n"


def _chat_template(family: Family) -> str:
    name = {Family.QWEN2_VL: "qwen2_5_vl", Family.QWEN3_VL_MOE: "qwen3_vl"}.get(family, family.value)
    return files("trl").joinpath("chat_templates", f"{name}.jinja").read_text(encoding="utf-8")


def _processor(family: Family, size: TinySize, tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    shared = {
        "patch_size": size.patch,
        "temporal_patch_size": _TEMPORAL_PATCH_SIZE,
        "merge_size": _MERGE_SIZE,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "size": {"shortest_edge": size.min_pixels, "longest_edge": size.max_pixels},
    }
    images = Qwen2VLImageProcessor(**shared)
    parts = {"image_processor": images, "tokenizer": tokenizer, "chat_template": tokenizer.chat_template}
    if family is Family.QWEN2_VL:
        return Qwen2VLProcessor(video_processor=Qwen2VLVideoProcessor(**shared), **parts)
    if family is Family.QWEN2_5_VL:
        return Qwen2_5_VLProcessor(video_processor=Qwen2VLVideoProcessor(**shared), **parts)
    # Qwen3-VL's limits count the pixels of the whole clip, not of a frame.
    shared["size"] = {"shortest_edge": size.min_pixels, "longest_edge": 16 * size.max_pixels}
    return Qwen3VLProcessor(video_processor=Qwen3VLVideoProcessor(**shared), **parts)


def _config(family: Family, size: TinySize, tokenizer: PreTrainedTokenizerFast) -> PreTrainedConfig:
    def token_id(token: str) -> int:
        return tokenizer.convert_tokens_to_ids(token)  # type: ignore[return-value]

    text = {
        "vocab_size": size.vocab,
        "hidden_size": size.hidden,
        "intermediate_size": size.intermediate,
        "num_hidden_layers": size.layers,
        "num_attention_heads": size.heads,
        "num_key_value_heads": size.kv_heads,
        "max_position_embeddings": size.max_positions,
        "initializer_range": size.initializer_range,
        "rope_parameters": {"rope_type": "default", "rope_theta": size.rope_theta},
        "tie_word_embeddings": True,
        "bos_token_id": token_id("<|endoftext|>"),
        "eos_token_id": token_id("<|im_end|>"),
        "pad_token_id": token_id("<|endoftext|>"),
    }
    if family is Family.QWEN3:
        return Qwen3Config(head_dim=size.head_dim, **text)
    third = size.head_dim // 6  # height and width get a third of the rotary pairs each, time the rest
    text["rope_parameters"]["mrope_section"] = [size.head_dim // 2 - 2 * third, third, third]
    vision = {
        "depth": size.vision_layers,
        "num_heads": size.vision_heads,
        "patch_size": size.patch,
        "spatial_merge_size": _MERGE_SIZE,
        "temporal_patch_size": _TEMPORAL_PATCH_SIZE,
        "initializer_range": size.initializer_range,
    }
    whole = {
        "tie_word_embeddings": True,
        "image_token_id": token_id("<|image_pad|>"),
        "video_token_id": token_id("<|video_pad|>"),
        "vision_start_token_id": token_id("<|vision_start|>"),
        "vision_end_token_id": token_id("<|vision_end|>"),
    }
    if family in (Family.QWEN2_VL, Family.QWEN2_5_VL) and size.hidden != size.heads * size.head_dim:
        title = ANATOMY[family].title
        raise ValueError(
            f"{title} wants hidden = heads * head_dim, got {size.hidden} and {size.heads} * {size.head_dim}"
        )
    if family is Family.QWEN2_VL:
        if size.vision_intermediate % size.vision_hidden:
            raise ValueError(
                f"Qwen2-VL wants vision_intermediate a multiple of vision_hidden, "
                f"got {size.vision_intermediate} and {size.vision_hidden}"
            )
        ratio = size.vision_intermediate // size.vision_hidden
        vision |= {"embed_dim": size.vision_hidden, "hidden_size": size.hidden, "mlp_ratio": ratio}
        return Qwen2VLConfig(text_config=text, vision_config=vision, **whole)
    vision |= {
        "hidden_size": size.vision_hidden,
        "intermediate_size": size.vision_intermediate,
        "out_hidden_size": size.hidden,
    }
    if family is Family.QWEN2_5_VL:
        # Windows of 2 x 2 tokens, and one layer that sees the whole image: both kinds of layer are exercised.
        vision |= {"window_size": 2 * _MERGE_SIZE * size.patch, "fullatt_block_indexes": [size.vision_layers - 1]}
        return Qwen2_5_VLConfig(text_config=text, vision_config=vision, **whole)
    text["head_dim"] = size.head_dim
    text["rope_parameters"]["mrope_interleaved"] = True
    vision |= {
        "num_position_embeddings": (size.image_side // size.patch) ** 2,
        "deepstack_visual_indexes": list(range(size.num_deepstack)),
    }
    if family is Family.QWEN3_VL:
        return Qwen3VLConfig(text_config=text, vision_config=vision, **whole)
    if size.hidden in (size.expert_intermediate, 2 * size.expert_intermediate):
        raise ValueError(f"expert_intermediate {size.expert_intermediate} makes square weights at hidden {size.hidden}")
    text |= {
        "num_experts": size.num_experts,
        "num_experts_per_tok": size.experts_per_token,
        "norm_topk_prob": True,  # transformers always normalises; vLLM reads the key
        "moe_intermediate_size": size.expert_intermediate,
        "mlp_only_layers": [],
    }
    return Qwen3VLMoeConfig(text_config=text, vision_config=vision, **whole)


def _random_model(config: PreTrainedConfig, seed: int) -> PreTrainedModel:
    family = Family(config.model_type)
    auto = AutoModelForCausalLM if family is Family.QWEN3 else AutoModelForImageTextToText
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = auto.from_config(config, dtype=torch.float32)
    if family in (Family.QWEN3_VL, Family.QWEN3_VL_MOE):
        positions = model.get_parameter("model.visual.pos_embed.weight")
        with torch.no_grad():
            positions.copy_(_sines_and_cosines(*positions.shape))
    return model


def _sines_and_cosines(num_positions: int, width: int) -> torch.Tensor:
    """[num_positions, width] float32: a square grid, rows first; half of the width speaks of y and half of x."""
    side, num_waves = round(num_positions**0.5), width // 4
    wavelengths = 100 ** (torch.arange(num_waves) / num_waves)
    y, x = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    angles = [axis.flatten()[:, None] / wavelengths for axis in (y, x)]
    return torch.cat([wave(angle) for angle in angles for wave in (torch.sin, torch.cos)], dim=1)
