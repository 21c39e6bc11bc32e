"""Scripted teachers, prompts in memory, and tiny checkpoints with templates that think."""

import hashlib
import io
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from posttrain.model import Family, facts_of
from posttrain.model.tiny import TinySize, build_tiny
from posttrain.rewards.table import make_table
from rich.console import Console
from transformers import AutoConfig, AutoProcessor, AutoTokenizer

from posttrain.answers import Answer, Collected, CollectSettings, collect
from posttrain.data import Mixture, Renderer, from_rows
from posttrain.records import Example
from posttrain.rollout.engine import Sampling

Say = Callable[[Example, int, int], Answer]


class MachineDied(BaseException):
    """Stands for a killed process: nothing in the project may catch it."""


def digits(example: Example, place: int, seed: int) -> Answer:
    """An answer of two words that depends on the prompt, its own place and the seed, as a sampled one does."""
    digest = hashlib.blake2b(f"{example.id}/{place}/{seed}".encode(), digest_size=4).hexdigest()
    return Answer(text=f"answer {digest}", finished=True)


@dataclass
class ScriptedTeacher:
    """Says what it is told to; `fails` maps the number of a call to what is raised then."""

    say: Say = digits
    name: str = "scripted"
    identity: str = "weights-1"
    fails: Mapping[int, BaseException] = field(default_factory=dict)
    calls: list[tuple[list[Example], int, Sampling, bool | None]] = field(default_factory=list)

    def answer(
        self, examples: Sequence[Example], *, n: int, sampling: Sampling, thinking: bool | None
    ) -> list[list[Answer]]:
        self.calls.append((list(examples), n, sampling, thinking))
        if (failure := self.fails.get(len(self.calls) - 1)) is not None:
            raise failure
        return [[self.say(example, i, sampling.seed) for i in range(n)] for example in examples]

    @property
    def asked(self) -> list[Example]:
        return [example for examples, *_ in self.calls for example in examples]


def sums(count: int, task: str = "sums") -> Any:
    return from_rows([{"prompt": f"What is {i}+1?", "answer": str(i + 1), "task": task} for i in range(count)])


def by_answer(completions: Any, answer: Any, **_: Any) -> list[float | None]:
    """A reward for functions that end in a verdict: `... 0.5` earns 0.5, `... none` is unscored."""
    words = [turns[0]["content"].split()[-1] for turns in completions]
    return [None if word == "none" else float(word) for word in words]


@dataclass
class Collecting:
    """Runs `collect` with defaults that fit tests, and keeps what it printed."""

    printed: io.StringIO = field(default_factory=io.StringIO)

    def __call__(self, folder: Path, teacher: Any = None, **keys: Any) -> Collected:
        settings = {"max_new_tokens": 8, "batch_size": 3, "seed": 5}
        given = {k: keys.pop(k) for k in list(keys) if k in CollectSettings.__dataclass_fields__}
        sources = keys.pop("sources", None) or {"sums": sums(10)}
        ratios = dict.fromkeys(sources, 1.0)
        teachers = teacher if isinstance(teacher, dict) else {"default": teacher or ScriptedTeacher()}
        return collect(
            folder,
            teachers=teachers,
            mixture=keys.pop("mixture", None) or Mixture(sources, ratios),
            settings=CollectSettings(**{**settings, **given}),
            console=keys.pop("console", None) or Console(file=self.printed, width=200),
            **keys,
        )


@pytest.fixture
def run() -> Collecting:
    return Collecting()


class Checkpoint:
    """A tiny checkpoint's processor and facts, and its renderers by way of thinking."""

    def __init__(self, family: Family, folder: Path, template: str | None = None) -> None:
        self.folder = build_tiny(family, folder, size=TinySize(layers=1, vision_layers=1))
        self.processor: Any = (AutoTokenizer if family is Family.QWEN3 else AutoProcessor).from_pretrained(folder)
        self.tokenizer: Any = self.processor if family is Family.QWEN3 else self.processor.tokenizer
        self.facts = facts_of(AutoConfig.from_pretrained(folder), self.tokenizer)
        if template is not None:
            text = files("trl").joinpath("chat_templates", f"{template}.jinja").read_text(encoding="utf-8")
            self.processor.chat_template = text

    def renderers(self, **options: Any) -> dict[bool | None, Renderer]:
        return {
            way: Renderer(self.processor, self.facts, enable_thinking=way, **{"max_length": 4096, **options})
            for way in (True, False, None)
        }

    def decode(self, token_ids: Sequence[int]) -> str:
        return self.tokenizer.decode(list(token_ids), skip_special_tokens=False)


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Checkpoint]:
    """hybrid: Qwen3, which opens its thoughts itself; opened: a template that opens them; plain: Qwen3-VL Instruct."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return {
        "hybrid": Checkpoint(Family.QWEN3, folder / "hybrid"),
        "opened": Checkpoint(Family.QWEN3_VL, folder / "opened", "qwen3_5_think"),
        "plain": Checkpoint(Family.QWEN3_VL, folder / "plain"),
    }


class Tools:
    """What several files of tests share (test files do not import each other)."""

    MachineDied = MachineDied
    ScriptedTeacher = ScriptedTeacher
    digits = staticmethod(digits)
    sums = staticmethod(sums)
    by_answer = staticmethod(by_answer)
    make_table = staticmethod(make_table)


@pytest.fixture(scope="session")
def tools() -> Tools:
    return Tools()
