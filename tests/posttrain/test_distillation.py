"""Distillation through the trainer and from recipes: the loss of the formulas, with every kind of local teacher."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from posttrain.algorithms import divergence
from posttrain.model import DenseReference, TokenSequence
from posttrain.model.families import Family
from posttrain.model.tiny import TinySize, build_tiny

from posttrain.data import SceneSource, SceneSpec, corpus
from posttrain.distillation import Distillation
from posttrain.errors import ConfigError
from posttrain.objectives import Supervised
from posttrain.pipeline import run_recipe
from posttrain.rollout.batches import RolloutBatches

WIDER = TinySize(hidden=128, heads=4, layers=1, vision_layers=1, vocab=480)
"""Another hidden size, and more rows than the student's tokenizer has tokens."""


@pytest.fixture(scope="session")
def teacher_vl(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A teacher for `tiny_vl` with its tokenizer. Nobody writes to it."""
    folder = tmp_path_factory.mktemp("teacher") / "wider"
    return build_tiny(Family.QWEN3_VL, folder, corpus=corpus(600), size=WIDER, seed=7)


@pytest.fixture(scope="session")
def teacher_text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A language model alone, with the same tokenizer."""
    folder = tmp_path_factory.mktemp("teacher") / "text"
    return build_tiny(Family.QWEN3, folder, corpus=corpus(600), size=TinySize(layers=1), seed=8)


def distill(**keys: Any) -> dict[str, Any]:
    """Two steps on answers of drawn scenes."""
    plain = {"algorithm": "distill_off_policy", "steps": 2, "batch_size": 4, "learning_rate": 1e-3}
    return {**plain, "data": [{"scenes": {"task": "ground", "size": 40}}], "record_trajectories": 1, **keys}


def on_policy(**keys: Any) -> dict[str, Any]:
    """Two steps on what the student says."""
    sampled = {"algorithm": "distill_on_policy", "max_new_tokens": 5, "group_size": 2, "checkpoint_every": 1}
    return distill(**{**sampled, **keys})


def metrics(folder: Path, stage: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "stages" / stage / "metrics.jsonl").read_text().splitlines()]


def whole_logprobs(loaded: Any, sequence: TokenSequence, temperature: float) -> torch.Tensor:
    """[N, V] by transformers' own forward pass over one sequence, at its trained tokens."""
    model = loaded.policy.base_model
    ids = torch.from_numpy(sequence.token_ids)[None]
    images = {}
    if sequence.images:
        images = {
            "pixel_values": torch.cat([image.pixel_values_PD for image in sequence.images]),
            "image_grid_thw": torch.tensor([image.grid_thw for image in sequence.images]),
            "mm_token_type_ids": (ids == loaded.facts.image_token_id).long(),
        }
    model.set_attn_implementation("sdpa")
    logits = model(input_ids=ids, **images).logits[0]
    trained = torch.from_numpy(np.flatnonzero(sequence.mask))
    return torch.log_softmax(logits[trained - 1].float() / temperature, dim=-1)


@pytest.mark.parametrize("beta", [0.0, 0.3, 1.0])
def test_a_step_minimises_what_the_formulas_say_over_unpacked_sequences(
    beta: float, workshop: Any, tiny_vl: Path, tmp_path: Path
) -> None:
    """Divergence and likelihood in one step, at temperature 1.5; float32 rounding over 480 outcomes is below 1e-5."""
    student, teacher = workshop.load(), workshop.load()
    with torch.no_grad():
        for parameter in teacher.policy.parameters():
            parameter.mul_(1.3)
    scenes = [SceneSource(SceneSpec(task=task, size=4)) for task in ("ground", "arith")]
    renderer = workshop.renderer(student)
    sequences = [s for source in scenes for i in range(3) for s in renderer.render_training(source[i])]

    def reference(row: Any) -> DenseReference:
        with torch.no_grad():
            head = teacher.policy.base_model.get_output_embeddings().weight
            return DenseReference(hidden_TH=teacher.policy.hidden_states(row), weight_VH=head)

    objective = Distillation(
        divergence=divergence(beta),
        reference=reference,
        coefficient=0.7,
        beside=Supervised(temperature=1.5),
        beside_coefficient=0.2,
    )
    from posttrain.batches import StepBatch

    class Given:
        def batch(self, step: int) -> StepBatch:
            return StepBatch(mini_batches=[sequences])

    trainer = workshop.trainer(student, Given(), tmp_path, objective=objective, steps=1, max_grad_norm=1e9)
    plain, strong = workshop.load(), teacher
    row = trainer.train_step()

    losses, far = [], []
    for sequence in sequences:
        s = whole_logprobs(plain, sequence, 1.5)
        with torch.no_grad():
            t = whole_logprobs(strong, sequence, 1.5)
        if beta == 0.0:
            apart = (t.exp() * (t - s)).sum(-1)
        elif beta == 1.0:
            apart = (s.exp() * (s - t)).sum(-1)
        else:
            m = (beta * t.exp() + (1 - beta) * s.exp()).log()
            apart = beta * (t.exp() * (t - m)).sum(-1) + (1 - beta) * (s.exp() * (s - m)).sum(-1)
        said = torch.from_numpy(sequence.token_ids[sequence.mask])
        losses.append(0.7 * apart - 0.2 * s.gather(1, said[:, None])[:, 0])
        far.append(apart.detach())
    loss = torch.cat(losses).mean()
    loss.backward()
    norm = torch.linalg.vector_norm(
        torch.stack([p.grad.norm() for p in plain.policy.parameters() if p.grad is not None])
    )
    assert row["loss"] == pytest.approx(float(loss.detach()), rel=1e-5)
    assert row["divergence"] == pytest.approx(float(torch.cat(far).mean()), rel=1e-4, abs=1e-6)
    assert row["grad_norm"] == pytest.approx(float(norm), rel=1e-4)


