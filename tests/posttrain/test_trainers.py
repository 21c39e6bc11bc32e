"""Trainers from Python: models on disk and in memory, rows and adapters of every kind, arguments that are wrong."""

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig, PeftModel
from posttrain.model.loading import load_model, load_processor

import posttrain
from posttrain.batches import SupervisedBatches
from posttrain.config import LoraSection
from posttrain.data import SceneSource, SceneSpec
from posttrain.errors import ConfigError, DataError
from posttrain.rollout.batches import RolloutBatches

FLOAT32 = {"dtype": "float32"}
ROWS = [
    {"messages": [{"role": "user", "content": f"{i}+1?"}, {"role": "assistant", "content": str(i + 1)}]}
    for i in range(6)
]
PROMPTS = [{"prompt": f"What is {i}+1?", "answer": str(i + 1), "level": i} for i in range(6)]
SFT: dict[str, Any] = {"steps": 3, "batch_size": 2, "learning_rate": 1e-3, "checkpoint_every": 2}
RL: dict[str, Any] = {"steps": 2, "batch_size": 2, "group_size": 3, "max_new_tokens": 5, "learning_rate": 1e-3}
RL["checkpoint_every"] = 1


def busy(completions: list[Any], **columns: Any) -> list[float]:
    """In TRL's style: message lists in, floats out."""
    assert len(columns["level"]) == len(completions) and isinstance(columns["prompts"][0], list)
    return [sum(c.isalnum() for c in turns[0]["content"]) / 20 for turns in completions]


def steps_of(result: Any, name: str, tools: Any) -> list[Any]:
    return tools.metrics_of(result.output_dir / "stages" / name)


@pytest.mark.parametrize("rows", ["list", "dataset", "source", "mapping"])
def test_sft_takes_rows_of_every_kind(rows: str, tiny_vl: Path, tools: Any, tmp_path: Path) -> None:
    given: Any = {
        "list": ROWS,
        "dataset": Dataset.from_list(ROWS),
        "source": SceneSource(SceneSpec(task="ground", size=8)),
        "mapping": {"sums": ROWS, "boxes": SceneSource(SceneSpec(task="ground", size=8))},
    }[rows]
    trainer = posttrain.SFTTrainer(
        str(tiny_vl), given, posttrain.SFTConfig(**SFT, output_dir=str(tmp_path)), model_section=FLOAT32
    )
    result = trainer.train()
    assert result.steps == 3 and len(steps_of(result, "sft", tools)) == 3
    assert result.report.is_file() and (result.model_dir / "model.safetensors").is_file()
    assert sum(part.trained for part in trainer.parts) == sum(p.numel() for p in trainer.model.parameters())


def test_a_path_and_a_model_in_memory_train_alike(tiny_vl: Path, tools: Any, tmp_path: Path) -> None:
    found = []
    for place, model in enumerate((tiny_vl, load_model(tiny_vl, dtype=torch.float32))):
        args = posttrain.SFTConfig(**SFT, output_dir=str(tmp_path / str(place)))
        trainer = posttrain.SFTTrainer(
            model, ROWS, args, processing_class=load_processor(tiny_vl), model_section=FLOAT32
        )
        found.append(trainer.train())
        if place == 1:
            assert trainer.model is model, "trained in place"
    assert steps_of(found[0], "sft", tools) == steps_of(found[1], "sft", tools)
    assert tools.equal_weights(found[0].model_dir, found[1].model_dir)


@pytest.mark.parametrize("name", ["SAPO", "GRPO", "GSPO"])
def test_rl_trainers_take_a_function_in_trls_style(name: str, tiny_text: Path, tools: Any, tmp_path: Path) -> None:
    trainer_class, config = getattr(posttrain, f"{name}Trainer"), getattr(posttrain, f"{name}Config")
    trainer = trainer_class(
        str(tiny_text), busy, PROMPTS, config(**RL, output_dir=str(tmp_path)), model_section=FLOAT32
    )
    result = trainer.train()
    rows = steps_of(result, name.lower(), tools)
    assert len(rows) == 2 and any(row.get("reward", 0) > 0 for row in rows)
    assert not tools.equal_weights(result.model_dir, tiny_text)


def test_several_rewards_are_summed_by_their_weights(tiny_text: Path, tools: Any, tmp_path: Path) -> None:
    def one(completions: list[Any], **_: Any) -> list[float]:
        return [1.0] * len(completions)

    args = posttrain.SAPOConfig(**RL, output_dir=str(tmp_path))
    trainer = posttrain.SAPOTrainer(
        str(tiny_text), [busy, one, "exact_match"], PROMPTS, args, reward_weights=[1.0, 2.0, 0.5], model_section=FLOAT32
    )
    for row in steps_of(trainer.train(), "sapo", tools):
        assert row["part/one"] == 1.0
        assert row["reward"] == pytest.approx(row["part/busy"] + 2.0 + 0.5 * row["part/exact_match"])


@pytest.mark.parametrize("kind", ["peft", "section"])
@pytest.mark.parametrize("where", ["path", "memory"])
def test_adapters_of_both_kinds_are_all_that_is_trained(
    kind: str, where: str, tiny_vl: Path, tools: Any, tmp_path: Path
) -> None:
    adapters: Any = (
        LoraConfig(r=2, lora_alpha=4, target_modules=["q_proj", "v_proj"])
        if kind == "peft"
        else LoraSection(rank=2, alpha=4)
    )
    model: Any = tiny_vl if where == "path" else load_model(tiny_vl, dtype=torch.float32)
    args = posttrain.SFTConfig(**SFT, output_dir=str(tmp_path))
    trainer = posttrain.SFTTrainer(
        model,
        ROWS,
        args,
        peft_config=adapters,
        processing_class=load_processor(tiny_vl),
        model_section=FLOAT32,
    )
    assert isinstance(trainer.model, PeftModel)
    trained = {name for name, p in trainer.model.named_parameters() if p.requires_grad}
    assert trained and all(".lora_" in name for name in trained)
    if kind == "peft":
        assert all("q_proj" in name or "v_proj" in name for name in trained)
    result = trainer.train()
    assert sorted(p.name for p in result.model_dir.glob("*.safetensors")) == ["adapter_model.safetensors"]


