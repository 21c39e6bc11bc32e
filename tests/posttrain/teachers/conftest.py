"""A tiny student, and teachers of other sizes that read its tokens. Nobody writes to their folders."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from posttrain.model.families import Family
from posttrain.model.tiny import TinySize, build_tiny, default_corpus

SIZES = {
    "student": (Family.QWEN3_VL, TinySize(layers=1, vision_layers=1)),
    "teacher": (Family.QWEN3_VL, TinySize(layers=2, vision_layers=1, hidden=160, heads=5, intermediate=128)),
    "text": (Family.QWEN3, TinySize(layers=2, hidden=64, heads=2)),
    "larger_patches": (Family.QWEN3_VL, TinySize(layers=1, vision_layers=1, patch=10, image_side=80)),
}


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """Name in `SIZES` -> folder."""

    @cache
    def build(name: str) -> Path:
        family, size = SIZES[name]
        folder = tmp_path_factory.mktemp("tiny") / name
        return build_tiny(family, folder, seed=len(name), size=size, corpus=default_corpus(200))

    return build
