"""A local teacher behind an engine: what is kept is what a training render makes the student say, token for token."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from posttrain.model import PackedPolicy
from posttrain.model.loading import load_model

from posttrain.answers import EngineAnswers, Fate
from posttrain.data import SourceSpec, from_rows, open_source
from posttrain.errors import ConfigError
from posttrain.rollout.engine import Request, Sample, Sampling, Stream
from posttrain.rollout.transformers_engine import TransformersEngine

END = "<|im_end|>"
EMPTY_THOUGHT = "<think>\n\n</think>\n\n"


@dataclass
class TalkingEngine:
    """Goes on from where the generation prompt ends, as a trained model does: thinks unless the prompt has done so."""

    checkpoint: Any
    thinks: bool = True
    said: list[list[int]] = field(default_factory=list)

    def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample]]:
        return [[self._say(request, place) for place in range(request.n)] for request in requests]

    def _say(self, request: Request, place: int) -> Sample:
        prompt = self.checkpoint.decode(request.token_ids)
        thought, answer = f"one and {place}\nmakes\n</think>\n\n", f"It is {place + 1}.\n\n- so"
        if not self.thinks or prompt.endswith(EMPTY_THOUGHT):
            thought = ""
        elif not prompt.endswith("<think>\n"):
            thought = f"<think>\n{thought}"
        ids = self.checkpoint.tokenizer(thought + answer + END, add_special_tokens=False)["input_ids"]
        self.said.append(ids)
        zeros = np.zeros(len(ids), dtype=np.float32)
        return Sample(token_ids=np.array(ids), logprobs=zeros, stop="end", weights_version=0)

    def update_weights(self, policy: Any, version: int) -> None: ...
    def rest(self) -> None: ...
    def close(self) -> None: ...


def teacher_of(checkpoint: Any, engine: Any, **options: Any) -> EngineAnswers:
    return EngineAnswers(
        name="local",
        identity="weights-1",
        engine=engine,
        renderers=checkpoint.renderers(**options),
        decode=checkpoint.decode,
    )


def prompts(checkpoint: Any) -> Any:
    pixels = np.random.default_rng(0).integers(0, 256, (64, 96, 3), dtype=np.uint8)
    shown = {"images": [Image.fromarray(pixels)]} if checkpoint.facts.has_vision else {}
    mark = "<image>" if shown else ""
    return from_rows([
        {"prompt": "What is 1+2?", "answer": "3"},
        {"prompt": f"{mark}How many?", "answer": "4", **shown},
        {"messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is 2+2?"},
                      {"role": "assistant", "content": "4"}, {"role": "user", "content": "And 3+3? <think>\n"}]},
    ])  # fmt: skip


MODES = {True: "on", False: "off", None: "template"}


@pytest.mark.parametrize(
    ("name", "thinking", "opened"),
    [
        ("hybrid", "on", False),
        ("hybrid", "off", False),
        ("hybrid", "template", False),
        ("hybrid", "mixed", False),
        ("opened", "on", True),
        ("opened", "off", False),
        ("opened", "template", True),
        ("opened", "mixed", None),
        ("plain", "template", False),
    ],
)
def test_kept_rows_train_exactly_the_tokens_that_the_teacher_said(run, checkpoints, tmp_path, name, thinking, opened):
    checkpoint = checkpoints[name]
    engine = TalkingEngine(checkpoint, thinks=name != "plain")
    teacher = teacher_of(checkpoint, engine)
    source = prompts(checkpoint)
    made = run(tmp_path, teacher, sources={"a": source}, thinking=thinking, answers_per_prompt=3, batch_size=1)
    back = open_source(SourceSpec(path=str(made.path)))
    assert len(back) == len(engine.said) == 9
    ways = set()
    for i, said in enumerate(engine.said):
        row = back[i]
        way = row.reference.get("chat_template_kwargs", {}).get("enable_thinking")
        ways.add(way)
        renderer = checkpoint.renderers()[way]
        sequence = renderer.render_training(row)[-1]
        last = sequence.mask.nonzero()[0][-len(said) :]
        assert sequence.token_ids[last].tolist() == said, "the tokens of the teacher"
        assert last[-1] - last[0] == len(said) - 1, "in one piece"
        prompt = renderer.render_prompt(source[i // 3])
        assert sequence.token_ids[: last[0]].tolist() == prompt.token_ids.tolist(), "after what the teacher read"
        if i < 6:
            assert sequence.num_trained == len(said)
        text = row.messages[-1]["content"]
        thinks = way is not False and name != "plain"
        assert text.startswith("<think>\none and") == thinks and EMPTY_THOUGHT not in text
        if opened is not None:
            assert checkpoint.decode(said).startswith("<think>") == (thinks and not opened)
    assert ways == {"on": {True}, "off": {False}, "template": {None}, "mixed": {True, False}}[thinking]


@pytest.mark.parametrize("thinking", ["on", "off", "mixed"])
def test_a_template_that_does_not_know_thinking_is_refused_when_it_is_told_to(run, checkpoints, tmp_path, thinking):
    engine = TalkingEngine(checkpoints["plain"], thinks=False)
    with pytest.raises(ConfigError, match="teacher 'local' is asked the same with thinking on and off"):
        run(tmp_path, teacher_of(checkpoints["plain"], engine), thinking=thinking)
    assert not engine.said


def test_a_renderer_for_each_way_of_thinking_is_wanted(checkpoints):
    checkpoint = checkpoints["plain"]
    with pytest.raises(ConfigError, match="teacher 'local' needs a renderer with enable_thinking=False"):
        EngineAnswers(
            name="local",
            identity="x",
            engine=TalkingEngine(checkpoint),
            renderers={way: r for way, r in checkpoint.renderers().items() if way is not False},
            decode=checkpoint.decode,
        )


def test_prompts_over_the_limit_are_named_and_not_asked(checkpoints, caplog):
    checkpoint = checkpoints["plain"]
    engine = TalkingEngine(checkpoint, thinks=False)
    source = from_rows([{"prompt": "a"}, {"prompt": "long " * 200}, {"prompt": "b"}])
    teacher = teacher_of(checkpoint, engine, max_length=100)
    sampling = Sampling(max_new_tokens=8)
    answers = teacher.answer([source[i] for i in range(3)], n=2, sampling=sampling, thinking=None)
    assert [len(said) for said in answers] == [2, 0, 2] and len(engine.said) == 4
    assert "not asked: rows[1]: has" in caplog.text
    assert teacher.answer([source[1]], n=2, sampling=sampling, thinking=None) == [[]]


def test_a_real_engine_fills_a_data_set_that_renders_for_training(run, checkpoints, tmp_path):
    checkpoint = checkpoints["opened"]

    def teacher() -> EngineAnswers:
        model: Any = load_model(checkpoint.folder, dtype=torch.float32)
        policy = PackedPolicy(model, checkpoint.facts)
        return teacher_of(
            checkpoint, TransformersEngine(policy, checkpoint.facts, vocab_limit=len(checkpoint.tokenizer))
        )

    keys = {"sources": {"a": prompts(checkpoint)}, "thinking": "off", "answers_per_prompt": 60, "max_new_tokens": 60}
    keys |= {"batch_size": 2, "temperature": 1.0, "top_p": 1.0}
    made = run(tmp_path / "first", teacher(), **keys)
    run(tmp_path / "second", teacher(), **keys)
    for file in ("answers.jsonl", "manifest.json"):
        assert (tmp_path / "first" / file).read_bytes() == (tmp_path / "second" / file).read_bytes()
    counts = made.counts
    assert counts["answers"] == 180 == sum(counts[fate.value] for fate in Fate)
    assert counts["kept"] > 3 and counts["unfinished"] > 3, "a random model ends some of its answers"
    back = open_source(SourceSpec(path=str(made.path)))
    renderer = checkpoint.renderers()[False]
    for i in range(len(back)):
        (*_, sequence) = renderer.render_training(back[i])
        assert sequence.num_trained >= 2 and len(sequence.images) == len(back[i].images)


def test_a_killed_run_of_a_real_engine_gives_the_same_data_set(run, tools, checkpoints, tmp_path: Path):
    checkpoint = checkpoints["hybrid"]
    model: Any = load_model(checkpoint.folder, dtype=torch.float32)
    engine = TransformersEngine(PackedPolicy(model, checkpoint.facts), checkpoint.facts)

    @dataclass
    class Dying:
        left: int

        def generate(self, requests: Sequence[Request], sampling: Sampling) -> list[list[Sample]]:
            raise AssertionError("it is asked by its stream")

        def stream(self, sampling: Sampling) -> Stream:
            if not self.left:
                raise tools.MachineDied
            self.left -= 1
            return engine.stream(sampling)

    keys = {"sources": {"a": tools.sums(6)}, "answers_per_prompt": 40, "max_new_tokens": 40, "batch_size": 2}
    keys |= {"temperature": 1.0, "top_p": 1.0}
    with pytest.raises(tools.MachineDied):
        run(tmp_path / "killed", teacher_of(checkpoint, Dying(2)), **keys)
    run(tmp_path / "killed", teacher_of(checkpoint, Dying(1)), **keys)
    run(tmp_path / "whole", teacher_of(checkpoint, engine), **keys)
    rows = (tmp_path / "killed" / "answers.jsonl").read_bytes()
    assert rows == (tmp_path / "whole" / "answers.jsonl").read_bytes() and rows.count(b"\n") > 3
