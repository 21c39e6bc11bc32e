"""Checkpoints: loading them, refusing bad ones in a sentence, saving them whole or not at all, streaming weights."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from PIL import Image
from posttrain.model.families import Family, facts_of
from posttrain.model.loading import ModelLoadError, load_model, load_processor, merge_adapter, named_weights, save_model
from posttrain.model.lora import adapters_off, add_lora
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoModelForImageTextToText, LlamaConfig


@pytest.fixture
def copy_of(tiny_checkpoint, tmp_path):
    """A checkpoint that the test may damage."""

    def copy(family=Family.QWEN3_VL):
        return shutil.copytree(tiny_checkpoint(family), tmp_path / "checkpoint")

    return copy


def trained_adapter(folder, parts=("language",)):
    model = load_model(folder)
    torch.manual_seed(1)
    wrapped = add_lora(model, facts_of(model.config), rank=4, parts=parts)
    for name, parameter in wrapped.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return wrapped.eval()


@pytest.mark.parametrize("family", Family)
def test_every_family_loads_with_its_processor(family, tiny_checkpoint):
    model = load_model(tiny_checkpoint(family))
    assert model.config.model_type == family
    assert not model.training
    processor = load_processor(tiny_checkpoint(family))
    tokenizer = processor if family is Family.QWEN3 else processor.tokenizer
    assert tokenizer.eos_token == "<|im_end|>"
    assert tokenizer.chat_template or processor.chat_template


def test_dtype_device_and_attention_are_as_asked(tiny_checkpoint):
    folder = str(tiny_checkpoint(Family.QWEN3_VL))
    model = load_model(folder, dtype=torch.bfloat16, device="cpu", attn_implementation="eager")
    assert model.dtype == torch.bfloat16
    assert model.config._attn_implementation == "eager"
    assert load_model(folder).dtype == torch.float32


def test_pixel_limits_replace_those_of_the_checkpoint(tiny_checkpoint):
    folder = tiny_checkpoint(Family.QWEN3_VL)
    size = dict(load_processor(folder, max_pixels=4096).image_processor.size)
    assert (size["shortest_edge"], size["longest_edge"]) == (1024, 4096)
    images = load_processor(folder, max_pixels=32 * 32).image_processor(Image.new("RGB", (64, 64)), return_tensors="pt")
    assert images["image_grid_thw"].tolist() == [[1, 4, 4]]
    with pytest.raises(ModelLoadError, match="is a text model"):
        load_processor(tiny_checkpoint(Family.QWEN3), max_pixels=4096)


def test_a_folder_that_is_not_there_is_named():
    with pytest.raises(ModelLoadError, match=r"^there is no folder runs/gone$"):
        load_model("./runs/gone")


def test_a_hub_name_is_not_reached_offline():
    with pytest.raises(
        ModelLoadError, match="'Qwen/Qwen3-VL-Nonexistent' is no folder here, and the hub did not give it"
    ):
        load_model("Qwen/Qwen3-VL-Nonexistent")


def test_a_file_is_not_a_checkpoint(tiny_checkpoint):
    with pytest.raises(ModelLoadError, match="is a file: give the folder"):
        load_model(tiny_checkpoint(Family.QWEN3_VL) / "model.safetensors")


def test_a_folder_without_config_says_what_is_in_it(tmp_path):
    (tmp_path / "notes.txt").write_text("nothing here")
    with pytest.raises(ModelLoadError, match=r"no config.json in it, only notes.txt"):
        load_model(tmp_path)
    with pytest.raises(ModelLoadError, match=r"no config.json in it"):
        load_processor(tmp_path)


def test_a_broken_config_is_named(copy_of):
    folder = copy_of()
    (folder / "config.json").write_text('{"model_type": "qwen3')
    with pytest.raises(ModelLoadError, match=r"config.json cannot be read"):
        load_model(folder)


@pytest.mark.parametrize("model_type", ["llama", "no_such_model"])
def test_another_kind_of_model_is_refused_by_name(model_type, tmp_path):
    LlamaConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text()) | {"model_type": model_type}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ModelLoadError, match=f"type '{model_type}'; those that can be trained: qwen2_vl"):
        load_model(tmp_path)


@pytest.mark.parametrize("keep", [4, 5000, -100])
def test_weights_that_were_cut_short_are_refused_before_anything_is_read(keep, copy_of):
    weights = copy_of() / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:keep])
    with pytest.raises(ModelLoadError, match=r"model.safetensors is damaged or cut short"):
        load_model(weights.parent)


def test_only_safetensors_are_read(copy_of):
    folder = copy_of()
    torch.save(load_file(folder / "model.safetensors"), folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()
    with pytest.raises(ModelLoadError, match=r"lacks its weights model.safetensors: only the safetensors format"):
        load_model(folder)


def test_a_missing_shard_is_named(tiny_checkpoint, tmp_path):
    model = load_model(tiny_checkpoint(Family.QWEN3_VL))
    model.save_pretrained(tmp_path, max_shard_size="500KB")
    shards = sorted(tmp_path.glob("model-*.safetensors"))
    assert len(shards) > 1
    load_model(tmp_path)
    shards[1].unlink()
    with pytest.raises(ModelLoadError, match=f"lacks its weights {shards[1].name}"):
        load_model(tmp_path)


def test_weights_missing_from_the_file_are_refused_instead_of_random(copy_of):
    folder = copy_of()
    weights = load_file(folder / "model.safetensors")
    del weights["model.language_model.norm.weight"]
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"lacks 1 weights of a Qwen3-VL, model.language_model.norm.weight first"):
        load_model(folder)


def test_weights_of_another_size_are_refused(copy_of):
    folder = copy_of()
    weights = load_file(folder / "model.safetensors")
    weights["model.language_model.norm.weight"] = torch.ones(7)
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelLoadError, match=r"the weights of .* cannot be loaded"):
        load_model(folder)


@pytest.mark.parametrize("family", Family)
def test_streamed_weights_are_those_of_the_saved_checkpoint(family, tiny_checkpoint):
    saved = load_file(tiny_checkpoint(family) / "model.safetensors")
    streamed = dict(named_weights(load_model(tiny_checkpoint(family))))
    assert streamed.keys() == saved.keys()
    assert all(torch.equal(streamed[name], saved[name]) for name in saved)


@pytest.mark.parametrize("family", Family)
def test_streamed_weights_of_an_adapted_model_are_those_of_the_merged_checkpoint(family, tiny_checkpoint, tmp_path):
    parts = ["language"] if family is Family.QWEN3 else ["vision", "merger", "language"]
    wrapped = trained_adapter(tiny_checkpoint(family), parts)
    streamed = {name: weight.clone() for name, weight in named_weights(wrapped)}
    save_model(wrapped, None, tmp_path / "adapter")
    merged = load_file(merge_adapter(tmp_path / "adapter", tmp_path / "merged") / "model.safetensors")
    base = load_file(tiny_checkpoint(family) / "model.safetensors")
    assert streamed.keys() == merged.keys() == base.keys()
    assert any((merged[name] - base[name]).abs().max() > 1e-3 for name in base)
    for name in merged:
        torch.testing.assert_close(streamed[name], merged[name], rtol=0, atol=1e-6)


def test_streamed_weights_without_the_adapters_are_the_base(tiny_checkpoint):
    folder = tiny_checkpoint(Family.QWEN3_VL)
    wrapped = trained_adapter(folder)
    with adapters_off(wrapped):
        streamed = dict(named_weights(wrapped))
    saved = load_file(folder / "model.safetensors")
    assert all(torch.equal(streamed[name], saved[name]) for name in saved)


@pytest.mark.parametrize("family", Family)
def test_a_saved_model_comes_back_as_it_was(family, tiny_checkpoint, tmp_path):
    model = load_model(tiny_checkpoint(family))
    torch.manual_seed(2)
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    again = dict(load_model(save_model(model, None, tmp_path / "saved")).named_parameters())
    gathered = save_model(model, None, tmp_path / "gathered", state_dict=model.state_dict())
    assert all(torch.equal(again[name], parameter) for name, parameter in model.named_parameters())
    saved = load_file(tmp_path / "saved" / "model.safetensors")
    assert all(torch.equal(weight, saved[name]) for name, weight in load_file(gathered / "model.safetensors").items())


def test_experts_are_stored_in_the_published_layout(tiny_checkpoint):
    saved = load_file(tiny_checkpoint(Family.QWEN3_VL_MOE) / "model.safetensors")
    # [experts, inputs, outputs], as in the released checkpoints; hidden is 96 and an expert 64 wide.
    assert saved["model.language_model.layers.0.mlp.experts.gate_up_proj"].shape == (4, 96, 2 * 64)
    assert saved["model.language_model.layers.0.mlp.experts.down_proj"].shape == (4, 64, 96)


def test_adapters_that_are_no_sum_are_refused(tiny_checkpoint):
    config = LoraConfig(r=2, target_modules=["q_proj"], use_dora=True)
    wrapped = get_peft_model(load_model(tiny_checkpoint(Family.QWEN3_VL)), config)
    with pytest.raises(ValueError, match="is not a plain LoRA"):
        dict(named_weights(wrapped))


def test_whole_modules_that_train_beside_adapters_are_streamed_under_their_own_names(tiny_checkpoint):
    folder = tiny_checkpoint(Family.QWEN3_VL)
    config = LoraConfig(r=2, target_modules=["q_proj"], modules_to_save=["merger"])
    wrapped = get_peft_model(load_model(folder), config)
    trained = wrapped.get_base_model().model.visual.merger.modules_to_save["default"].linear_fc2.bias
    trained.data.fill_(3.0)
    saved, streamed = load_file(folder / "model.safetensors"), dict(named_weights(wrapped))
    assert streamed.keys() == saved.keys()
    assert (streamed["model.visual.merger.linear_fc2.bias"] == 3.0).all()
    with adapters_off(wrapped):
        streamed = dict(named_weights(wrapped))
    assert streamed.keys() == saved.keys()
    assert torch.equal(streamed["model.visual.merger.linear_fc2.bias"], saved["model.visual.merger.linear_fc2.bias"])


def test_an_adapter_comes_back_on_its_base_and_can_train_on(tiny_checkpoint, tmp_path):
    folder = tiny_checkpoint(Family.QWEN3_VL)
    wrapped = trained_adapter(folder, ["merger", "language"])
    save_model(wrapped, load_processor(folder), tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "model.safetensors").exists()
    assert load_processor(tmp_path / "adapter").tokenizer.eos_token == "<|im_end|>"
    for is_trainable in (False, True):
        again = load_model(tmp_path / "adapter", is_trainable=is_trainable)
        assert isinstance(again, PeftModel)
        assert any(parameter.requires_grad for parameter in again.parameters()) == is_trainable
        ours, theirs = dict(wrapped.named_parameters()), dict(again.named_parameters())
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)


def test_an_adapter_whose_base_has_gone_says_so_and_takes_another(copy_of, tiny_checkpoint, tmp_path):
    folder = copy_of()
    save_model(trained_adapter(folder), None, tmp_path / "adapter")
    shutil.rmtree(folder)
    with pytest.raises(ModelLoadError, match=r"adapts .*, which is not there: give the base model"):
        load_model(tmp_path / "adapter")
    base = tiny_checkpoint(Family.QWEN3_VL)
    assert isinstance(load_model(tmp_path / "adapter", base=base), PeftModel)
    assert load_processor(tmp_path / "adapter", base=base).tokenizer.eos_token == "<|im_end|>"
    with pytest.raises(ModelLoadError, match="it takes no base model"):
        load_model(base, base=base)


def test_an_adapter_without_all_its_weights_or_of_another_size_is_refused(tiny_checkpoint, tmp_path):
    folder = tiny_checkpoint(Family.QWEN3_VL)
    adapter = save_model(trained_adapter(folder), None, tmp_path / "adapter")
    weights = load_file(adapter / "adapter_model.safetensors")
    first = sorted(weights)[0]
    save_file({n: w for n, w in weights.items() if n != first}, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelLoadError, match="does not fit its base model: Found missing adapter keys"):
        load_model(adapter)
    save_file(weights | {first: torch.ones(4, 7)}, adapter / "adapter_model.safetensors")
    with pytest.raises(ModelLoadError, match="does not fit its base model"):
        load_model(adapter)
    (adapter / "adapter_config.json").write_text("{")
    with pytest.raises(ModelLoadError, match=r"adapter_config.json cannot be read"):
        load_model(adapter)


def test_a_merged_checkpoint_is_an_ordinary_one(tiny_checkpoint, tmp_path):
    folder = tiny_checkpoint(Family.QWEN3_VL)
    save_model(trained_adapter(folder), None, tmp_path / "adapter")
    out = merge_adapter(tmp_path / "adapter", tmp_path / "merged")
    AutoModelForImageTextToText.from_pretrained(out)
    assert load_processor(out).tokenizer.eos_token == "<|im_end|>"
    with pytest.raises(ModelLoadError, match="there is no adapter to merge"):
        merge_adapter(folder, tmp_path / "other")


def test_saving_replaces_the_checkpoint_that_was_there(copy_of):
    folder = copy_of()
    (folder / "left_over.txt").write_text("of the old one")
    model = load_model(folder)
    model.get_parameter("model.language_model.norm.weight").data.fill_(2.0)
    save_model(model, load_processor(folder), folder)
    assert not (folder / "left_over.txt").exists()
    assert (load_model(folder).get_parameter("model.language_model.norm.weight") == 2.0).all()
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_failed_save_leaves_the_old_checkpoint_and_no_litter(copy_of):
    folder = copy_of()
    model = load_model(folder)

    class FullDisk:
        def save_pretrained(self, path):
            raise OSError(28, "No space left on device")

    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    with pytest.raises(OSError, match="No space left"):
        save_model(model, FullDisk(), folder)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in folder.parent.iterdir()] == [folder.name]


def test_a_folder_of_something_else_is_never_replaced(tiny_checkpoint, tmp_path):
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(FileExistsError, match="holds something other than a checkpoint"):
        save_model(load_model(tiny_checkpoint(Family.QWEN3_VL)), None, tmp_path)
    assert (tmp_path / "thesis.tex").read_text() == "years of work"