@pytest.mark.parametrize("where", ["path", "memory", "memory with peft"])
def test_an_interrupted_rl_run_goes_on_to_the_same_weights_and_the_same_reference(
    where: str, tiny_text: Path, tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def trainer(folder: Path) -> Any:
        args = posttrain.SAPOConfig(**{**RL, "steps": 3}, kl_coefficient=0.2, warmup_frac=0.0, output_dir=str(folder))
        in_memory = where != "path"
        return posttrain.SAPOTrainer(
            load_model(tiny_text, dtype=torch.float32) if in_memory else str(tiny_text),
            busy,
            PROMPTS,
            args,
            processing_class=load_processor(tiny_text),
            peft_config=LoraConfig(r=2, target_modules=["q_proj"]) if where == "memory with peft" else None,
            model_section=FLOAT32,
        )

    wanted = trainer(tmp_path / "whole").train()
    whole = RolloutBatches.batch

    def dies_at_2(self: Any, step: int) -> Any:
        if step == 2:
            raise tools.MachineDied
        return whole(self, step)

    monkeypatch.setattr(RolloutBatches, "batch", dies_at_2)
    with pytest.raises(tools.MachineDied):
        trainer(tmp_path / "died").train()
    monkeypatch.setattr(RolloutBatches, "batch", whole)
    result = trainer(tmp_path / "died").train()
    assert steps_of(result, "sapo", tools) == steps_of(wanted, "sapo", tools)
    assert steps_of(result, "sapo", tools)[-1]["kl_reference"] > 0
    assert tools.equal_weights(result.model_dir, wanted.model_dir)


def test_a_finished_run_starts_again_and_other_settings_are_refused_in_the_middle_of_one(
    tiny_text: Path, tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def train(**changes: Any) -> Any:
        args = posttrain.SFTConfig(**{**SFT, **changes}, output_dir=str(tmp_path))
        return posttrain.SFTTrainer(str(tiny_text), ROWS, args, model_section=FLOAT32).train()

    assert train().steps == 3
    assert len(steps_of(train(learning_rate=5e-4), "sft", tools)) == 3
    whole = SupervisedBatches.batch

    def dies_at_2(self: Any, step: int) -> Any:
        if step == 2:
            raise tools.MachineDied
        return whole(self, step)

    monkeypatch.setattr(SupervisedBatches, "batch", dies_at_2)
    with pytest.raises(tools.MachineDied):
        train()
    with pytest.raises(ConfigError, match="made with other settings"):
        train(learning_rate=5e-4)


def test_wrong_arguments_are_one_sentence(tiny_text: Path, tmp_path: Path) -> None:
    args = posttrain.SFTConfig(**SFT, output_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=r"SFTConfig: 'learning_rat' is not a key; did you mean 'learning_rate'\?"):
        posttrain.SFTConfig(**SFT, learning_rat=1)  # type: ignore[call-arg]
    with pytest.raises(ConfigError, match="give exactly one of 'steps' and 'epochs'"):
        posttrain.SAPOConfig(output_dir="x")
    with pytest.raises(ConfigError, match=r"SAPOTrainer takes args of posttrain.SAPOConfig, got SFTConfig"):
        posttrain.SAPOTrainer(str(tiny_text), busy, PROMPTS, args)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="'dtyp' is not a key; did you mean 'dtype'"):
        posttrain.SFTTrainer(str(tiny_text), ROWS, args, model_section={"dtyp": "float32"})
    with pytest.raises(ConfigError, match="a model in memory needs its processor: pass processing_class"):
        posttrain.SFTTrainer(load_model(tiny_text), ROWS, args, model_section=FLOAT32)
    with_data = posttrain.SFTConfig(**SFT, data=[{"path": "x.jsonl"}], output_dir=str(tmp_path))  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="give the rows as train_dataset"):
        posttrain.SFTTrainer(str(tiny_text), ROWS, with_data)
    rl = posttrain.SAPOConfig(**RL, output_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=r"reward_funcs: there is no reward 'maths'; did you mean 'math'\?"):
        posttrain.SAPOTrainer(str(tiny_text), "maths", PROMPTS, rl, model_section=FLOAT32)
    with pytest.raises(ConfigError, match="1 rewards have 2 reward_weights"):
        posttrain.SAPOTrainer(str(tiny_text), busy, PROMPTS, rl, reward_weights=[1, 2], model_section=FLOAT32)
    with pytest.raises(DataError, match=r"is a IterableDataset|is an IterableDataset"):
        posttrain.SFTTrainer(
            str(tiny_text),
            Dataset.from_list(ROWS).to_iterable_dataset(),  # type: ignore[arg-type]
            args,
            model_section=FLOAT32,
        )
    with pytest.raises(DataError, match=r"data set nowhere.jsonl does not exist"):
        posttrain.SFTTrainer(str(tiny_text), "nowhere.jsonl", args, model_section=FLOAT32)


def test_another_precision_in_the_same_process_is_one_sentence(
    tiny_text: Path, accelerator: Any, tmp_path: Path
) -> None:
    args = posttrain.SFTConfig(**SFT, output_dir=str(tmp_path))
    with pytest.raises(ConfigError, match=r"model.dtype is bfloat16, but this process computes in another precision"):
        posttrain.SFTTrainer(str(tiny_text), ROWS, args)
