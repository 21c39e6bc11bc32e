"""One-layer checkpoints built once, small recipes, trainers over given batches, and `posttrain` as a process."""

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from accelerate import Accelerator
from posttrain.algorithms import Reduction
from posttrain.model import Budget, TokenSequence
from posttrain.model.families import Family
from posttrain.model.tiny import TinySize, build_tiny
from safetensors.torch import load_file
from transformers.utils import logging

from posttrain.batches import BatchSource, StepBatch
from posttrain.build import make_renderer
from posttrain.checkpoints import Checkpoint
from posttrain.config import ModelSection, Recipe
from posttrain.data import corpus
from posttrain.loaded import Loaded, load, make_accelerator
from posttrain.objectives import Objective, Supervised
from posttrain.recipe import parse_recipe
from posttrain.runs import StageFolder
from posttrain.trainer import Trainer, TrainingSettings
from tests.waiting import PROCESS_S

logging.disable_progress_bar()

ROOT = Path(__file__).resolve().parents[2]
ONE_LAYER = TinySize(layers=1, vision_layers=1)


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    """More threads than that only slow models of this size down, and every test is to repeat exactly."""
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def tiny_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Qwen3-VL of one layer. Nobody writes to it."""
    folder = tmp_path_factory.mktemp("tiny") / "qwen3_vl"
    return build_tiny(Family.QWEN3_VL, folder, corpus=corpus(600), size=ONE_LAYER)


@pytest.fixture(scope="session")
def tiny_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A text-only Qwen3 of one layer. Nobody writes to it."""
    folder = tmp_path_factory.mktemp("tiny") / "qwen3"
    return build_tiny(Family.QWEN3, folder, corpus=corpus(600), size=ONE_LAYER)


def sft_stage(**keys: Any) -> dict[str, Any]:
    scenes = {"task": "ground", "size": 40, "loose": 0.5}
    stage = {"algorithm": "sft", "steps": 4, "batch_size": 4, "learning_rate": 1e-3, "checkpoint_every": 2}
    return {**stage, "record_trajectories": 1, "data": [{"scenes": scenes}], **keys}


def sapo_stage(**keys: Any) -> dict[str, Any]:
    stage = {"algorithm": "sapo", "steps": 4, "batch_size": 2, "group_size": 4, "max_new_tokens": 6}
    stage |= {"learning_rate": 1e-3, "checkpoint_every": 2, "record_trajectories": 1}
    return {**stage, "data": [{"scenes": {"task": "count", "size": 40}}], **keys}


LENGTH_REWARD = '''"""A reward that random models can earn: how many of an answer's bytes are letters or digits."""


def busy(completions, **columns):
    return [sum(c.isalnum() for c in turns[0]["content"]) / 20 for turns in completions]
'''


