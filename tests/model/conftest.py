"""Fixtures of the model tests: one tiny checkpoint of each family, built once and never written to by a test."""

import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
from posttrain.model.families import Family
from posttrain.model.tiny import build_tiny
from transformers.utils import logging

logging.disable_progress_bar()


@pytest.fixture(scope="session")
def tiny_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Family], Path]:
    """Family -> folder of its tiny checkpoint, seed 0."""
    return cache(lambda family: build_tiny(family, tmp_path_factory.mktemp("tiny") / family))
