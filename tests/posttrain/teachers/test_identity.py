"""An identity survives copying and nothing else that changes a checkpoint's numbers."""

import shutil

import pytest
import torch
from posttrain.model import facts_of
from posttrain.model.loading import load_model, load_processor, save_model
from posttrain.model.lora import add_lora
from posttrain.model.parts import freeze
from safetensors.torch import load_file, save_file

from posttrain.errors import TeacherError
from posttrain.teachers.identity import checkpoint_identity

COMMIT = "0123456789" * 4


def test_a_copy_has_the_same_identity(tmp_path, checkpoint):
    shutil.copytree(checkpoint("teacher"), tmp_path / "copy")
    assert checkpoint_identity(tmp_path / "copy") == checkpoint_identity(str(checkpoint("teacher")))
    assert checkpoint_identity(checkpoint("student")) != checkpoint_identity(checkpoint("teacher"))


@pytest.mark.parametrize("trained", ["everything", "merger"])
def test_one_small_step_changes_it_even_in_half_precision(tmp_path, checkpoint, trained):
    """AdamW's first step moves every weight by the learning rate; bfloat16 shows it in one weight of a hundred."""
    model = load_model(checkpoint("teacher"), dtype=torch.float32)
    save_model(model.to(torch.bfloat16), None, tmp_path / "before")
    model = load_model(tmp_path / "before", dtype=torch.float32)
    if trained == "merger":
        freeze(model, facts_of(model.config), ["vision", "language", "embeddings"])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.add_(1e-6 * torch.randn(parameter.shape, generator=generator).sign())
    save_model(model.to(torch.bfloat16), None, tmp_path / "after")
    before, after = (load_file(tmp_path / x / "model.safetensors") for x in ("before", "after"))
    changed = sum(int((before[name] != after[name]).sum()) for name in before)
    assert 0 < changed < 0.03 * sum(weight.numel() for weight in before.values())
    assert checkpoint_identity(tmp_path / "before") != checkpoint_identity(tmp_path / "after")


def test_every_tensor_and_the_config_are_in_it(tmp_path, checkpoint):
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("student"), folder)
    seen = {checkpoint_identity(folder)}
    weights = load_file(folder / "model.safetensors")
    for name in weights:
        changed = weights[name].clone()
        changed.view(-1)[changed.numel() // 2] += 1
        save_file({**weights, name: changed}, folder / "model.safetensors", metadata={"format": "pt"})
        seen.add(checkpoint_identity(folder))
    assert len(seen) == 1 + len(weights)
    config = folder / "config.json"
    config.write_text(config.read_text().replace('"rms_norm_eps": 1e-06', '"rms_norm_eps": 1e-05'))
    assert checkpoint_identity(folder) not in seen


def test_an_adapter_has_its_base_models_identity_in_it_wherever_that_lies(tmp_path, checkpoint):
    for place in ("a", "b"):
        shutil.copytree(checkpoint("student"), tmp_path / place)
    folders = []
    for place in ("a", "b"):
        model = load_model(tmp_path / place, dtype=torch.float32)
        torch.manual_seed(0)
        adapted = add_lora(model, facts_of(model.config), rank=2)
        folders.append(save_model(adapted, load_processor(tmp_path / place), tmp_path / f"adapter_{place}"))
    first = checkpoint_identity(folders[0])
    assert first == checkpoint_identity(folders[1])
    assert checkpoint_identity(folders[0], base=checkpoint("teacher")) != first
    weights = load_file(folders[0] / "adapter_model.safetensors")
    save_file({name: w + 1e-3 for name, w in weights.items()}, folders[0] / "adapter_model.safetensors")
    assert checkpoint_identity(folders[0]) != first


def test_what_is_not_a_whole_checkpoint_is_refused(tmp_path, checkpoint):
    with pytest.raises(TeacherError, match="is not a checkpoint: it needs a config.json and safetensors weights"):
        checkpoint_identity(tmp_path)
    folder = tmp_path / "model"
    shutil.copytree(checkpoint("student"), folder)
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    for harm in (content[:-9], b"", b"\xff" * 100, b"\x04\0\0\0\0\0\0\0nope"):
        weights.write_bytes(harm)
        with pytest.raises(TeacherError, match="is damaged or cannot be read"):
            checkpoint_identity(folder)


def test_a_hub_name_is_pinned_by_its_commit(tmp_path, monkeypatch):
    hub = tmp_path / "models--some--model"
    (hub / "refs").mkdir(parents=True)
    (hub / "refs" / "main").write_text(COMMIT)
    (hub / "snapshots" / COMMIT).mkdir(parents=True)
    (hub / "snapshots" / COMMIT / "config.json").write_text("{}")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert checkpoint_identity("some/model") == f"some/model@{COMMIT}"
    assert checkpoint_identity("some/other", revision="v2") == "some/other@v2"
