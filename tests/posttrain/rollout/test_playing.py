"""Episodes as data: a scripted solver or a teacher plays them, and what is kept trains exactly what was said."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any

import pytest
from PIL import Image
from posttrain.model import Budget, TokenSequence
from posttrain.rewards.table import make_table

from posttrain.answers import (
    Answer,
    CollectSettings,
    EngineAnswers,
    Fate,
    SolverAnswers,
    ZoomSolver,
    collect,
    faults,
    make_solver,
)
from posttrain.build import make_environments
from posttrain.config import EnvironmentSection, ModelSection
from posttrain.data import Mixture, SceneSource, SceneSpec, SourceSpec, open_source
from posttrain.environments import Opening
from posttrain.errors import ConfigError, DataError, TeacherError
from posttrain.loaded import load
from posttrain.records import Example, Status, Turn
from posttrain.rollout.engine import Sampling
from posttrain.rollout.episode import Limits
from posttrain.rollout.rolling import Rollouts
from posttrain.rollout.rolling_batch import TaskEnvironment
from posttrain.rollout.transformers_engine import TransformersEngine

from .episodes import ScriptedEnvironment, ScriptedStreams, call


@pytest.fixture(scope="module")
def loaded(tiny_vl: Path, accelerator: Any) -> Any:
    return load(ModelSection(path=str(tiny_vl), dtype="float32"), tiny_vl, accelerator)


ZOOM = {"name": "image_zoom_in_tool", "factor": 16, "crop_size": [64, 64]}


def environments(**options: Any) -> Any:
    plain = {"tools": [ZOOM], "announce": False, "overview": 4}
    section = EnvironmentSection(name="tools", options={**plain, **options}, max_turns=4, max_images=3)  # type: ignore[call-arg]
    return make_environments({"zoom": section})


def played(solver: Any = None, **options: Any) -> SolverAnswers:
    return SolverAnswers(
        name="oracle", identity="1", solver=solver or ZoomSolver(), environments=environments(**options)
    )


def zooms(size: int = 6) -> SceneSource:
    return SceneSource(SceneSpec(task="zoom", size=size))


def answers(solver: SolverAnswers, examples: Sequence[Example], n: int = 1, seed: int = 0) -> Any:
    return solver.answer(examples, n=n, sampling=Sampling(max_new_tokens=8, seed=seed), thinking=None)


def kept(folder: Path, solver: SolverAnswers, size: int = 6, **settings: Any) -> Path:
    mixture = Mixture({"zoom": zooms(size)}, {"zoom": 1.0})
    rewards = make_table({"zoom": "exact_match"})
    plain: dict[str, Any] = {"max_new_tokens": 8, "min_reward": 1.0}
    return collect(
        folder,
        teachers={"default": solver},
        mixture=mixture,
        settings=CollectSettings(**{**plain, **settings}),
        rewards=rewards,
    ).path


def test_the_zoom_solver_looks_and_then_answers() -> None:
    (((answer,),),) = (answers(played(), [zooms()[0]]),)
    episode = answer.episode
    assert answer.finished and [len(turn.calls) for turn in episode.turns] == [1, 0]
    assert episode.turns[0].calls[0].arguments["bbox_2d"] == zooms()[0].reference["bbox_2d"]
    assert episode.turns[0].images[0].size == (64, 64) and not episode.turns[0].calls[0].error
    assert episode.turns[1].text == zooms()[0].reference["answer"]
    assert episode.opening_images[0].size == (64, 64), "the picture is shown reduced, the tool sees all of it"


def test_a_failed_call_is_read_and_mended_and_not_learnt(tmp_path: Path, workshop: Any, loaded: Any) -> None:
    path = kept(tmp_path, played(ZoomSolver(fail_frac=1.0)))
    row = json.loads(path.read_text().splitlines()[0])
    said = [message for message in row["messages"] if message["role"] == "assistant"]
    assert [message.get("weight") for message in said] == [0, None, None]
    read = [message for message in row["messages"] if message["role"] == "tool"]
    assert "Tool Execution Error" in json.dumps(read[0]) and read[1]["content"][0]["type"] == "image"
    example = open_source(SourceSpec(path=str(path)))[0]
    (sequence,) = workshop.renderer(loaded).render_training(example)
    trained = loaded.tokenizer.decode(sequence.token_ids[sequence.mask].tolist())
    assert trained.count("<tool_call>") == 1 and '"img_idx": 0' in trained and '"img_idx": 1' not in trained
    assert '"img_idx": 1' in loaded.tokenizer.decode(sequence.token_ids.tolist())


def test_a_failing_call_fails_whatever_the_row_shows() -> None:
    """The second of two images exists: a call that names it would teach the wrong crop."""
    row = zooms()[0]
    shown = ({"role": "user", "content": [{"type": "image"}, *row.messages[0]["content"]]},)
    pair = replace(row, messages=shown, images=row.images * 2)
    (((answer,),),) = (answers(played(ZoomSolver(fail_frac=1.0)), [pair]),)
    failed, mended, _ = answer.episode.turns
    assert failed.calls[0].arguments["img_idx"] == 2 and failed.calls[0].error and not failed.images
    assert not mended.calls[0].error and mended.calls[0].arguments["img_idx"] == 0
    assert answer.finished


def test_the_zoom_solver_answers_where_an_environment_counts_no_calls() -> None:
    seen = Turn(start=0, end=0, text="", observation=({"role": "user", "content": "a crop"},))
    assert ZoomSolver()(zooms()[0], [seen], Random(0)) == zooms()[0].reference["answer"]


def test_kept_episodes_train_the_very_tokens_that_a_rollout_of_the_same_words_has(
    tmp_path: Path, workshop: Any, loaded: Any
) -> None:
    path = kept(tmp_path, played())
    source = open_source(SourceSpec(path=str(path)))
    renderer = workshop.renderer(loaded)
    for place in range(len(source)):
        (sequence,) = renderer.render_training(source[place])
        (example,) = [row for row in (zooms()[i] for i in range(6)) if row.id == source[place].reference["id"]]
        said = [m["content"] for m in source[place].messages if m["role"] == "assistant"]
        rollouts = Rollouts(
            engine=ScriptedStreams(loaded.tokenizer, {"digit": said}),
            renderer=renderer,
            decode=loaded.decode,
            environments=environments(),
        )
        ((trajectory,),) = rollouts.roll([example], group_size=1, sampling=Sampling(max_new_tokens=99)).groups
        assert trajectory.status is Status.FINISHED
        assert sequence.token_ids.tolist() == trajectory.token_ids.tolist()
        assert sequence.mask.tolist() == trajectory.mask.tolist()
        assert [image.key for image in sequence.images] == [image.key for image in trajectory.images]


def test_log_probabilities_of_an_image_episode_are_the_trainers(workshop: Any, loaded: Any) -> None:
    """The tiny model says nonsense, so its calls fail: the observations are texts, the opening an image."""
    engine = TransformersEngine(loaded.policy, loaded.facts)
    rollouts = Rollouts(
        engine=engine, renderer=workshop.renderer(loaded), decode=loaded.decode, environments=environments()
    )
    rolled = rollouts.roll([zooms()[0]], group_size=4, sampling=Sampling(max_new_tokens=12, seed=1))
    sequences = [
        TokenSequence(token_ids=t.token_ids, mask=t.mask, images=t.images, prefix_length=t.prompt_length)
        for t in rolled.groups[0]
    ]
    loaded.policy.eval()
    found = loaded.policy.logprobs(sequences, Budget(tokens=4096))
    for trajectory, ours in zip(rolled.groups[0], found, strict=True):
        assert ours.numpy() == pytest.approx(trajectory.logprobs[trajectory.mask], abs=1e-4)


def test_a_teacher_plays_episodes_too(workshop: Any, loaded: Any) -> None:
    example = zooms()[0]
    call = json.dumps(
        {"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [0, 0, 500, 500], "label": "", "img_idx": 0}}
    )
    engine = ScriptedStreams(loaded.tokenizer, {"digit": [f"<tool_call>\n{call}\n</tool_call>", "7"]})
    renderer = workshop.renderer(loaded)
    teacher = EngineAnswers(
        name="t",
        identity="1",
        engine=engine,  # type: ignore[arg-type]
        renderers=dict.fromkeys((True, False, None), renderer),
        decode=loaded.decode,
        environments=environments(),
    )
    ((answer,),) = teacher.answer([example], n=1, sampling=Sampling(max_new_tokens=99), thinking=None)
    assert answer.finished and answer.episode is not None and [t.text for t in answer.episode.turns][1] == "7"


@pytest.mark.parametrize(
    ("said", "limits", "fate", "reason"),
    [
        (["hm ..."], {}, Fate.UNFINISHED, "the policy's turn met the limit of tokens"),
        ([call()], {"max_turns": 2}, Fate.CUT_SHORT, "still called tools in turn 2, which is the last allowed"),
        ([call()], {"max_images": 1}, Fate.CUT_SHORT, "asked for more than 1 images"),
    ],
)
def test_a_teachers_episode_says_which_limit_cut_it_short(
    workshop: Any, loaded: Any, said: list[str], limits: dict[str, int], fate: Fate, reason: str
) -> None:
    crop = Image.new("RGB", (64, 64))
    task = TaskEnvironment(make=lambda: ScriptedEnvironment(answers=[crop]), limits=Limits(**limits))
    (answer,) = taught(workshop, loaded, said, task)
    assert answer.episode is not None and answer.episode.error == reason
    assert faults([answer]) == [fate]


@pytest.mark.parametrize("where", ["start", "step"])
def test_a_teachers_episode_whose_environment_breaks_is_not_one_that_was_cut_off(
    workshop: Any, loaded: Any, where: str
) -> None:
    def opening(example: Example) -> Opening:
        raise RuntimeError("no simulator")

    at_start = ScriptedEnvironment(opening=opening)
    environment = at_start if where == "start" else ScriptedEnvironment(answers=[RuntimeError("no simulator")])
    (answer,) = taught(workshop, loaded, [call()], TaskEnvironment(make=lambda: environment))
    assert answer.episode is not None
    assert answer.episode.error == "the environment failed: RuntimeError: no simulator"
    assert faults([answer]) == [Fate.BROKEN]


def taught(workshop: Any, loaded: Any, said: Sequence[str], task: TaskEnvironment) -> list[Answer]:
    """What a teacher that says these turns makes of one row in that environment."""
    teacher = EngineAnswers(
        name="t",
        identity="1",
        engine=ScriptedStreams(loaded.tokenizer, {"digit": said}),  # type: ignore[arg-type]
        renderers=dict.fromkeys((True, False, None), workshop.renderer(loaded)),
        decode=loaded.decode,
        environments={"zoom": task},
    )
    (said_to_one,) = teacher.answer([zooms()[0]], n=1, sampling=Sampling(max_new_tokens=99), thinking=None)
    return said_to_one


def test_equal_seeds_play_equal_episodes_and_others_do_not() -> None:
    def texts(seed: int) -> list[str]:
        said = answers(played(ZoomSolver(loose=0.5)), [zooms()[i] for i in range(6)], n=2, seed=seed)
        return [answer.text for group in said for answer in group]

    assert texts(0) == texts(0) != texts(1)


def test_episodes_that_never_answer_are_not_kept(tmp_path: Path) -> None:
    def never(example: Example, turns: Sequence[Turn], draw: Any) -> str:
        return ZoomSolver()(example, [], draw)

    with pytest.raises(
        DataError, match=r"6 were cut short .* \(the first still called tools in turn 4, which.*max_turns"
    ):
        kept(tmp_path, played(never))


@pytest.mark.parametrize(
    ("make", "sentence"),
    [
        (lambda: make_solver("zooom", {}), "there is no solver 'zooom'; did you mean 'zoom'"),
        (lambda: make_solver("zoom", {"lose": 1.0}), "has no option 'lose'; did you mean 'loose'"),
        (lambda: make_solver("zoom", {"loose": "much"}), "option 'loose'"),
        (lambda: make_solver("no_such_module:solve", {}), "there is no module 'no_such_module'"),
    ],
)
def test_a_solver_that_cannot_be_made_is_a_sentence(make: Callable[[], Any], sentence: str) -> None:
    with pytest.raises(ConfigError, match=sentence):
        make()


def test_what_a_solver_cannot_use_is_a_sentence() -> None:
    (((broken,),),) = (answers(played(), [Example(**_as_zoom())]),)
    assert broken.episode.status is Status.ERROR and "the zoom solver needs 'bbox_2d'" in broken.episode.error
    with pytest.raises(DataError, match="of task 'count', which has no environment"):
        answers(played(), [SceneSource(SceneSpec(task="count", size=1))[0]])
    with pytest.raises(TeacherError, match="returned NoneType"):
        answers(played(lambda *_: None), [zooms()[0]])


def _as_zoom() -> dict[str, Any]:
    row = zooms()[0]
    return {"id": row.id, "task": "zoom", "messages": row.messages, "images": row.images, "reference": {"answer": "3"}}
