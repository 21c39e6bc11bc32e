"""Adapters: where they go, switching them off, and merging them on the fly."""

import pytest
import torch
from peft.tuners.lora.layer import LoraLayer
from PIL import Image
from posttrain.model.families import Family, facts_of
from posttrain.model.loading import load_model
from posttrain.model.lora import adapters_off, add_lora, linear_layers, merged_parameters
from posttrain.model.parts import Part, part_of
from torch import nn
from transformers import AutoProcessor


def with_adapters(folder, *, trained=True, **options):
    """A model with LoRA whose update is not zero, as after training."""
    model = load_model(folder)
    facts = facts_of(model.config)
    torch.manual_seed(0)
    wrapped = add_lora(model, facts, **({"rank": 4} | options))
    if trained:
        for name, parameter in wrapped.named_parameters():
            if "lora_B" in name:
                nn.init.normal_(parameter, std=0.1)
    return wrapped.eval(), facts


def logits_of(model, folder):
    processor = AutoProcessor.from_pretrained(folder)
    content = [{"type": "image", "image": Image.new("RGB", (64, 64), "red")}, {"type": "text", "text": "Which digit?"}]
    prompt = processor.apply_chat_template(
        [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
    )
    with torch.no_grad():
        return model(**prompt).logits


@pytest.mark.parametrize("family", Family)
def test_adapters_go_to_every_linear_layer_of_the_parts_and_nowhere_else(family, tiny_checkpoint):
    parts = ["language"] if family is Family.QWEN3 else ["vision", "merger", "language"]
    for part in parts:
        wrapped, facts = with_adapters(tiny_checkpoint(family), parts=[part])
        trained = {name for name, parameter in wrapped.named_parameters() if parameter.requires_grad}
        assert trained and all(".lora_" in name and part_of(name, facts) == part for name in trained)
        plain = load_model(tiny_checkpoint(family))
        linear = {n for n, m in plain.named_modules() if isinstance(m, nn.Linear) and part_of(n, facts) == part}
        adapted = {n.removeprefix("base_model.model.").split(".lora_")[0] for n in trained}
        assert adapted == linear
        assert not any("lm_head" in name for name in adapted)


def test_the_language_part_means_every_projection_of_every_layer(tiny_checkpoint):
    model = load_model(tiny_checkpoint(Family.QWEN3_VL))
    names = linear_layers(model, facts_of(model.config), ["language"])
    assert len(names) == 2 * 7
    assert {name.rsplit(".", 1)[-1] for name in names} == {
        "q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj",
    }  # fmt: skip


@pytest.mark.parametrize("init", ["zero_B", "gaussian"])
def test_new_adapters_leave_the_model_as_it_was(init, tiny_checkpoint):
    folder = tiny_checkpoint(Family.QWEN3_VL)
    wrapped, _ = with_adapters(folder, trained=False, init=init, parts=["vision", "merger", "language"])
    torch.testing.assert_close(logits_of(wrapped, folder), logits_of(load_model(folder), folder), rtol=0, atol=1e-6)


def test_alpha_is_twice_the_rank_and_rslora_divides_by_its_root(tiny_checkpoint):
    folder = tiny_checkpoint(Family.QWEN3_VL)

    def scales(**options):
        wrapped, _ = with_adapters(folder, rank=16, **options)
        return {layer.scaling["default"] for layer in wrapped.modules() if isinstance(layer, LoraLayer)}

    assert scales() == {2.0}
    assert scales(alpha=8) == {0.5}
    assert scales(alpha=8, rslora=True) == {2.0}


def test_adapters_of_a_half_precision_model_are_float32_unless_one_dtype_is_asked_for(tiny_checkpoint):
    for float32, expected in ((True, torch.float32), (False, torch.bfloat16)):
        model = load_model(tiny_checkpoint(Family.QWEN3_VL), dtype=torch.bfloat16)
        wrapped = add_lora(model, facts_of(model.config), rank=2, float32=float32)
        assert {p.dtype for p in wrapped.parameters() if p.requires_grad} == {expected}
        assert {p.dtype for p in wrapped.parameters() if not p.requires_grad} == {torch.bfloat16}


def test_switched_off_the_model_is_its_base_and_afterwards_itself_again(tiny_checkpoint):
    folder = tiny_checkpoint(Family.QWEN3_VL)
    base = logits_of(load_model(folder), folder)
    wrapped, _ = with_adapters(folder)
    policy = logits_of(wrapped, folder)
    assert (policy - base).abs().max() > 1e-2
    with adapters_off(wrapped):
        torch.testing.assert_close(logits_of(wrapped, folder), base, rtol=0, atol=0)
    torch.testing.assert_close(logits_of(wrapped, folder), policy, rtol=0, atol=0)


def test_switching_off_keeps_which_adapters_train_also_after_an_error(tiny_checkpoint):
    wrapped, facts = with_adapters(tiny_checkpoint(Family.QWEN3_VL), parts=["merger", "language"])
    for name, parameter in wrapped.named_parameters():
        if part_of(name, facts) is Part.MERGER:
            parameter.requires_grad_(False)
    before = {name: parameter.requires_grad for name, parameter in wrapped.named_parameters()}
    with pytest.raises(RuntimeError, match="in the block"), adapters_off(wrapped):
        raise RuntimeError("in the block")
    assert {name: parameter.requires_grad for name, parameter in wrapped.named_parameters()} == before


def test_merged_on_the_fly_equals_merged_for_good_and_touches_nothing(tiny_checkpoint):
    wrapped, _ = with_adapters(tiny_checkpoint(Family.QWEN3_VL), parts=["vision", "merger", "language"])
    before = {name: parameter.clone() for name, parameter in wrapped.named_parameters()}
    streamed = dict(merged_parameters(wrapped.get_base_model()))
    assert all(torch.equal(before[name], parameter) for name, parameter in wrapped.named_parameters())
    merged = dict(wrapped.merge_and_unload().named_parameters())
    assert streamed.keys() == merged.keys()
    for name, weight in merged.items():
        torch.testing.assert_close(streamed[name], weight, rtol=0, atol=1e-6)


def test_switched_off_adapters_are_not_merged(tiny_checkpoint):
    folder = tiny_checkpoint(Family.QWEN3_VL)
    wrapped, _ = with_adapters(folder)
    with adapters_off(wrapped):
        streamed = dict(merged_parameters(wrapped.get_base_model()))
    for name, weight in load_model(folder).named_parameters():
        assert torch.equal(streamed[name], weight)


def test_a_model_merged_in_place_is_not_merged_twice(tiny_checkpoint):
    wrapped, _ = with_adapters(tiny_checkpoint(Family.QWEN3_VL))
    once = {name: weight.clone() for name, weight in merged_parameters(wrapped.get_base_model())}
    wrapped.merge_adapter()
    for name, weight in merged_parameters(wrapped.get_base_model()):
        torch.testing.assert_close(weight, once[name], rtol=0, atol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"parts": ["embeddings"]}, "no linear layer besides the head"),
        ({"parts": ["lanugage"]}, "LoRA part 'lanugage' is not a part of Qwen3-VL"),
        ({"parts": []}, "at least one part"),
        ({"rank": 0}, "at least 1, got 0"),
    ],
)
def test_adapters_that_cannot_be_are_refused(options, message, tiny_checkpoint):
    with pytest.raises(ValueError, match=message):
        with_adapters(tiny_checkpoint(Family.QWEN3_VL), **options)


def test_second_adapters_and_a_reference_without_adapters_are_refused(tiny_checkpoint):
    wrapped, facts = with_adapters(tiny_checkpoint(Family.QWEN3_VL))
    with pytest.raises(ValueError, match="has adapters already"):
        add_lora(wrapped, facts, rank=4)
    with pytest.raises(ValueError, match="no adapters to switch off"), adapters_off(wrapped.get_base_model()):
        pass
