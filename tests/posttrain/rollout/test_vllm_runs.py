"""vLLM at the ends of the pipeline: it samples a recipe's rollouts, and it serves what `posttrain export` writes."""

import json
from pathlib import Path

import pytest
import torch
from posttrain.model import Family, PackedPolicy
from posttrain.model.loading import load_model, save_model
from posttrain.model.lora import add_lora

from posttrain.export import export_model
from posttrain.pipeline import run_recipe
from posttrain.recipe import parse_recipe
from posttrain.rollout.engine import Sampling
from posttrain.rollout.vllm_engine import VllmEngine

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


def test_an_exported_adapter_is_served_with_the_logprobs_it_was_trained_with(load_tiny, tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    tiny = load_tiny(Family.QWEN3_VL)
    adapted = add_lora(load_model(tiny.folder), tiny.facts, rank=4, parts=("language", "merger", "vision"))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "lora_B" in name:
                parameter.copy_(0.05 * torch.randn(parameter.shape, generator=generator))
    save_model(adapted, tiny.processor, tmp_path / "adapter")
    exported = export_model(tmp_path / "adapter", tmp_path / "merged")
    engine = VllmEngine(exported, tiny.facts, tiny.processor, dtype="float32", max_model_len=512, max_images=4)
    try:
        requests = tiny.mixed_requests(n=2)
        samples = engine.generate(requests, Sampling(max_new_tokens=8, seed=1))
    finally:
        engine.close()
    plain = tiny.gap(requests, samples)
    tiny.policy = PackedPolicy(adapted, tiny.facts)
    assert tiny.gap(requests, samples) < 1e-5  # float32, measured 2e-6
    assert plain > 1e-2  # the adapter is in what was served


def test_a_sapo_recipe_with_vllm_trains_on_what_the_trainer_would_have_sampled(tmp_path: Path) -> None:
    pytest.importorskip("vllm", reason="vLLM is not installed")
    recipe = parse_recipe(
        {
            "name": "vllm",
            "output_dir": str(tmp_path / "run"),
            "threads": 1,
            "model": {"tiny": "qwen3_vl", "dtype": "float32"},
            "engine": {"kind": "vllm", "max_model_len": 256},
            "rewards": {"ground": {"rewards": [{"name": "format", "options": {"pattern": "json"}}]}},
            "stages": {
                "sapo": {
                    "algorithm": "sapo",
                    "steps": 2,
                    "batch_size": 2,
                    "group_size": 4,
                    "max_new_tokens": 12,
                    "learning_rate": 1e-3,
                    "zero_signal": "keep",
                    "kl_coefficient": 0.1,
                    "data": [{"scenes": {"task": "ground", "size": 16}}],
                }
            },
        }
    )
    result = run_recipe(recipe)
    rows = [json.loads(line) for line in (result.folder / "stages/sapo/metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [0, 1]
    assert all(row["rollout_gap/mean"] < 1e-5 for row in rows)  # the second step's weights are new to vLLM
    assert rows[1]["kl_reference"] >= 0
    assert (result.model / "model.safetensors").is_file()
