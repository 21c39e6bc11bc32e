"""Whole runs of recipes: they repeat exactly, survive being killed anywhere, and refuse what would mix two runs."""

import json
import os
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.batches import SupervisedBatches
from posttrain.errors import CheckpointError, ConfigError, DataError
from posttrain.pipeline import evaluate_recipe, run_recipe
from posttrain.rollout.batches import RolloutBatches
from tests.waiting import PROCESS_S

EVALUATION = {
    "num_examples": 3,
    "max_new_tokens": 4,
    "temperatures": [0.0, 1.0],
    "data": [{"scenes": {"task": "read", "size": 4, "seed": 9}}],
}


@pytest.fixture(scope="module")
def two_stages(tools: Any) -> dict[str, Any]:
    """SFT, then SAPO with recomputed log-probabilities, KL and dropped groups: all that a resume must restore."""
    return {
        "sft": tools.sft_stage(steps=4, optimizer="muon"),
        "sapo": tools.sapo_stage(steps=4, kl_coefficient=0.1, warmup_frac=0.5),
    }


@pytest.fixture(scope="module")
def whole_run(
    two_stages: dict[str, Any], tiny_vl: Path, busy_reward: str, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, dict[str, Any]]:
    """A run that nobody interrupted, and what its recipe says."""
    from posttrain.recipe import parse_recipe

    content = {
        "name": "test",
        "output_dir": str(tmp_path_factory.mktemp("whole") / "run"),
        "threads": 1,
        "model": {"path": str(tiny_vl), "dtype": "float32"},
        "rewards": {"default": {"rewards": [{"name": busy_reward}]}},
        "evaluation": EVALUATION,
        "stages": two_stages,
    }
    return run_recipe(parse_recipe(content)).folder, content


def recipe_at(content: dict[str, Any], folder: Path, **keys: Any) -> Any:
    from posttrain.recipe import parse_recipe

    return parse_recipe({**content, "output_dir": str(folder), **keys})


def assert_equal_runs(folder: Path, wanted: Path, tools: Any) -> None:
    for stage in ("sft", "sapo"):
        assert tools.metrics_of(folder / "stages" / stage) == tools.metrics_of(wanted / "stages" / stage)
        made, expected = (f / "stages" / stage / "final" / "model.safetensors" for f in (folder, wanted))
        assert made.read_bytes() == expected.read_bytes()
    for run in (folder, wanted):
        assert [s["name"] for s in json.loads((run / "summary.json").read_text())["stages"]] == ["sft", "sapo"]
    summaries = [json.loads((f / "summary.json").read_text())["stages"] for f in (folder, wanted)]
    for mine, theirs in zip(*summaries, strict=True):
        assert (mine["before"], mine["after"]) == (theirs["before"], theirs["after"])


def test_a_run_leaves_its_manifest_metrics_report_and_a_model_that_transformers_loads(
    whole_run: tuple[Path, dict[str, Any]], tools: Any
) -> None:
    from transformers import AutoModelForImageTextToText, AutoProcessor

    folder, _ = whole_run
    manifest = json.loads((folder / "manifest.json").read_text())
    assert manifest["recipe"]["stages"].keys() == {"sft", "sapo"} and manifest["versions"]["torch"]
    assert "<html" in (folder / "report.html").read_text()[:500]
    for stage in ("sft", "sapo"):
        rows = tools.metrics_of(folder / "stages" / stage)
        assert [row["step"] for row in rows] == [0, 1, 2, 3]
        assert not (folder / "stages" / stage / "checkpoints").exists()
    assert all(row["kl_reference"] is not None for row in tools.metrics_of(folder / "stages" / "sapo") if "loss" in row)
    AutoModelForImageTextToText.from_pretrained(folder / "stages" / "sapo" / "final")
    AutoProcessor.from_pretrained(folder / "stages" / "sapo" / "final")
    after = json.loads((folder / "summary.json").read_text())["stages"]
    assert after[0]["after"] == after[1]["before"] and after[0]["after"].keys() == {"reward/read", "reward/read @ T=1"}


