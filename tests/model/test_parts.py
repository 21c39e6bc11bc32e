"""Parts cover every parameter once; freezing and optimiser groups follow them."""

import pytest
import torch
from posttrain.model.families import Family, facts_of
from posttrain.model.loading import load_model
from posttrain.model.lora import add_lora
from posttrain.model.parts import Part, count_parts, freeze, parameter_groups, part_of, parts_of
from transformers import AutoModelForImageTextToText


@pytest.fixture
def model_and_facts(tiny_checkpoint):
    model = AutoModelForImageTextToText.from_pretrained(tiny_checkpoint(Family.QWEN3_VL))
    return model, facts_of(model.config)


@pytest.mark.parametrize("family", Family)
def test_parts_cover_every_parameter_exactly_once(family, tiny_checkpoint):
    model = load_model(tiny_checkpoint(family))
    facts = facts_of(model.config)
    counts = count_parts(model, facts)
    assert sum(count.total for count in counts) == sum(p.numel() for p in model.parameters())
    assert all(count.total > 0 for count in counts)
    expected = (Part.LANGUAGE, Part.EMBEDDINGS) if family is Family.QWEN3 else tuple(Part)
    assert tuple(count.part for count in counts) == parts_of(facts) == expected


@pytest.mark.parametrize("family", [f for f in Family if f is not Family.QWEN3])
def test_parts_agree_with_the_modules_of_the_model(family, tiny_checkpoint):
    model = load_model(tiny_checkpoint(family))
    facts = facts_of(model.config)
    by_module = {id(p): Part.LANGUAGE for p in model.model.language_model.parameters()}
    by_module |= {id(p): Part.VISION for p in model.model.visual.parameters()}
    by_module |= {id(p): Part.MERGER for p in model.model.visual.merger.parameters()}
    if facts.num_deepstack:
        by_module |= {id(p): Part.MERGER for p in model.model.visual.deepstack_merger_list.parameters()}
    by_module |= {id(p): Part.EMBEDDINGS for p in model.get_input_embeddings().parameters()}
    by_module |= {id(p): Part.EMBEDDINGS for p in model.get_output_embeddings().parameters()}
    assert {name: part_of(name, facts) for name, _ in model.named_parameters()} == {
        name: by_module[id(parameter)] for name, parameter in model.named_parameters()
    }


@pytest.mark.parametrize(
    ("name", "part"),
    [
        ("model.visual.deepstack_merger_list.0.linear_fc1.weight", Part.MERGER),
        ("model.visual.merger.norm.bias", Part.MERGER),
        ("model.visual.pos_embed.weight", Part.VISION),
        ("lm_head.weight", Part.EMBEDDINGS),
        ("base_model.model.model.language_model.layers.0.self_attn.q_proj.base_layer.weight", Part.LANGUAGE),
        ("base_model.model.model.visual.merger.linear_fc1.lora_A.default.weight", Part.MERGER),
        ("base_model.model.model.visual.merger.modules_to_save.default.linear_fc1.weight", Part.MERGER),
        ("module._orig_mod.model.language_model.layers.0._checkpoint_wrapped_module.mlp.up_proj.weight", Part.LANGUAGE),
        ("model.visual.merger", Part.MERGER),
    ],
)
def test_names_are_recognised_through_wrappers(name, part, model_and_facts):
    assert part_of(name, model_and_facts[1]) is part


def test_a_name_of_no_part_is_refused(model_and_facts):
    with pytest.raises(ValueError, match=r"'model.audio.conv.weight' lies in no part of Qwen3-VL"):
        part_of("model.audio.conv.weight", model_and_facts[1])


