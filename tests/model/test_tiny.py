"""Tiny checkpoints are ordinary ones: the Auto classes load them, and their processors feed their models."""

import hashlib

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from posttrain.model.families import Family
from posttrain.model.tiny import TinySize, build_tiny, default_corpus, train_tokenizer
from transformers import AutoModelForCausalLM, AutoModelForImageTextToText, AutoProcessor, AutoTokenizer

VISION_LANGUAGE = [family for family in Family if family is not Family.QWEN3]


def image_prompt(processor, image, **options):
    content = [{"type": "image", "image": image}, {"type": "text", "text": "Locate the red circle."}]
    return processor.apply_chat_template(
        [{"role": "user", "content": content}],
        add_generation_prompt=True,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        **options,
    )


@pytest.mark.parametrize("family", VISION_LANGUAGE)
def test_the_processor_feeds_an_image_to_the_model(family, tiny_checkpoint):
    processor = AutoProcessor.from_pretrained(tiny_checkpoint(family))
    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint(family)).eval()
    red, blue = (image_prompt(processor, Image.new("RGB", (64, 64), colour)) for colour in ("red", "blue"))
    assert red["image_grid_thw"].tolist() == [[1, 8, 8]]
    assert (red["input_ids"] == model.config.image_token_id).sum() == 16
    with torch.no_grad():
        logits, other = model(**red).logits, model(**blue).logits
    assert logits.shape == (1, red["input_ids"].shape[1], 448)
    assert torch.isfinite(logits).all()
    assert not torch.allclose(logits[0, -1], other[0, -1], atol=1e-4), "the answer must depend on the image"


def test_the_text_model_loads_and_generates_until_its_end_token(tiny_checkpoint):
    folder = tiny_checkpoint(Family.QWEN3)
    tokenizer, model = AutoTokenizer.from_pretrained(folder), AutoModelForCausalLM.from_pretrained(folder)
    assert model.generation_config.eos_token_id == tokenizer.convert_tokens_to_ids(["<|im_end|>", "<|endoftext|>"])
    messages = [{"role": "user", "content": "What is 3+4?"}]
    prompt = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=True, return_tensors="pt")
    out = model.generate(**prompt, max_new_tokens=4, do_sample=False)
    assert prompt["input_ids"].shape[1] < out.shape[1] <= prompt["input_ids"].shape[1] + 4


def test_a_video_passes_through_the_processor(tiny_checkpoint):
    processor = AutoProcessor.from_pretrained(tiny_checkpoint(Family.QWEN3_VL))
    frames = torch.zeros(4, 3, 64, 64, dtype=torch.uint8)
    metadata = {"fps": 2.0, "total_num_frames": 4, "frames_indices": [0, 1, 2, 3]}
    batch = processor(
        text=["<|vision_start|><|video_pad|><|vision_end|>"], videos=[frames], video_metadata=[metadata],
        do_sample_frames=False, return_tensors="pt",
    )  # fmt: skip
    assert batch["video_grid_thw"].tolist() == [[2, 8, 8]]
    assert "<0.2 seconds>" in processor.tokenizer.decode(batch["input_ids"][0])


def test_images_are_resized_to_the_limits_of_the_size(tmp_path):
    folder = build_tiny(Family.QWEN3_VL, tmp_path, size=TinySize(max_pixels=64 * 64, min_pixels=48 * 48))
    processor = AutoProcessor.from_pretrained(folder)
    assert image_prompt(processor, Image.new("RGB", (400, 400)))["image_grid_thw"].tolist() == [[1, 8, 8]]
    assert image_prompt(processor, Image.new("RGB", (16, 16)))["image_grid_thw"].tolist() == [[1, 6, 6]]


def test_the_default_qwen3_vl_has_the_size_it_says(tiny_checkpoint):
    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint(Family.QWEN3_VL))
    assert sum(p.numel() for p in model.parameters()) == 374_480


