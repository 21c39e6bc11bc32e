"""Masks are exact, prompts are what transformers' processor makes of them, and what cannot be rendered says why."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from posttrain.model import TokenSequence

from posttrain.data import SceneSource, SceneSpec, SourceSpec, TooLong, from_rows, open_source
from posttrain.data.rendering import shared_prefix
from posttrain.errors import CheckpointError, DataError
from posttrain.records import Example

END = "<|im_end|>"


def picture(width: int = 64, height: int = 64, seed: int = 0) -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def example(*turns: tuple[str, str], images: tuple[Image.Image, ...] = (), **reference: Any) -> Example:
    rows = [{"messages": [{"role": r, "content": c} for r, c in turns], "images": list(images), **reference}]
    return from_rows(rows)[0]


def test_golden_mask_of_two_turns_with_a_system_prompt(qwen3_vl):
    chat = example(
        ("system", "Be brief."), ("user", "What is 1+2?"), ("assistant", "3"), ("user", "And 2+2?"), ("assistant", "4")
    )
    (sequence,) = qwen3_vl.renderer().render_training(chat)
    pieces = [
        (
            "<|im_start|>system\nBe brief.<|im_end|>\n"
            "<|im_start|>user\nWhat is 1+2?<|im_end|>\n<|im_start|>assistant\n",
            False,
        ),
        ("3<|im_end|>", True),
        ("\n<|im_start|>user\nAnd 2+2?<|im_end|>\n<|im_start|>assistant\n", False),
        ("4<|im_end|>", True),
    ]
    encoded = [(qwen3_vl.tokenizer(text)["input_ids"], on) for text, on in pieces]
    assert sequence.token_ids.tolist() == [i for ids, _ in encoded for i in ids]
    assert sequence.mask.tolist() == [on for ids, on in encoded for _ in ids]
    assert sequence.prefix_length == len(encoded[0][0])


def test_words_that_look_like_the_template_do_not_confuse_the_mask(qwen3_vl):
    chat = example(
        ("user", "assistant\nassistant\nWho is the assistant?"),
        ("assistant", "user\nassistant\nI am the assistant"),
        ("user", "I am the assistant"),
        ("assistant", "assistant"),
    )
    (sequence,) = qwen3_vl.renderer().render_training(chat)
    assert qwen3_vl.spoken(sequence) == [f"user\nassistant\nI am the assistant{END}", f"assistant{END}"]


def test_tool_turns_are_read_and_never_trained(qwen3_vl):
    call = {"type": "function", "function": {"name": "zoom", "arguments": {"bbox_2d": [0, 0, 125, 125]}}}
    rows = [{
        "messages": [
            {"role": "user", "content": "<image>Which digit?"},
            {"role": "assistant", "content": "Let me look.", "tool_calls": [call]},
            {"role": "tool", "content": "<image>the crop"},
            {"role": "assistant", "content": "7"},
        ],
        "images": [picture(seed=1), picture(seed=2)],
        "tools": '[{"type": "function", "function": {"name": "zoom"}}]',
    }]  # fmt: skip
    (sequence,) = qwen3_vl.renderer().render_training(from_rows(rows)[0])
    spoken = qwen3_vl.spoken(sequence)
    assert spoken[0].startswith("Let me look.\n<tool_call>\n") and spoken[0].endswith(f"</tool_call>{END}")
    assert spoken[1:] == [f"7{END}"]
    text = qwen3_vl.tokenizer.decode(sequence.token_ids)
    assert text.startswith("<|im_start|>system\n# Tools") and "<tool_response>" in text
    assert len(sequence.images) == 2


@pytest.mark.parametrize("checkpoint", ["qwen3_vl", "qwen2_5_vl"])
def test_prompts_are_the_tokens_and_pixels_of_the_deployed_processor(checkpoint, request):
    tiny = request.getfixturevalue(checkpoint)
    images = (picture(300, 170, 1), picture(37, 900, 2), picture(64, 64, 3))
    chat = example(
        ("system", "S"), ("user", "<image>a<image> b\n"), ("assistant", "c"), ("user", "d<image>"), images=images
    )
    prompt = tiny.renderer().render_prompt(chat)
    text = tiny.processor.apply_chat_template(list(chat.messages), tokenize=False, add_generation_prompt=True)
    deployed = tiny.processor(text=[text], images=list(images), return_tensors="pt")
    assert prompt.token_ids.tolist() == deployed["input_ids"][0].tolist()
    assert [i.grid_thw for i in prompt.images] == [tuple(g) for g in deployed["image_grid_thw"].tolist()]
    torch.testing.assert_close(
        torch.cat([i.pixel_values_PD for i in prompt.images]), deployed["pixel_values"], rtol=0, atol=0
    )


def test_an_engine_that_cuts_patches_itself_gets_the_same_from_the_pictures(qwen3_vl):
    chat = example(("user", "<image>?"), images=(picture(301, 173),))
    prompt = qwen3_vl.renderer(max_pixels=128 * 128).render_prompt(chat)
    again = qwen3_vl.processor.image_processor(images=list(prompt.pictures), return_tensors="pt")
    assert prompt.pictures[0].width * prompt.pictures[0].height <= 128 * 128
    torch.testing.assert_close(prompt.images[0].pixel_values_PD, again["pixel_values"], rtol=0, atol=0)


def test_whole_conversations_have_the_tokens_of_the_deployed_processor(qwen3_vl):
    images = (picture(100, 90, 1), picture(70, 200, 2))
    chat = example(("user", "<image>a"), ("assistant", "b c"), ("user", "d<image>"), ("assistant", "e"), images=images)
    (sequence,) = qwen3_vl.renderer().render_training(chat)
    text = qwen3_vl.processor.apply_chat_template(list(chat.messages), tokenize=False).removesuffix("\n")
    deployed = qwen3_vl.processor(text=[text], images=list(images), return_tensors="pt")
    assert sequence.token_ids.tolist() == deployed["input_ids"][0].tolist()
    assert qwen3_vl.spoken(sequence) == [f"b c{END}", f"e{END}"]
    is_image = sequence.token_ids == qwen3_vl.facts.image_token_id
    assert is_image.sum() == sum(i.num_tokens(qwen3_vl.facts.merge_size) for i in sequence.images)
    assert not (is_image & sequence.mask).any()


THOUGHTFUL = (
    ("user", "What is 1+2?"), ("assistant", "<think>\none and two\n</think>\n\n3"),
    ("user", "And 2+2?"), ("assistant", "<think>\ntwo and two\n</think>\n\n4"),
)  # fmt: skip


def test_a_template_that_drops_earlier_thoughts_gives_each_turn_its_deployed_context(thinking_vl):
    chat = example(("user", "<image>" + THOUGHTFUL[0][1]), *THOUGHTFUL[1:], images=(picture(),))
    renderer = thinking_vl.renderer()
    first, second = renderer.render_training(chat)
    assert thinking_vl.spoken(first) == [f"one and two\n</think>\n\n3{END}"]
    assert thinking_vl.spoken(second) == [f"two and two\n</think>\n\n4{END}"]
    for k, sequence in ((1, first), (3, second)):
        asked = Example(id="x", task="t", messages=chat.messages[:k], images=chat.images)
        prompt = renderer.render_prompt(asked).token_ids
        assert sequence.token_ids[: len(prompt)].tolist() == prompt.tolist()
        assert thinking_vl.tokenizer.decode(prompt[-8:]).endswith("<|im_start|>assistant\n<think>\n")
        assert sequence.mask.argmax() == len(prompt)
    assert "one and two" not in thinking_vl.tokenizer.decode(second.token_ids)
    assert first.prefix_length == second.prefix_length
    assert first.token_ids[: first.prefix_length].tolist() == second.token_ids[: first.prefix_length].tolist()
    shared = thinking_vl.tokenizer.decode(first.token_ids[: first.prefix_length])
    assert shared.endswith("<|im_start|>assistant\n") and shared.count("<|image_pad|>") == 16


def test_a_hybrid_template_trains_the_whole_answer_with_its_thought(qwen3):
    first, second = qwen3.renderer().render_training(example(*THOUGHTFUL))
    assert qwen3.spoken(first) == [f"<think>\none and two\n</think>\n\n3{END}"]
    assert qwen3.spoken(second) == [f"<think>\ntwo and two\n</think>\n\n4{END}"]


def test_the_empty_thought_that_the_generation_prompt_writes_is_not_trained(qwen3):
    chat = example(("user", "What is 1+2?"), ("assistant", "3"), ("user", "And 2+2?"), ("assistant", "4"))
    sequences = qwen3.renderer(enable_thinking=False).render_training(chat)
    assert [qwen3.spoken(s) for s in sequences] == [[f"3{END}"], [f"4{END}"]]
    assert all("<think>\n\n</think>\n\n" in qwen3.tokenizer.decode(s.token_ids[~s.mask]) for s in sequences)


def test_turns_between_which_tools_answer_keep_their_thoughts_and_stay_one_sequence(qwen3):
    call = {"type": "function", "function": {"name": "add", "arguments": {"a": 1}}}
    rows = [{"messages": [
        {"role": "user", "content": "What is 1+2?"},
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\n", "tool_calls": [call]},
        {"role": "tool", "content": "3"},
        {"role": "assistant", "content": "<think>\nso\n</think>\n\n3"},
    ]}]  # fmt: skip
    (sequence,) = qwen3.renderer().render_training(from_rows(rows)[0])
    spoken = qwen3.spoken(sequence)
    assert spoken[0].startswith("<think>\nhm\n</think>") and spoken[1] == f"<think>\nso\n</think>\n\n3{END}"


def test_an_answer_whose_first_line_break_melts_into_the_header_is_trained_as_it_would_be_sampled(qwen3_vl):
    tokenizer = qwen3_vl.tokenizer
    chat = example(("user", "a"), ("assistant", "\n\nb"), ("user", "c"), ("assistant", "d"))
    sequences = qwen3_vl.renderer().render_training(chat)
    assert [text for s in sequences for text in qwen3_vl.spoken(s)] == [f"\n\nb{END}", f"d{END}"]
    header = tokenizer("<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n")["input_ids"]
    assert sequences[0].token_ids[: len(header)].tolist() == header


def test_thoughts_in_their_own_field_are_trained_too(qwen3_vl, qwen3):
    turn = {"role": "assistant", "content": "3", "reasoning_content": "one and two"}
    rows = [{"messages": [{"role": "user", "content": "1+2?"}, turn]}]
    for tiny in (qwen3_vl, qwen3):
        (sequence,) = tiny.renderer().render_training(from_rows(rows)[0])
        assert tiny.spoken(sequence) == [f"<think>\none and two\n</think>\n\n3{END}"]


def test_a_final_answer_is_left_out_of_the_prompt(qwen3_vl):
    renderer = qwen3_vl.renderer()
    asked = example(("user", "<image>a"), images=(picture(),))
    answered = example(("user", "<image>a"), ("assistant", "b"), images=(picture(),))
    assert renderer.render_prompt(asked).token_ids.tolist() == renderer.render_prompt(answered).token_ids.tolist()


def test_a_sample_over_the_limit_is_named_with_its_length_and_never_cut(qwen3_vl):
    chat = example(("user", "<image>a"), ("assistant", "b " * 50), images=(picture(),))
    length = qwen3_vl.renderer().render_training(chat)[0].num_tokens
    assert qwen3_vl.renderer(max_length=length).render_training(chat)[0].num_tokens == length
    with pytest.raises(
        TooLong, match=rf"rows\[0\]: has {length} tokens, more than the limit of {length - 1}"
    ) as caught:
        qwen3_vl.renderer(max_length=length - 1).render_training(chat)
    assert (caught.value.num_tokens, caught.value.max_length) == (length, length - 1)
    with pytest.raises(TooLong):
        qwen3_vl.renderer(max_length=10).render_prompt(chat)


def test_a_template_that_hides_an_image_is_caught_with_both_numbers(qwen3_vl):
    blind = qwen3_vl.processor.chat_template.replace("<|vision_start|><|image_pad|><|vision_end|>", "")
    chat = example(("user", "<image>a"), ("assistant", "b"), images=(picture(),))
    whole, qwen3_vl.processor.chat_template = qwen3_vl.processor.chat_template, blind
    try:
        with pytest.raises(DataError, match=r"shows 0 images, but 1 are given"):
            qwen3_vl.renderer().render_training(chat)
    finally:
        qwen3_vl.processor.chat_template = whole


@pytest.mark.parametrize(
    ("old", "new", "kind", "message"),
    [
        ("{{- message.content }}", "{{- message.content[:1] }}", DataError, "leaves out words of the answer"),
        ("'<|im_start|>assistant\\n'", "'<|im_start|>model\\n'", DataError, "after its own generation prompt"),
        ("{{- '<|im_end|>\\n' }}", "{{- '!\\n' }}", CheckpointError, "would not stop"),
    ],
)
def test_a_template_that_would_train_something_else_is_refused(qwen3_vl, old, new, kind, message):
    whole = qwen3_vl.processor.chat_template
    assert old in whole
    qwen3_vl.processor.chat_template = whole.replace(old, new)
    chat = example(("user", "abc"), ("assistant", "def"))
    try:
        with pytest.raises(kind, match=message):
            qwen3_vl.renderer().render_training(chat)
    finally:
        qwen3_vl.processor.chat_template = whole


def test_thoughts_under_a_prompt_that_switches_thinking_off_are_refused(qwen3):
    with pytest.raises(DataError, match="enable_thinking may not suit"):
        qwen3.renderer(enable_thinking=False).render_training(example(*THOUGHTFUL))


@pytest.mark.parametrize("ours", [True, False, None])
@pytest.mark.parametrize("checkpoint", ["qwen3", "thinking_vl"])
def test_a_row_that_says_how_it_thinks_is_heard_before_the_renderer(checkpoint, ours, request):
    tiny = request.getfixturevalue(checkpoint)
    for own, answer in ((True, "<think>\none and two\n</think>\n\n3"), (False, "3")):
        turns = [("user", "What is 1+2?"), ("assistant", answer)]
        row = example(*turns, chat_template_kwargs={"enable_thinking": own})
        renderer, told = tiny.renderer(enable_thinking=ours), tiny.renderer(enable_thinking=own)
        assert renderer.render_prompt(row).token_ids.tolist() == told.render_prompt(example(*turns)).token_ids.tolist()
        (sequence,), (wanted,) = renderer.render_training(row), told.render_training(example(*turns))
        assert sequence.token_ids.tolist() == wanted.token_ids.tolist()
        assert sequence.mask.tolist() == wanted.mask.tolist()
        assert tiny.spoken(sequence)[0].removeprefix("<think>\n") == f"{answer}{END}".removeprefix("<think>\n")


def test_a_text_model_refuses_images(qwen3):
    with pytest.raises(DataError, match=r"rows\[0\]: has 1 images, but Qwen3 reads text only"):
        qwen3.renderer().render_prompt(example(("user", "<image>a"), images=(picture(),)))


def test_a_conversation_without_an_answer_cannot_be_trained(qwen3_vl):
    with pytest.raises(DataError, match="no assistant turn"):
        qwen3_vl.renderer().render_training(example(("user", "a")))


def sequence_of(ids: list[int], first_trained: int, images: Any = ()) -> TokenSequence:
    mask = np.arange(len(ids)) >= first_trained
    return TokenSequence(token_ids=np.array(ids), mask=mask, images=images)


def test_a_shared_prefix_ends_before_what_is_trained_and_before_an_image_that_differs():
    assert shared_prefix([sequence_of([1, 2, 3, 4], 2)], 9) == 2
    assert shared_prefix([sequence_of([1, 2, 3, 4], 3), sequence_of([1, 2, 5, 4], 3)], 9) == 2
    assert shared_prefix([sequence_of([1, 2, 3, 4], 1), sequence_of([1, 2, 3, 4], 3)], 9) == 1
    assert shared_prefix([sequence_of([1, 9, 9, 9, 4], 4), sequence_of([1, 9, 9, 7, 4], 4)], 9) == 1
    assert shared_prefix([sequence_of([1, 9, 9, 7, 4], 4), sequence_of([1, 9, 9, 8, 4], 4)], 9) == 3


REAL: list[Mapping[str, Any]] = [
    {"path": "sharegpt_vlm/mllm_demo.json", "rows": 6, "turns": [2, 2, 2, 2, 2, 2]},
    {"path": "qwen_finetune_demo/single_images.json", "rows": 3, "turns": [1, 1, 1], "image_strip": "demo/"},
]


@pytest.mark.parametrize("case", REAL, ids=lambda case: case["path"])
def test_real_data_sets_load_and_render(case, shared_data, qwen3_vl):
    source = open_source(SourceSpec(path=str(shared_data / case["path"]), image_strip=case.get("image_strip", "")))
    assert len(source) == case["rows"]
    renderer = qwen3_vl.renderer()
    for i, num_turns in enumerate(case["turns"]):
        chat = source[i]
        (sequence,) = renderer.render_training(chat)
        answers = [m["content"] + END for m in chat.messages if m["role"] == "assistant"]
        assert qwen3_vl.spoken(sequence) == answers and len(answers) == num_turns
        assert len(sequence.images) == len(chat.images) > 0


def test_drawn_scenes_render_to_sixteen_image_tokens_and_a_short_answer(qwen3_vl):
    (sequence,) = qwen3_vl.renderer().render_training(SceneSource(SceneSpec(task="ground"))[0])
    assert (sequence.token_ids == qwen3_vl.facts.image_token_id).sum() == 16
    assert sequence.num_tokens < 80 and sequence.num_trained < 30