@pytest.fixture(scope="session")
def busy_reward(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """`module:function` of a reward that differs between a random model's answers; importable here and in processes."""
    folder = tmp_path_factory.mktemp("rewards")
    (folder / "busy_reward_of_tests.py").write_text(LENGTH_REWARD)
    before = os.environ.get("PYTHONPATH")
    sys.path.insert(0, str(folder))
    os.environ["PYTHONPATH"] = os.pathsep.join([str(folder), *([before] if before else [])])
    yield "busy_reward_of_tests:busy"
    sys.path.remove(str(folder))
    if before is None:
        del os.environ["PYTHONPATH"]
    else:
        os.environ["PYTHONPATH"] = before


MakeContent = Callable[..., dict[str, Any]]


@pytest.fixture
def recipe_content(tiny_vl: Path, busy_reward: str) -> MakeContent:
    """(folder, stages, **keys) -> what a recipe's YAML holds; float32, one thread, rewards that vary."""

    def make(folder: Path, stages: Mapping[str, Any] | None = None, **keys: Any) -> dict[str, Any]:
        return {
            "name": "test",
            "output_dir": str(folder),
            "threads": 1,
            "model": {"path": str(tiny_vl), "dtype": "float32"},
            "rewards": {"default": {"rewards": [{"name": busy_reward}]}},
            "stages": dict(stages or {"sft": sft_stage()}),
            **keys,
        }

    return make


@pytest.fixture
def make_recipe(recipe_content: MakeContent) -> Callable[..., Recipe]:
    return lambda *args, **keys: parse_recipe(recipe_content(*args, **keys))


@pytest.fixture(scope="session")
def accelerator(tmp_path_factory: pytest.TempPathFactory) -> Accelerator:
    return make_accelerator(ModelSection(tiny="qwen3_vl", dtype="float32"), (), tmp_path_factory.mktemp("accelerator"))


@dataclass
class GivenBatches:
    """A batch source of sequences that are given; `fails_at` stands for a machine that dies there."""

    steps: Sequence[Sequence[Sequence[TokenSequence]]]
    fails_at: int | None = None

    def batch(self, step: int) -> StepBatch:
        if step == self.fails_at:
            raise MachineDied
        return StepBatch(mini_batches=self.steps[step % len(self.steps)])


class MachineDied(Exception):
    pass


@dataclass
class Workshop:
    """Trainers over given batches."""

    model: Path
    accelerator: Accelerator

    def load(self, path: Path | None = None, **section: Any) -> Loaded:
        keys = {"path": str(self.model), "dtype": "float32", **section}
        torch.manual_seed(0)
        return load(ModelSection(**keys), path or self.model, self.accelerator)

    def renderer(self, loaded: Loaded) -> Any:
        return make_renderer(ModelSection(path=str(self.model), dtype="float32"), loaded, 4096)

    def trainer(
        self,
        loaded: Loaded,
        batches: BatchSource,
        folder: Path,
        *,
        objective: Objective | None = None,
        resume_from: Checkpoint | None = None,
        **settings: Any,
    ) -> Trainer:
        plain: dict[str, Any] = {
            "steps": 2,
            "learning_rate": 1e-3,
            "learning_rates": {},
            "optimizer": "adamw",
            "weight_decay": 0.0,
            "betas": (0.9, 0.95),
            "schedule": "constant",
            "warmup_frac": 0.0,
            "final_frac": 0.0,
            "max_grad_norm": 1.0,
            "budget": Budget(tokens=10**9),
            "checkpoint_every": 0,
            "keep_checkpoints": 2,
            "seed": 0,
            "fingerprint": "f",
        }
        return Trainer(
            policy=loaded.policy,
            processor=loaded.processor,
            objective=objective or Supervised(reduction=Reduction.TOKEN_MEAN),
            batches=batches,
            settings=TrainingSettings(**{**plain, **settings}),
            folder=StageFolder(folder),
            accelerator=self.accelerator,
            resume_from=resume_from,
        )


@pytest.fixture
def workshop(tiny_vl: Path, accelerator: Accelerator) -> Workshop:
    return Workshop(tiny_vl, accelerator)


def metrics_of(stage: Path) -> list[dict[str, Any]]:
    """What a stage measured, without what a clock says."""
    lines = (stage / "metrics.jsonl").read_text().splitlines()
    return [
        {key: value for key, value in json.loads(line).items() if not key.startswith("time") and key != "tokens_per_s"}
        for line in lines
    ]


def weights_of(folder: Path) -> dict[str, torch.Tensor]:
    (file,) = folder.glob("*model.safetensors")
    return load_file(file)


def equal_weights(first: Path, second: Path) -> bool:
    a, b = weights_of(first), weights_of(second)
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


@dataclass
class CommandLine:
    """`posttrain` as a process of its own, with one thread."""

    cwd: Path

    def start(self, *args: str, launcher: Sequence[str] = (), **options: Any) -> subprocess.Popen[str]:
        command = [*(launcher or (sys.executable,)), "-m", "posttrain", *args]
        paths = [str(ROOT), *([os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else [])]
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": os.pathsep.join(paths),
            "COLUMNS": "200",
            "NO_COLOR": "1",
        }
        return subprocess.Popen(
            command,
            cwd=self.cwd,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            **options,
        )

    def run(self, *args: str, timeout: float = PROCESS_S, **options: Any) -> tuple[int, str, str]:
        """(exit code, stdout, stderr)."""
        process = self.start(*args, **options)
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
        return process.returncode, out, err


@pytest.fixture
def command_line(tmp_path: Path) -> CommandLine:
    return CommandLine(tmp_path)


class Tools:
    """Functions that several files of tests share (test files do not import each other)."""

    sft_stage = staticmethod(sft_stage)
    sapo_stage = staticmethod(sapo_stage)
    metrics_of = staticmethod(metrics_of)
    weights_of = staticmethod(weights_of)
    equal_weights = staticmethod(equal_weights)
    GivenBatches = GivenBatches
    MachineDied = MachineDied


@pytest.fixture(scope="session")
def tools() -> Tools:
    return Tools()