def test_the_same_seed_gives_the_same_checkpoint_and_leaves_the_random_state_alone(tmp_path, tiny_checkpoint):
    state = torch.get_rng_state()
    again = build_tiny(Family.QWEN3_VL, tmp_path / "again", seed=0)
    other = build_tiny(Family.QWEN3_VL, tmp_path / "other", seed=1)
    assert torch.equal(state, torch.get_rng_state())

    def digest(folder, name):
        return hashlib.sha256((folder / name).read_bytes()).hexdigest()

    first = tiny_checkpoint(Family.QWEN3_VL)
    for name in ("model.safetensors", "tokenizer.json", "config.json"):
        assert digest(first, name) == digest(again, name)
    assert digest(first, "model.safetensors") != digest(other, "model.safetensors")
    assert digest(first, "tokenizer.json") == digest(other, "tokenizer.json")


def test_vision_positions_start_as_sines_and_cosines(tiny_checkpoint):
    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint(Family.QWEN3_VL))
    positions = model.get_parameter("model.visual.pos_embed.weight").reshape(8, 8, 48)
    y, x = 3, 5
    expected = [fn(torch.tensor(float(axis))) for axis in (y, x) for fn in (torch.sin, torch.cos)]
    torch.testing.assert_close(positions[y, x, [0, 12, 24, 36]], torch.stack(expected))


def test_other_sizes_give_models_of_those_sizes(tmp_path):
    size = TinySize(hidden=64, heads=2, layers=3, vocab=1024, vision_hidden=32, vision_layers=3, num_deepstack=2)
    model = AutoModelForImageTextToText.from_pretrained(build_tiny(Family.QWEN3_VL, tmp_path, size=size))
    assert model.config.text_config.num_hidden_layers == 3
    assert model.get_output_embeddings().weight.shape == (1024, 64)
    assert len(model.model.visual.deepstack_merger_list) == 2


@pytest.mark.parametrize(
    ("family", "size", "message"),
    [
        (Family.QWEN2_5_VL, TinySize(hidden=128), "Qwen2.5-VL wants hidden = heads"),
        (Family.QWEN2_VL, TinySize(vision_intermediate=100), "a multiple of vision_hidden"),
        (Family.QWEN3_VL_MOE, TinySize(expert_intermediate=48), "makes square weights at hidden 96"),
        (Family.QWEN3, TinySize(vocab=200), "a vocabulary of 200 cannot hold 256 bytes"),
    ],
)
def test_sizes_that_a_generation_cannot_have_are_refused(family, size, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        build_tiny(family, tmp_path / "checkpoint", size=size)


TOKENIZER = train_tokenizer(default_corpus(), vocab=448)


@given(st.text(max_size=60))
@settings(max_examples=50, deadline=None)
def test_any_text_survives_the_tokenizer(text):
    ids = TOKENIZER(text, add_special_tokens=False).input_ids
    assert TOKENIZER.decode(ids, clean_up_tokenization_spaces=False) == text


def test_corner_coordinates_and_chat_words_are_one_token_each():
    pieces = [*map(str, range(0, 1001, 125)), "assistant", "user", "system", "\n", "bbox_2d", "<tool_call>"]
    assert {piece: len(TOKENIZER(piece).input_ids) for piece in pieces} == dict.fromkeys(pieces, 1)


def test_tool_and_thinking_marks_survive_decoding_and_control_tokens_do_not(tiny_checkpoint):
    tokenizer = AutoTokenizer.from_pretrained(tiny_checkpoint(Family.QWEN3_VL))
    ids = tokenizer("<|im_start|><think>red</think><tool_call><|image_pad|><|im_end|>").input_ids
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<think>red</think><tool_call>"


def test_a_corpus_decides_which_pieces_are_tokens():
    tokenizer = train_tokenizer(["zebra quagga"] * 50, vocab=320)
    assert len(tokenizer("zebra").input_ids) == 1
    assert len(TOKENIZER("zebra").input_ids) > 1
