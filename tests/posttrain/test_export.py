"""Exported models: merged adapters compute what adapter and base computed, and nothing is overwritten."""

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from posttrain.model import Budget
from posttrain.model.loading import load_model

from posttrain.data import SceneSource, SceneSpec
from posttrain.errors import CheckpointError, ConfigError
from posttrain.export import export_model, last_model
from posttrain.pipeline import run_recipe
from posttrain.recipe import parse_recipe


@pytest.fixture(scope="module")
def lora_run(tiny_vl: Path, tools: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has trained an adapter visibly."""
    stage = tools.sft_stage(steps=3, learning_rate=3e-2, warmup_frac=0.0)
    lora = {"rank": 4, "alpha": 8, "parts": ["language", "vision"]}
    recipe = {"name": "x", "output_dir": str(tmp_path_factory.mktemp("export") / "run"), "threads": 1}
    recipe |= {"model": {"path": str(tiny_vl), "dtype": "float32", "lora": lora}, "stages": {"sft": stage}}
    return run_recipe(parse_recipe(recipe)).folder


def logprobs(workshop: Any, folder: Path) -> torch.Tensor:
    loaded = workshop.load(folder)
    loaded.policy.eval()
    source = SceneSource(SceneSpec(task="ground", size=4))
    sequences = [s for i in range(4) for s in workshop.renderer(loaded).render_training(source[i])]
    return torch.cat(loaded.policy.logprobs(sequences, Budget(tokens=10**9)))


def test_a_merged_adapter_is_an_ordinary_model_with_the_same_outputs(
    lora_run: Path, tiny_vl: Path, workshop: Any, tmp_path: Path
) -> None:
    target = export_model(lora_run, tmp_path / "merged")
    assert target == tmp_path / "merged" and not (target / "adapter_config.json").exists()
    assert not isinstance(load_model(target), PeftModel)
    adapted, merged = logprobs(workshop, lora_run / "stages/sft/final"), logprobs(workshop, target)
    assert torch.allclose(adapted, merged, atol=2e-5)  # float32: W x + B A x against (W + B A) x
    assert not torch.allclose(merged, logprobs(workshop, tiny_vl), atol=1e-2), "the adapter does something"
    assert (target / "preprocessor_config.json").exists() or (target / "processor_config.json").exists()


def test_an_adapter_alone_stays_an_adapter_of_its_base(
    lora_run: Path, tiny_vl: Path, workshop: Any, tmp_path: Path
) -> None:
    target = export_model(lora_run / "stages/sft/final", tmp_path / "adapter", adapter=True)
    assert sorted(p.name for p in target.glob("*.safetensors")) == ["adapter_model.safetensors"]
    assert torch.equal(logprobs(workshop, target), logprobs(workshop, lora_run / "stages/sft/final"))


def test_the_dtype_of_the_weights_can_be_chosen(lora_run: Path, tools: Any, tmp_path: Path) -> None:
    kinds = {w.dtype for w in tools.weights_of(export_model(lora_run, tmp_path / "half", dtype="bfloat16")).values()}
    assert kinds == {torch.bfloat16}
    with pytest.raises(ConfigError, match="dtype 'int8' is not one of float32, bfloat16, float16"):
        export_model(lora_run, tmp_path / "other", dtype="int8")


def test_a_target_that_holds_something_is_refused_and_left_alone(lora_run: Path, tmp_path: Path) -> None:
    (tmp_path / "file.txt").write_text("mine")
    for target in (tmp_path, tmp_path / "file.txt"):
        with pytest.raises(ConfigError, match="exists already and is not empty; choose another folder"):
            export_model(lora_run, target)
    assert [p.name for p in tmp_path.iterdir()] == ["file.txt"]
    (tmp_path / "empty").mkdir()
    assert export_model(lora_run, tmp_path / "empty").is_dir()


def test_sources_that_cannot_be_exported_are_one_sentence(lora_run: Path, tiny_vl: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="is a whole model, there is no adapter to write alone; leave out --adapter"):
        export_model(tiny_vl, tmp_path / "a", adapter=True)
    (tmp_path / "empty").mkdir()
    with pytest.raises(CheckpointError, match="is not a checkpoint"):
        export_model(tmp_path / "empty", tmp_path / "b")
    unfinished = tmp_path / "unfinished"
    unfinished.mkdir()
    (unfinished / "manifest.json").write_text((lora_run / "manifest.json").read_text())
    with pytest.raises(CheckpointError, match="has no finished stage yet"):
        export_model(unfinished, tmp_path / "c")
    assert last_model(lora_run) == lora_run / "stages/sft/final"
