"""Checkpoints: what is saved is what is loaded, and a full disk costs nothing that was saved before."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from posttrain.checkpoints import latest_checkpoint, optimizer_tensors
from posttrain.data import SceneSource, SceneSpec
from posttrain.errors import CheckpointError
from tests.waiting import PROCESS_S


@pytest.fixture
def sequences(workshop: Any) -> list[Any]:
    source, renderer = SceneSource(SceneSpec(task="ground", size=4)), workshop.renderer(workshop.load())
    return [s for i in range(4) for s in renderer.render_training(source[i])]


@pytest.mark.parametrize("optimizer", ["adamw", "muon"])
def test_weights_and_moments_come_back_exactly(
    optimizer: str, sequences: list[Any], workshop: Any, tools: Any, tmp_path: Path
) -> None:
    batches = tools.GivenBatches([[sequences]])
    trainer = workshop.trainer(workshop.load(), batches, tmp_path, optimizer=optimizer)
    trainer.train()
    trainer.save()
    checkpoint = latest_checkpoint(tmp_path / "checkpoints")
    assert checkpoint is not None and checkpoint.step == 2 and checkpoint.fingerprint == "f"
    again = workshop.load(checkpoint.model)
    resumed = workshop.trainer(again, batches, tmp_path, optimizer=optimizer, resume_from=checkpoint)
    assert resumed.step == 2
    wanted, found = dict(trainer.policy.named_parameters()), dict(again.policy.named_parameters())
    assert wanted.keys() == found.keys() and all(torch.equal(wanted[name], found[name]) for name in wanted)
    before = optimizer_tensors(trainer.policy.model, trainer._raw_optimizers)
    after = optimizer_tensors(again.policy.model, resumed._raw_optimizers)
    assert before.keys() == after.keys() and all(torch.equal(before[key], after[key]) for key in before)
    assert any("momentum_buffer" in key for key in before) == (optimizer == "muon")


def test_only_safetensors_and_json_are_written(sequences: list[Any], workshop: Any, tools: Any, tmp_path: Path) -> None:
    workshop.trainer(workshop.load(), tools.GivenBatches([[sequences]]), tmp_path).save()
    kinds = {p.suffix for p in (tmp_path / "checkpoints").rglob("*") if p.is_file()}
    assert kinds <= {".safetensors", ".json", ".jinja"}, "no pickle"


def test_a_folder_without_checkpoints_has_no_latest(tmp_path: Path) -> None:
    assert latest_checkpoint(tmp_path) is None and latest_checkpoint(tmp_path / "nowhere") is None


@pytest.mark.parametrize("state", ["", "[]", '{"step": 1}', '{"step": "x", "fingerprint": ""}'])
def test_a_damaged_state_is_named(state: str, tmp_path: Path) -> None:
    (tmp_path / "step-000001").mkdir()
    (tmp_path / "step-000001" / "state.json").write_text(state)
    with pytest.raises(CheckpointError, match=r"step-000001 is damaged .*; delete that folder to resume from the one"):
        latest_checkpoint(tmp_path)


FULL_DISK = """
import resource, sys
from pathlib import Path
from posttrain.errors import CheckpointError
from posttrain.recipe import load_recipe
from posttrain.pipeline import run_recipe
from posttrain.batches import SupervisedBatches

import signal
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
whole = SupervisedBatches.batch

def batch(self, step):
    if step == 3:  # from here on no file may grow beyond LIMIT: the disk is full
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), int(sys.argv[2])))
    return whole(self, step)

SupervisedBatches.batch = batch
try:
    run_recipe(load_recipe(Path(sys.argv[1])))
except CheckpointError as error:
    print(error)
    sys.exit(7)
"""


@pytest.mark.slow
def test_a_full_disk_is_one_sentence_and_the_checkpoint_before_it_is_whole(
    recipe_content: Any, tools: Any, tmp_path: Path
) -> None:
    import yaml

    stages = {"sft": tools.sft_stage(steps=6, checkpoint_every=2)}
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump(recipe_content(tmp_path / "run", stages)))
    script = tmp_path / "full_disk.py"
    script.write_text(FULL_DISK)
    root = Path(__file__).resolve().parents[2]
    process = subprocess.run(
        [sys.executable, str(script), str(file), "200000"], capture_output=True, text=True, cwd=root, timeout=PROCESS_S
    )
    assert process.returncode == 7, process.stderr
    assert "step-000004 cannot be written" in process.stdout and "free space and run again" in process.stdout
    checkpoints = tmp_path / "run/stages/sft/checkpoints"
    assert [p.name for p in checkpoints.iterdir()] == ["step-000002"], "no half-written one is left"
    assert json.loads((checkpoints / "step-000002/state.json").read_text())["step"] == 2
    assert load_file(checkpoints / "step-000002/optimizer.safetensors")


def test_a_final_model_that_cannot_be_written_is_one_sentence(make_recipe: Any, tools: Any, tmp_path: Path) -> None:
    from posttrain.pipeline import run_recipe

    occupied = tmp_path / "stages" / "sft" / "final"
    occupied.mkdir(parents=True)
    (occupied / "notes.txt").write_text("mine")
    with pytest.raises(CheckpointError, match=r"the trained model cannot be written to .*final"):
        run_recipe(make_recipe(tmp_path, {"sft": tools.sft_stage(steps=1)}))
    assert (occupied / "notes.txt").read_text() == "mine"
