"""Tiny checkpoints' processors and facts, built once."""

from importlib.resources import files
from typing import Any

import pytest
from posttrain.model.families import Family, ModelFacts, facts_of
from posttrain.model.tiny import build_tiny
from transformers import AutoConfig, AutoProcessor, AutoTokenizer

from posttrain.data import Renderer


class Checkpoint:
    """A tiny checkpoint's processor and facts, and renderers of it."""

    def __init__(self, family: Family, folder: Any) -> None:
        build_tiny(family, folder)
        auto = AutoTokenizer if family is Family.QWEN3 else AutoProcessor
        self.processor: Any = auto.from_pretrained(folder)
        self.tokenizer: Any = self.processor if family is Family.QWEN3 else self.processor.tokenizer
        self.facts: ModelFacts = facts_of(AutoConfig.from_pretrained(folder), self.tokenizer)

    def renderer(self, **options: Any) -> Renderer:
        return Renderer(self.processor, self.facts, **{"max_length": 4096, **options})

    def spoken(self, sequence: Any) -> list[str]:
        """The trained stretches of a sequence, decoded."""
        stretches: list[list[int]] = []
        before = False
        for token, on in zip(sequence.token_ids.tolist(), sequence.mask.tolist(), strict=True):
            if on and not before:
                stretches.append([])
            if on:
                stretches[-1].append(token)
            before = on
        return [self.tokenizer.decode(ids) for ids in stretches]


@pytest.fixture(scope="session")
def qwen3_vl(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(Family.QWEN3_VL, tmp_path_factory.mktemp("qwen3_vl"))


@pytest.fixture(scope="session")
def qwen2_5_vl(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return Checkpoint(Family.QWEN2_5_VL, tmp_path_factory.mktemp("qwen2_5_vl"))


@pytest.fixture(scope="session")
def qwen3(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A text model whose template thinks, and drops the thoughts of earlier turns."""
    return Checkpoint(Family.QWEN3, tmp_path_factory.mktemp("qwen3"))


@pytest.fixture(scope="session")
def thinking_vl(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    """A Qwen3-VL whose template begins every answer with `<think>`, and drops the thoughts of earlier turns."""
    checkpoint = Checkpoint(Family.QWEN3_VL, tmp_path_factory.mktemp("thinking_vl"))
    template = files("trl").joinpath("chat_templates", "qwen3_5_think.jinja").read_text(encoding="utf-8")
    checkpoint.processor.chat_template = template
    return checkpoint