def test_both_phases_run_from_a_recipe_with_answers_that_the_teacher_gave(
    make_recipe: Callable[..., Any], teacher_vl: Path, tmp_path: Path
) -> None:
    stages = {
        "answers": {
            "algorithm": "answers",
            "prompts": 6,
            "answers_per_prompt": 2,
            "temperature": 1.0,
            "max_new_tokens": 24,
            "batch_size": 4,
            "data": [{"scenes": {"task": "ground", "size": 40}}],
        },
        "off_policy": distill(
            data=[{"stage": "answers"}, {"scenes": {"task": "read", "size": 20}}], sft_coefficient=0.1
        ),
        "on_policy": on_policy(),
    }
    recipe = make_recipe(tmp_path, stages, teachers={"strong": {"path": str(teacher_vl)}})
    result = run_recipe(recipe)
    names = [stage["name"] for stage in result.summary["stages"]]
    assert names == ["answers", "off_policy", "on_policy"]
    rows = metrics(tmp_path, "off_policy") + metrics(tmp_path, "on_policy")
    assert all(row["divergence"] > 0 and row["loss"] > 0 for row in rows)
    assert all("length/mean" in row and "reward" not in row for row in metrics(tmp_path, "on_policy"))
    manifest = json.loads((tmp_path / "stages" / "answers" / "data" / "manifest.json").read_text())
    assert manifest["counts"]["prompts"] == 6


def test_training_towards_a_teacher_comes_nearer_to_it(
    make_recipe: Callable[..., Any], teacher_vl: Path, tmp_path: Path
) -> None:
    stages = {"distill": on_policy(steps=12, batch_size=4, learning_rate=3e-3, checkpoint_every=0)}
    run_recipe(make_recipe(tmp_path, stages, teachers={"strong": {"path": str(teacher_vl)}}))
    rows = metrics(tmp_path, "distill")
    assert rows[-1]["divergence"] < 0.7 * rows[0]["divergence"]


@pytest.mark.parametrize(
    "keys",
    [
        {"beta": 0.5, "top_k": 8},
        {"beta": 1.0, "top_k": 8, "support": "student"},
        {"beta": 0.0, "temperature": 2.0, "reduction": "sequence_mean"},
    ],
    ids=["top-k with a tail", "the student's top k", "warm"],
)
def test_every_way_to_compare_runs_on_policy(
    keys: dict[str, Any], make_recipe: Callable[..., Any], teacher_vl: Path, tmp_path: Path
) -> None:
    run_recipe(make_recipe(tmp_path, {"distill": on_policy(**keys)}, teachers={"strong": {"path": str(teacher_vl)}}))
    assert all(row["divergence"] > 0 for row in metrics(tmp_path, "distill"))


def test_rl_with_a_teacher_in_its_loss_trains_what_has_no_signal_of_its_own(
    make_recipe: Callable[..., Any], tools: Any, teacher_vl: Path, tmp_path: Path
) -> None:
    """Every reward is 0: without the teacher the step would be empty."""
    rewards = {"default": {"rewards": [{"name": "exact_match"}]}}
    stages = {"rl": tools.sapo_stage(steps=2, distill_coefficient=0.5)}
    teachers = {"strong": {"path": str(teacher_vl)}}
    run_recipe(make_recipe(tmp_path, stages, teachers=teachers, rewards=rewards))
    for row in metrics(tmp_path, "rl"):
        assert row["empty_updates"] == 0 and row["grad_norm"] > 0 and row["zero_signal_frac"] == 1.0