def test_freezing_stops_gradients_of_those_parts_alone(model_and_facts):
    model, facts = model_and_facts
    counts = {count.part: count for count in freeze(model, facts, ["vision", "embeddings"])}
    assert counts[Part.VISION].trained == counts[Part.EMBEDDINGS].trained == 0
    assert counts[Part.MERGER].trained == counts[Part.MERGER].total > 0
    # 2 layers of attention (3 query and 1 key and value heads of 32), MLP 192, norms; and the final norm.
    attention = 96 * 96 + 2 * 32 * 96 + 96 * 96 + 2 * 32
    assert counts[Part.LANGUAGE].total == 2 * (attention + 3 * 96 * 192 + 2 * 96) + 96
    assert counts[Part.EMBEDDINGS].total == 448 * 96
    for name, parameter in model.named_parameters():
        assert parameter.requires_grad == (part_of(name, facts) in (Part.MERGER, Part.LANGUAGE))


def test_an_unknown_part_is_refused_by_name(model_and_facts):
    message = r"freeze part 'visoin' is not a part of Qwen3-VL; parts are: vision, merger, language, embeddings"
    with pytest.raises(ValueError, match=message):
        freeze(*model_and_facts, ["visoin"])
    assert all(parameter.requires_grad for parameter in model_and_facts[0].parameters())


def test_a_text_model_has_no_vision_to_freeze(tiny_checkpoint):
    model = load_model(tiny_checkpoint(Family.QWEN3))
    with pytest.raises(ValueError, match="'vision' is not a part of Qwen3; parts are: language, embeddings"):
        freeze(model, facts_of(model.config), ["vision"])


def test_freezing_everything_is_refused_and_changes_nothing(model_and_facts):
    with pytest.raises(ValueError, match="leaves nothing of this Qwen3-VL to train"):
        freeze(*model_and_facts, list(Part))
    assert all(parameter.requires_grad for parameter in model_and_facts[0].parameters())


def test_adapters_count_with_the_part_they_adapt(model_and_facts):
    model, facts = model_and_facts
    before = {count.part: count.total for count in count_parts(model, facts)}
    wrapped = add_lora(model, facts, rank=4, parts=["merger"])
    after = {count.part: count for count in count_parts(wrapped, facts)}
    # Two mergers of two layers: 192 -> 192 -> 96.
    added = 2 * 4 * ((192 + 192) + (192 + 96))
    assert after[Part.MERGER].trained == added
    assert after[Part.MERGER].total == before[Part.MERGER] + added
    assert after[Part.LANGUAGE].trained == after[Part.VISION].trained == 0


def test_groups_hold_each_trained_parameter_once_with_the_rate_of_its_part(model_and_facts):
    model, facts = model_and_facts
    freeze(model, facts, ["vision"])
    rates = {"merger": 1e-3}
    groups = parameter_groups(model, facts, learning_rate=1e-5, learning_rates=rates, weight_decay=0.1)
    held = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(held) == sorted(id(p) for p in model.parameters() if p.requires_grad)
    for group in groups:
        assert group["lr"] == (1e-3 if group["name"].startswith("merger") else 1e-5)
        for parameter in group["params"]:
            assert group["weight_decay"] == (0.1 if parameter.ndim > 1 else 0.0)
    optimizer = torch.optim.AdamW(groups)
    assert [group["name"] for group in optimizer.param_groups] == [
        "merger", "merger, no decay", "language", "language, no decay", "embeddings",
    ]  # fmt: skip


def test_a_rate_for_a_part_that_does_not_train_is_refused(model_and_facts):
    model, facts = model_and_facts
    freeze(model, facts, ["vision"])
    with pytest.raises(ValueError, match="set for part 'vision', but none of its parameters is trained"):
        parameter_groups(model, facts, learning_rate=1e-5, learning_rates={"vision": 1e-6})
    with pytest.raises(ValueError, match="part 'head' is not a part of Qwen3-VL"):
        parameter_groups(model, facts, learning_rate=1e-5, learning_rates={"head": 1e-6})


def test_groups_of_a_model_that_does_not_train_are_refused(model_and_facts):
    model, facts = model_and_facts
    with pytest.raises(ValueError, match="nothing would be trained"):
        parameter_groups(model.requires_grad_(False), facts, learning_rate=1e-5)
