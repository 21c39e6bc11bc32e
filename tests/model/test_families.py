"""The facts of a checkpoint equal what its config and tokenizer say."""

import pytest
from posttrain.model.families import ANATOMY, Family, facts_of
from transformers import (
    AutoConfig,
    AutoTokenizer,
    GenerationConfig,
    LlamaConfig,
    Qwen2VLConfig,
    Qwen3Config,
    Qwen3VLConfig,
)

VISION_LANGUAGE = [family for family in Family if family is not Family.QWEN3]


@pytest.mark.parametrize("family", VISION_LANGUAGE)
def test_vision_tokens_are_those_of_the_tokenizer(family, tiny_checkpoint):
    config = AutoConfig.from_pretrained(tiny_checkpoint(family))
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint(family))
    facts = facts_of(config, tokenizer)
    vision = ["<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>"]
    assert facts.banned_token_ids == tuple(tokenizer.convert_tokens_to_ids(vision))
    assert (facts.image_token_id, facts.video_token_id) == facts.banned_token_ids[:2]
    assert facts.eos_token_ids == (tokenizer.convert_tokens_to_ids("<|im_end|>"),)
    assert facts.pad_token_id == tokenizer.convert_tokens_to_ids("<|endoftext|>")
    assert facts.position_rows == 3
    assert facts.has_vision


@pytest.mark.parametrize("family", Family)
def test_sizes_are_those_of_the_config(family, tiny_checkpoint):
    config = AutoConfig.from_pretrained(tiny_checkpoint(family))
    facts = facts_of(config)
    text = config.get_text_config()
    assert facts.family is family
    assert (facts.hidden_size, facts.vocab_size, facts.num_layers) == (96, 448, 2)
    assert (text.hidden_size, text.vocab_size, text.num_hidden_layers) == (96, 448, 2)
    assert facts.tied_embeddings
    if family is not Family.QWEN3:
        assert (facts.patch_size, facts.merge_size, facts.temporal_patch_size) == (8, 2, 2)
    assert facts.num_deepstack == (1 if family in (Family.QWEN3_VL, Family.QWEN3_VL_MOE) else 0)


def test_a_text_model_has_nothing_of_vision(tiny_checkpoint):
    facts = facts_of(AutoConfig.from_pretrained(tiny_checkpoint(Family.QWEN3)))
    assert not facts.has_vision
    assert facts.banned_token_ids == ()
    assert facts.image_token_id is None
    assert facts.position_rows == 1


def test_ids_follow_a_checkpoint_that_moved_them():
    config = Qwen3VLConfig(
        text_config={"eos_token_id": 7, "vocab_size": 100}, image_token_id=11, video_token_id=12,
        vision_start_token_id=13, vision_end_token_id=14,
    )  # fmt: skip
    assert facts_of(config).banned_token_ids == (11, 12, 13, 14)
    assert facts_of(config).eos_token_ids == (7,)
    assert facts_of(config).pad_token_id == 7


def test_every_token_that_ends_a_turn_is_listed_once_the_tokenizers_first(tiny_checkpoint):
    folder = tiny_checkpoint(Family.QWEN3_VL)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    facts = facts_of(AutoConfig.from_pretrained(folder), tokenizer, GenerationConfig.from_pretrained(folder))
    assert facts.eos_token_ids == tuple(tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"]))


def test_coordinates_changed_with_qwen3():
    relative = {family for family in Family if ANATOMY[family].coordinates == "relative_1000"}
    assert relative == {Family.QWEN3_VL, Family.QWEN3_VL_MOE, Family.QWEN3}


def test_another_kind_of_model_is_refused_by_name():
    with pytest.raises(ValueError, match=r"type 'llama' cannot be trained here; these can: qwen2_vl, .*qwen3$"):
        facts_of(LlamaConfig(num_hidden_layers=1))


def test_a_model_that_could_never_stop_is_refused():
    with pytest.raises(ValueError, match="Qwen3 names no eos_token_id"):
        facts_of(Qwen3Config(num_hidden_layers=1))


def test_patches_that_are_not_square_are_refused():
    config = Qwen2VLConfig(vision_config={"patch_size": [14, 16]})
    with pytest.raises(ValueError, match="patch_size must be one number"):
        facts_of(config)
    config.vision_config.patch_size = [16, 16]
    assert facts_of(config).patch_size == 16