def test_the_teachers_word_on_sampled_tokens_is_an_advantage(
    make_recipe: Callable[..., Any], tools: Any, teacher_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Rewards are not needed: then each token's advantage is log p_teacher - log p_student alone."""
    seen: list[Any] = []
    batch = RolloutBatches.batch
    monkeypatch.setattr(RolloutBatches, "batch", lambda self, step: seen.append(batch(self, step)) or seen[-1])
    stages = {"rl": tools.sapo_stage(steps=1, teacher_advantage=1.0, mini_batches=1)}
    recipe = make_recipe(tmp_path, stages, teachers={"strong": {"path": str(teacher_vl)}}, rewards={})
    run_recipe(recipe)
    (made,) = seen
    (sequences,) = made.mini_batches
    assert len(sequences) == 8
    assert metrics(tmp_path, "rl")[0]["empty_updates"] == 0
    from posttrain.model import Budget, PackedPolicy, facts_of
    from posttrain.model.loading import load_model, load_processor

    from posttrain.loaded import tokenizer_of

    model = load_model(teacher_vl, dtype=torch.float32)
    policy = PackedPolicy(model, facts_of(model.config, tokenizer_of(load_processor(teacher_vl))))
    said = policy.logprobs(
        [TokenSequence(token_ids=s.token_ids, mask=s.mask, images=s.images) for s in sequences], Budget(tokens=4096)
    )
    for sequence, strong in zip(sequences, said, strict=True):
        own = sequence.streams["old_logprobs"][sequence.mask]
        assert np.allclose(sequence.streams["advantages"][sequence.mask], strong.numpy() - own, atol=1e-5)


def test_a_student_with_adapters_is_its_own_teacher_and_starts_at_no_distance(
    make_recipe: Callable[..., Any], tiny_vl: Path, tmp_path: Path
) -> None:
    model = {"path": str(tiny_vl), "dtype": "float32", "lora": {"rank": 4}}
    stages = {"distill": on_policy(steps=1)}
    run_recipe(make_recipe(tmp_path, stages, model=model, teachers={"own": {"student": True}}))
    assert abs(metrics(tmp_path, "distill")[0]["divergence"]) < 1e-6
    with pytest.raises(ConfigError, match="the student is trained without any"):
        run_recipe(make_recipe(tmp_path / "plain", stages, teachers={"own": {"student": True}}))


def test_tasks_have_teachers_of_their_own_and_text_may_have_a_language_model(
    make_recipe: Callable[..., Any], teacher_vl: Path, teacher_text: Path, tmp_path: Path
) -> None:
    data = [{"scenes": {"task": "ground", "size": 20}}, {"scenes": {"task": "arith", "size": 20}}]
    teachers = {"sees": {"path": str(teacher_vl)}, "reads": {"path": str(teacher_text)}}
    routes = {"arith": "reads", "default": "sees"}
    run_recipe(make_recipe(tmp_path, {"distill": distill(data=data, teachers=routes)}, teachers=teachers))
    assert all(row["rows"] >= 2 and row["divergence"] > 0 for row in metrics(tmp_path, "distill"))
    wrong = {"distill": distill(data=data, teachers={"default": "reads"})}
    with pytest.raises(RuntimeError, match="is a text model and cannot see images"):
        run_recipe(make_recipe(tmp_path / "wrong", wrong, teachers=teachers))


def test_kept_scores_cost_a_second_run_no_teacher(
    make_recipe: Callable[..., Any], teacher_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from posttrain.teachers.local import LocalTeacher

    teachers = {"strong": {"path": str(teacher_vl), "cache": str(tmp_path / "scores")}}
    stages = {"distill": distill(top_k=16)}
    first = run_recipe(make_recipe(tmp_path / "first", stages, teachers=teachers)).folder

    def unasked(self: Any) -> Any:
        raise AssertionError("the teacher was loaded")

    monkeypatch.setattr(LocalTeacher, "_loaded", unasked)
    second = run_recipe(make_recipe(tmp_path / "second", stages, teachers=teachers)).folder
    losses = [[row["loss"] for row in metrics(folder, "distill")] for folder in (first, second)]
    assert losses[0] == losses[1]


def test_a_killed_run_of_on_policy_distillation_goes_on_to_the_same_weights(
    make_recipe: Callable[..., Any], tools: Any, teacher_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages, teachers = {"distill": on_policy(steps=3)}, {"strong": {"path": str(teacher_vl)}}
    run_recipe(make_recipe(tmp_path / "whole", stages, teachers=teachers))
    batch = RolloutBatches.batch

    def dying(self: Any, step: int) -> Any:
        if step == 2:
            raise tools.MachineDied
        return batch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(RolloutBatches, "batch", dying)
        with pytest.raises(tools.MachineDied):
            run_recipe(make_recipe(tmp_path / "cut", stages, teachers=teachers))
    run_recipe(make_recipe(tmp_path / "cut", stages, teachers=teachers))
    finals = [tmp_path / name / "stages" / "distill" / "final" for name in ("whole", "cut")]
    assert tools.equal_weights(*finals)


def test_a_student_branches_off_beside_its_teacher_in_one_recipe(
    make_recipe: Callable[..., Any], tools: Any, tmp_path: Path
) -> None:
    small = {"tiny": "qwen3_vl", "tiny_size": "small", "dtype": "float32"}
    stages = {
        "teacher": tools.sft_stage(steps=1),
        "student": tools.sft_stage(steps=1, model=small),
        "control": tools.sft_stage(steps=1, start="student"),
        "distill": distill(start="student", steps=1),
    }
    model = {"tiny": "qwen3_vl", "dtype": "float32"}
    recipe = make_recipe(tmp_path, stages, model=model, teachers={"made": {"stage": "teacher"}})
    result = run_recipe(recipe)
    assert [stage["name"] for stage in result.summary["stages"]] == list(stages)
    from transformers import AutoConfig

    sizes = {n: AutoConfig.from_pretrained(tmp_path / "stages" / n / "final").text_config.hidden_size for n in stages}
    assert sizes == {"teacher": 96, "student": 64, "control": 64, "distill": 64}


@pytest.mark.parametrize("kind", ["path", "memory"])
def test_the_python_trainer_takes_a_teacher_as_a_path_or_in_memory(
    kind: str, tiny_vl: Path, teacher_vl: Path, tmp_path: Path
) -> None:
    from posttrain.model.loading import load_model

    from posttrain import DistillationConfig, DistillationTrainer, OffPolicyDistillationConfig

    teacher = str(teacher_vl) if kind == "path" else load_model(teacher_vl, dtype=torch.float32)
    rows = [{"messages": [{"role": "user", "content": "2 + 3"}, {"role": "assistant", "content": "5"}]}] * 4
    keys = {"steps": 1, "batch_size": 2, "record_trajectories": 0}
    for config in (
        DistillationConfig(**keys, max_new_tokens=4, output_dir=str(tmp_path / "on")),
        OffPolicyDistillationConfig(**keys, output_dir=str(tmp_path / "off")),
    ):
        trainer = DistillationTrainer(str(tiny_vl), teacher, rows, config, model_section={"dtype": "float32"})
        result = trainer.train()
        assert (result.model_dir / "model.safetensors").is_file()


class Moody:
    """A teacher that is elsewhere: it scores ahead, and is down from one question on until it is well again."""

    def __init__(self, teacher: Any) -> None:
        self.teacher, self.well, self.asked = teacher, True, 0
        self.name, self.identity, self.context = "moody", "one", teacher.context

    def top_scores(self, sequences: Any, top_k: int) -> Any:
        from posttrain.errors import TeacherError

        self.asked += 1
        if not self.well and self.asked > 2:
            raise TeacherError("teacher 'moody' is down; start it and run again")
        return self.teacher.top_scores(sequences, top_k)

    def logprobs(self, sequences: Any) -> Any:
        return self.teacher.logprobs(sequences)

    def close(self) -> None: ...


def test_a_teacher_that_goes_down_stops_the_run_which_goes_on_from_that_very_step(
    tiny_vl: Path, teacher_vl: Path, tmp_path: Path
) -> None:
    from posttrain.model import Budget, PackedPolicy, facts_of
    from posttrain.model.loading import load_model, load_processor

    from posttrain import DistillationTrainer, OffPolicyDistillationConfig
    from posttrain.errors import TeacherError
    from posttrain.loaded import tokenizer_of
    from posttrain.teachers.local import LocalTeacher

    model = load_model(teacher_vl, dtype=torch.float32)
    policy = PackedPolicy(model, facts_of(model.config, tokenizer_of(load_processor(teacher_vl))))
    rows = [
        {"messages": [{"role": "user", "content": f"{i} + 3"}, {"role": "assistant", "content": str(i + 3)}]}
        for i in range(6)
    ]

    def run(folder: str, well: bool) -> Path:
        teacher = Moody(LocalTeacher("local", policy, identity="one", budget=Budget(tokens=4096), vocab_size=448))
        teacher.well = well
        keys = {"steps": 5, "batch_size": 2, "top_k": 8, "record_trajectories": 0, "checkpoint_every": 0}
        args = OffPolicyDistillationConfig(**keys, learning_rate=1e-3, output_dir=str(tmp_path / folder))
        return (
            DistillationTrainer(str(tiny_vl), teacher, rows, args, model_section={"dtype": "float32"}).train().model_dir
        )

    whole = run("whole", well=True)
    with pytest.raises(TeacherError, match="is down"):
        run("cut", well=False)
    saved = list((tmp_path / "cut" / "stages" / "distill" / "checkpoints").iterdir())
    assert len(saved) == 1
    resumed = run("cut", well=True)
    assert (resumed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()


ROWS = [{"messages": [{"role": "user", "content": "2 + 3"}, {"role": "assistant", "content": "5"}]}] * 4


def python_trainer(model: Any, teacher: Any, folder: Path, **keys: Any) -> Any:
    from posttrain import DistillationTrainer, OffPolicyDistillationConfig

    options = {key: keys.pop(key) for key in ("processing_class", "peft_config") if key in keys}
    plain = {"steps": 2, "batch_size": 2, "record_trajectories": 0, "checkpoint_every": 1, "output_dir": str(folder)}
    args = OffPolicyDistillationConfig(**{**plain, **keys})
    return DistillationTrainer(model, teacher, ROWS, args, model_section={"dtype": "float32"}, **options)


@pytest.mark.parametrize(
    ("teacher", "sentence"),
    [
        (None, "DistillationTrainer needs a teacher"),
        ({"servr": "http://x:1"}, "'servr' is not a key; did you mean 'server'?"),
        ({"stage": "sft"}, "give the folder of its model as 'path'"),
        ({"path": "PATH", "cache": "scores"}, "set top_k, such as 64"),
        ({"path": "PATH", "device": "gpu1"}, "teachers.teacher.device: 'gpu1' cannot be used here"),
    ],
)
def test_a_teacher_that_cannot_be_asked_is_one_sentence_in_python(
    teacher: Any, sentence: str, tiny_vl: Path, teacher_vl: Path, tmp_path: Path
) -> None:
    if isinstance(teacher, dict) and "path" in teacher:
        teacher = {**teacher, "path": str(teacher_vl)}
    with pytest.raises(ConfigError) as raised:
        python_trainer(str(tiny_vl), teacher, tmp_path)
    assert sentence in str(raised.value)


def test_a_model_is_not_its_own_teacher_in_memory(tiny_vl: Path, tmp_path: Path) -> None:
    from posttrain.model.loading import load_model, load_processor

    model = load_model(tiny_vl, dtype=torch.float32)
    with pytest.raises(ConfigError, match="the same model in memory"):
        python_trainer(model, model, tmp_path, processing_class=load_processor(tiny_vl))


def test_a_teacher_that_nobody_asks_is_refused(tiny_vl: Path, teacher_vl: Path, tmp_path: Path) -> None:
    from posttrain import SFTConfig, SFTTrainer

    args = SFTConfig(steps=1, output_dir=str(tmp_path))
    with pytest.raises(ConfigError, match="SFTTrainer got a teacher, and SFTConfig asks none"):
        SFTTrainer(str(tiny_vl), ROWS, args, teacher=str(teacher_vl), model_section={"dtype": "float32"})


def test_a_stage_does_not_go_on_with_another_teacher(
    make_recipe: Callable[..., Any], tools: Any, teacher_vl: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder is the same, the weights in it are not: what a server could do too."""
    import shutil

    folder = tmp_path / "teacher"
    shutil.copytree(teacher_vl, folder)
    stages, teachers = {"distill": on_policy(steps=3)}, {"strong": {"path": str(folder)}}
    batch = RolloutBatches.batch

    def dying(self: Any, step: int) -> Any:
        if step == 2:
            raise tools.MachineDied
        return batch(self, step)

    with monkeypatch.context() as patch:
        patch.setattr(RolloutBatches, "batch", dying)
        with pytest.raises(tools.MachineDied):
            run_recipe(make_recipe(tmp_path / "run", stages, teachers=teachers))
    shutil.rmtree(folder)
    build_tiny(Family.QWEN3_VL, folder, corpus=corpus(600), size=WIDER, seed=8)
    with pytest.raises(RuntimeError, match="teacher 'strong' is not the one that this stage began with"):
        run_recipe(make_recipe(tmp_path / "run", stages, teachers=teachers))