def test_equal_seeds_repeat_exactly_and_another_seed_differs(
    whole_run: tuple[Path, dict[str, Any]], tools: Any, tmp_path: Path
) -> None:
    wanted, content = whole_run
    folder = run_recipe(recipe_at(content, tmp_path / "again")).folder
    assert_equal_runs(folder, wanted, tools)
    other = run_recipe(recipe_at(content, tmp_path / "other", seed=1)).folder
    assert not tools.equal_weights(other / "stages/sft/final", wanted / "stages/sft/final")
    assert tools.metrics_of(other / "stages/sapo") != tools.metrics_of(wanted / "stages/sapo")


@pytest.mark.parametrize("stage", ["sft", "sapo"])
def test_a_run_that_dies_in_the_middle_ends_as_if_it_had_not(
    stage: str,
    whole_run: tuple[Path, dict[str, Any]],
    tools: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    wanted, content = whole_run
    source: Any = SupervisedBatches if stage == "sft" else RolloutBatches
    whole = source.batch

    def dies_at_3(self: Any, step: int) -> Any:
        if step == 3:
            raise tools.MachineDied
        return whole(self, step)

    monkeypatch.setattr(source, "batch", dies_at_3)
    with pytest.raises(tools.MachineDied):
        run_recipe(recipe_at(content, tmp_path))
    assert [p.name for p in (tmp_path / "stages" / stage / "checkpoints").iterdir()] == ["step-000002"]
    assert len(tools.metrics_of(tmp_path / "stages" / stage)) == 3
    monkeypatch.setattr(source, "batch", whole)
    run_recipe(recipe_at(content, tmp_path))
    assert_equal_runs(tmp_path, wanted, tools)


def test_a_lora_run_that_dies_resumes_its_adapter_and_only_that(
    make_recipe: Callable[..., Any], tools: Any, tiny_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"path": str(tiny_vl), "dtype": "float32", "lora": {"rank": 2, "alpha": 4, "dropout": 0.3}}
    stages = {"sapo": tools.sapo_stage(steps=4, kl_coefficient=0.1, importance_cap=2.0)}
    wanted = run_recipe(make_recipe(tmp_path / "whole", stages, model=model)).folder
    whole = RolloutBatches.batch

    def dies_at_3(self: Any, step: int) -> Any:
        if step == 3:
            raise tools.MachineDied
        return whole(self, step)

    monkeypatch.setattr(RolloutBatches, "batch", dies_at_3)
    with pytest.raises(tools.MachineDied):
        run_recipe(make_recipe(tmp_path / "died", stages, model=model))
    monkeypatch.setattr(RolloutBatches, "batch", whole)
    folder = run_recipe(make_recipe(tmp_path / "died", stages, model=model)).folder
    assert tools.metrics_of(folder / "stages/sapo") == tools.metrics_of(wanted / "stages/sapo")
    final = folder / "stages/sapo/final"
    assert not (final / "model.safetensors").exists()
    assert tools.equal_weights(final, wanted / "stages/sapo/final")


def test_finished_stages_are_not_run_again(
    whole_run: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch, tools: Any, capsys: Any
) -> None:
    folder, content = whole_run

    def never(self: Any, step: int) -> Any:
        raise AssertionError("a finished stage asked for a batch")

    monkeypatch.setattr(SupervisedBatches, "batch", never)
    monkeypatch.setattr(RolloutBatches, "batch", never)
    before = (folder / "stages/sft/metrics.jsonl").stat().st_mtime_ns
    run_recipe(recipe_at(content, folder))
    assert (folder / "stages/sft/metrics.jsonl").stat().st_mtime_ns == before
    assert "sft is finished" in capsys.readouterr().err


def test_other_settings_are_refused_with_a_sentence_and_before_anything_is_written(
    make_recipe: Callable[..., Any], tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SupervisedBatches, "batch", _dying(SupervisedBatches.batch, tools, at=3))
    with pytest.raises(tools.MachineDied):
        run_recipe(make_recipe(tmp_path))
    monkeypatch.undo()
    manifest = (tmp_path / "manifest.json").read_text()
    changed = {"sft": tools.sft_stage(learning_rate=7e-4)}
    with pytest.raises(ConfigError, match=r"other settings than this recipe's; put them back .* --restart"):
        run_recipe(make_recipe(tmp_path, changed))
    assert (tmp_path / "manifest.json").read_text() == manifest
    run_recipe(make_recipe(tmp_path))
    with pytest.raises(ConfigError, match="stage 'sft' was finished with other settings"):
        run_recipe(make_recipe(tmp_path, changed))
    (tmp_path / "stages" / "mine").mkdir()
    run_recipe(make_recipe(tmp_path, changed), restart=True)
    assert not (tmp_path / "stages" / "mine").exists()
    assert json.loads((tmp_path / "manifest.json").read_text())["recipe"]["stages"]["sft"]["learning_rate"] == 7e-4


def _dying(whole: Any, tools: Any, *, at: int) -> Any:
    def batch(self: Any, step: int) -> Any:
        if step == at:
            raise tools.MachineDied
        return whole(self, step)

    return batch


def test_restart_deletes_nothing_that_the_run_did_not_make(make_recipe: Callable[..., Any], tmp_path: Path) -> None:
    precious = [tmp_path / "stages" / "of_another_program.txt", tmp_path / "model" / "weights.py"]
    for file in precious:
        file.parent.mkdir()
        file.write_text("precious")
    with pytest.raises(DataError):
        run_recipe(make_recipe(tmp_path, {"sft": _without_data()}), restart=True)
    assert all(file.read_text() == "precious" for file in precious)


def _without_data() -> dict[str, Any]:
    return {"algorithm": "sft", "steps": 1, "batch_size": 1, "data": [{"path": "nowhere.jsonl"}]}


def test_a_tiny_model_that_another_seed_left_is_built_anew(
    make_recipe: Callable[..., Any], tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = {"tiny": "qwen3_vl", "dtype": "float32"}
    stages = {"sft": tools.sft_stage(steps=1)}
    monkeypatch.setattr(SupervisedBatches, "batch", _dying(SupervisedBatches.batch, tools, at=0))
    for seed in (0, 1):
        with pytest.raises(tools.MachineDied):
            run_recipe(make_recipe(tmp_path / "reused", stages, model=model, seed=seed))
    with pytest.raises(tools.MachineDied):
        run_recipe(make_recipe(tmp_path / "fresh", stages, model=model, seed=1))
    assert tools.equal_weights(tmp_path / "reused" / "models" / "sft", tmp_path / "fresh" / "models" / "sft")


def test_a_damaged_checkpoint_is_one_sentence_that_says_which_folder_to_delete(
    make_recipe: Callable[..., Any], tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SupervisedBatches, "batch", _dying(SupervisedBatches.batch, tools, at=3))
    with pytest.raises(tools.MachineDied):
        run_recipe(make_recipe(tmp_path))
    monkeypatch.undo()
    checkpoint = tmp_path / "stages/sft/checkpoints/step-000002"
    for name in ("optimizer.safetensors", "model/model.safetensors", "state.json"):
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(whole[: len(whole) // 2])
        with pytest.raises(CheckpointError, match="step-000002") as caught:
            run_recipe(make_recipe(tmp_path))
        assert "\n" not in str(caught.value)
        (checkpoint / name).write_bytes(whole)
    run_recipe(make_recipe(tmp_path))


def test_the_newest_checkpoints_are_kept_and_half_written_ones_are_not_seen(
    make_recipe: Callable[..., Any], tools: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = {"sft": tools.sft_stage(steps=6, checkpoint_every=1, keep_checkpoints=2)}
    monkeypatch.setattr(SupervisedBatches, "batch", _dying(SupervisedBatches.batch, tools, at=5))
    with pytest.raises(tools.MachineDied):
        run_recipe(make_recipe(tmp_path, stages))
    monkeypatch.undo()
    checkpoints = tmp_path / "stages/sft/checkpoints"
    assert sorted(p.name for p in checkpoints.iterdir()) == ["step-000004", "step-000005"]
    (checkpoints / "step-000009").mkdir()  # as a process leaves it that dies while deleting
    run_recipe(make_recipe(tmp_path, stages))
    assert [row["step"] for row in tools.metrics_of(tmp_path / "stages/sft")] == list(range(6))


def test_a_second_process_on_the_same_folder_is_refused(make_recipe: Callable[..., Any], tmp_path: Path) -> None:
    from posttrain.runs import RunFolder

    with (
        RunFolder(tmp_path).lock(),
        pytest.raises(ConfigError, match=r"another process is writing to .* choose another output_dir"),
    ):
        run_recipe(make_recipe(tmp_path))


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_folder_without_write_permission_is_one_sentence(make_recipe: Callable[..., Any], tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(ConfigError, match="cannot be written: Permission denied"):
        run_recipe(make_recipe(tmp_path / "run"))


def test_an_rl_stage_without_rewards_and_rows_of_a_task_without_rewards_are_named(
    make_recipe: Callable[..., Any], tools: Any, busy_reward: str, tmp_path: Path
) -> None:
    stages = {"rl": tools.sapo_stage(steps=1)}
    with pytest.raises(ConfigError, match="stage 'rl' runs sapo and needs rewards"):
        run_recipe(make_recipe(tmp_path / "a", stages, rewards={}))
    only_maths = {"maths": {"rewards": [{"name": busy_reward}]}}
    with pytest.raises(DataError, match=r"scenes-count-0:.* is of task 'count', which has no rewards.*: maths"):
        run_recipe(make_recipe(tmp_path / "b", stages, rewards=only_maths))


def test_freezing_everything_is_one_sentence(make_recipe: Callable[..., Any], tools: Any, tmp_path: Path) -> None:
    every = ["vision", "merger", "language", "embeddings"]
    with pytest.raises(ConfigError, match="leaves nothing of this Qwen3-VL to train"):
        run_recipe(make_recipe(tmp_path, {"sft": tools.sft_stage(freeze=every)}))


def test_eval_measures_the_last_finished_stage_or_the_model_that_is_named(
    whole_run: tuple[Path, dict[str, Any]], tiny_vl: Path, tmp_path: Path
) -> None:
    folder, content = whole_run
    stages = json.loads((folder / "summary.json").read_text())["stages"]
    assert evaluate_recipe(recipe_at(content, folder)) == stages[-1]["after"]
    assert evaluate_recipe(recipe_at(content, folder), str(tiny_vl)) == stages[0]["before"]
    with pytest.raises(ConfigError, match="holds no run yet"):
        evaluate_recipe(recipe_at(content, tmp_path))
    with pytest.raises(ConfigError, match="no 'evaluation' section"):
        evaluate_recipe(recipe_at(content, folder, evaluation=None))


# Processes that are really killed.


HELD = """
# posttrain, but the batches of this kind wait before this step while this file is there.
import sys, time
from pathlib import Path
from posttrain.batches import SupervisedBatches
from posttrain.cli import main
from posttrain.rollout.batches import RolloutBatches

file, kind, step = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
held = {"sft": SupervisedBatches, "sapo": RolloutBatches}[kind]
whole = held.batch

def batch(self, number):
    while number == step and file.exists():
        time.sleep(0.01)
    return whole(self, number)

held.batch = batch
sys.argv = ["posttrain", *sys.argv[6:]]  # after -m posttrain
main()
"""


@pytest.fixture
def start_held(command_line: Any, tmp_path: Path) -> Callable[..., Any]:
    """(stage, step, arguments) -> the process, which gets no further while the file "held" is there."""
    script, file = tmp_path / "held.py", tmp_path / "held"
    script.write_text(HELD)
    file.touch()

    def start(stage: str, step: int, *args: str) -> Any:
        return command_line.start(*args, launcher=(sys.executable, str(script), str(file), stage, str(step)))

    return start


def wait_for(condition: Callable[[], bool], process: Any) -> None:
    end = time.monotonic() + PROCESS_S
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def num_rows(stage: Path) -> int:
    file = stage / "metrics.jsonl"
    return len(file.read_text().splitlines()) if file.is_file() else 0


@pytest.fixture
def long_recipe(whole_run: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """The same recipe with a folder of its own, as a file."""
    file = tmp_path / "recipe.yaml"
    file.write_text(yaml.safe_dump({**whole_run[1], "output_dir": str(tmp_path / "run")}, sort_keys=False))
    return file


@pytest.mark.slow
def test_a_process_that_is_killed_in_each_stage_goes_on_to_the_very_same_weights(
    whole_run: tuple[Path, dict[str, Any]],
    long_recipe: Path,
    command_line: Any,
    start_held: Any,
    tools: Any,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    resumed = ""
    for stage in ("sft", "sapo"):
        process = start_held(stage, 3, "run", str(long_recipe))
        checkpoints = folder / "stages" / stage / "checkpoints"
        wait_for(lambda checkpoints=checkpoints: any(checkpoints.glob("step-*/state.json")), process)
        process.kill()
        resumed += process.communicate()[1]
        assert not (folder / "stages" / stage / "result.json").exists()
    code, _, err = command_line.run("run", str(long_recipe))
    assert code == 0, err
    assert (resumed + err).count("resuming before step 2") == 2
    assert_equal_runs(folder, whole_run[0], tools)


@pytest.mark.slow
def test_ctrl_c_saves_and_says_how_to_go_on_and_the_same_command_goes_on(
    whole_run: tuple[Path, dict[str, Any]],
    long_recipe: Path,
    command_line: Any,
    start_held: Any,
    tools: Any,
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    process = start_held("sapo", 2, "run", str(long_recipe))
    wait_for(lambda: num_rows(folder / "stages" / "sapo") == 2, process)
    process.send_signal(signal.SIGINT)
    (tmp_path / "held").unlink()
    _, err = process.communicate(timeout=PROCESS_S)
    assert process.returncode == 130, err
    assert "interrupted stopped after step" in err and "run the same command to go on" in err
    assert "Traceback" not in err
    assert any((folder / "stages" / "sapo" / "checkpoints").glob("step-*"))
    code, _, err = command_line.run("run", str(long_recipe))
    assert code == 0, err
    assert_equal_runs(folder, whole_run[0], tools)


# Real rows, as others have published them.

REAL_IMAGES = [
    {"path": "sharegpt_vlm/mllm_demo.json", "limit": 4},
    {"path": "qwen_finetune_demo/single_images.json", "image_strip": "demo/", "limit": 4},
]


@pytest.mark.parametrize("source", REAL_IMAGES, ids=["sharegpt", "qwen"])
def test_published_image_conversations_are_trained_on(
    source: dict[str, Any], shared_data: Path, make_recipe: Callable[..., Any], tools: Any, tmp_path: Path
) -> None:
    data = {**source, "path": str(shared_data / source["path"])}
    stage = tools.sft_stage(steps=2, batch_size=2, data=[data])
    run_recipe(make_recipe(tmp_path, {"sft": stage}))
    rows = tools.metrics_of(tmp_path / "stages/sft")
    assert len(rows) == 2 and all(row["dropped_frac"] == 0 and row["nll"] > 0 for row in rows)


@pytest.mark.parametrize("model", ["tiny_text", "tiny_vl"])
def test_grade_school_maths_goes_through_sapo(
    model: str,
    request: pytest.FixtureRequest,
    shared_data: Path,
    make_recipe: Callable[..., Any],
    tools: Any,
    tmp_path: Path,
) -> None:
    data = {
        "path": str(shared_data / "gsm8k/train_500.jsonl"),
        "task": "maths",
        "prompt_template": "{question} Put the answer into \\boxed{{}}.",
        "answer_regex": "#### (.+)$",
        "limit": 8,
    }
    stage = tools.sapo_stage(steps=2, zero_signal="keep", data=[data])
    path = request.getfixturevalue(model)
    recipe = make_recipe(
        tmp_path,
        {"rl": stage},
        model={"path": str(path), "dtype": "float32"},
        rewards={"maths": {"rewards": [{"name": "math"}]}},
    )
    from posttrain.check import check_recipe

    assert not check_recipe(recipe).problems
    run_recipe(recipe)
    rows = tools.metrics_of(tmp_path / "stages/rl")
    assert len(rows) == 2
    for row in rows:
        assert row["reward/maths"] == 0.0 and row["zero_signal_frac"] == 1.0 and row["unscored_frac"] == 0.0
        assert row["grad_norm"] == 0.0 and row["rollout_gap/mean"] < 1e-5
    assert tools.equal_weights(tmp_path / "stages/rl/final", path), "no signal, no decay: nothing moves"


# Several processes.


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(
    make_recipe: Callable[..., Any],
    recipe_content: Callable[..., Any],
    command_line: Any,
    tools: Any,
    tmp_path: Path,
) -> None:
    """Data parallel over gloo: rows of unequal number, a rank without pictures, then RL with a reference."""
    data = [{"scenes": {"task": "ground", "size": 40}}, {"scenes": {"task": "arith", "size": 40}}]
    sft = tools.sft_stage(steps=2, warmup_frac=0.0, tokens_per_microbatch=100, data=data)
    wanted = run_recipe(make_recipe(tmp_path / "one", {"sft": sft})).folder
    stages = {"sft": sft, "rl": tools.sapo_stage(steps=2, kl_coefficient=0.1)}
    file = tmp_path / "two.yaml"
    content = recipe_content(tmp_path / "two", stages, evaluation=EVALUATION)
    file.write_text(yaml.safe_dump(content, sort_keys=False))
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    os.environ["ACCELERATE_USE_CPU"] = "true"
    try:
        code, _, err = command_line.run("run", str(file), launcher=launcher)
    finally:
        del os.environ["ACCELERATE_USE_CPU"]
    assert code == 0, err
    mine, theirs = tools.weights_of(tmp_path / "two/stages/sft/final"), tools.weights_of(wanted / "stages/sft/final")
    for name in theirs:
        assert float((mine[name] - theirs[name]).abs().max()) < 2e-5, name  # of updates of 1e-3; sums in another order
    for one, two in zip(
        tools.metrics_of(wanted / "stages/sft"), tools.metrics_of(tmp_path / "two/stages/sft"), strict=True
    ):
        assert two["rows"] < one["rows"], "each process has its share"
        for key in ("loss", "nll", "grad_norm", "learning_rate", "token_accuracy"):
            assert two[key] == pytest.approx(one[key], rel=1e-4), key
    rl = tools.metrics_of(tmp_path / "two/stages/rl")
    assert len(rl) == 2 and rl[0]["length/mean"] > 0
    assert not tools.equal_weights(tmp_path / "two/stages/rl/final", tmp_path / "two/stages/sft/final")


FSDP_ON_CPU = """
# accelerate shards on GPUs only and quietly takes data parallelism on CPUs: say that these are GPUs.
from accelerate.state import PartialState
from accelerate.utils import DistributedType

PartialState(cpu=True)
PartialState._shared_state["distributed_type"] = DistributedType.MULTI_GPU

from posttrain.batches import SupervisedBatches
from posttrain.cli import main
from posttrain.trainer import Trainer
import sys

whole_train, whole_batch, dies = Trainer.train, SupervisedBatches.batch, sys.argv.pop()

def train(self):
    assert type(next(self.policy.parameters())).__name__ == "DTensor", "nothing is sharded"
    return whole_train(self)

def batch(self, step):
    if step == int(dies):
        raise SystemExit(9)
    return whole_batch(self, step)

Trainer.train, SupervisedBatches.batch = train, batch
main()
"""


@pytest.mark.slow
def test_shards_take_the_steps_of_one_process_and_are_resumed_exactly(
    make_recipe: Callable[..., Any], recipe_content: Callable[..., Any], tools: Any, tmp_path: Path
) -> None:
    """FSDP2 over gloo."""
    import subprocess

    data = [{"scenes": {"task": "ground", "size": 40}}, {"scenes": {"task": "arith", "size": 40}}]
    sft = tools.sft_stage(steps=2, warmup_frac=0.0, tokens_per_microbatch=100, checkpoint_every=1, data=data)
    wanted = run_recipe(make_recipe(tmp_path / "one", {"sft": sft})).folder
    file, script = tmp_path / "two.yaml", tmp_path / "fsdp_on_cpu.py"
    file.write_text(yaml.safe_dump(recipe_content(tmp_path / "two", {"sft": sft})))
    script.write_text(FSDP_ON_CPU)
    environment = {"ACCELERATE_USE_CPU": "true", "ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
    environment |= {"FSDP_AUTO_WRAP_POLICY": "TRANSFORMER_BASED_WRAP", "OMP_NUM_THREADS": "1"}
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]

    def launch(dies_at: int) -> subprocess.CompletedProcess[str]:
        command = [*launcher, str(script), "run", str(file), str(dies_at)]
        root = Path(__file__).resolve().parents[2]
        paths = os.pathsep.join([str(root), *filter(None, [os.environ.get("PYTHONPATH")])])
        env = {**os.environ, **environment, "PYTHONPATH": paths}
        return subprocess.run(command, env=env, cwd=tmp_path, capture_output=True, text=True, timeout=PROCESS_S)

    assert launch(1).returncode != 0
    assert (tmp_path / "two/stages/sft/checkpoints/step-000001/sharded").is_dir()
    resumed = launch(99)
    assert resumed.returncode == 0, resumed.stderr
    assert "resuming before step 1" in resumed.stderr
    mine, theirs = tools.weights_of(tmp_path / "two/stages/sft/final"), tools.weights_of(wanted / "stages/sft/final")
    assert mine.keys() == theirs.keys()
    for name in theirs:
        assert float((mine[name] - theirs[name]).abs().max()) < 2e-5, name  # of updates of 1e-3; sums in another order
