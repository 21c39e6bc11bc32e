"""`posttrain check` asks a server whether its teacher can be told to think."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from posttrain.model import facts_of
from transformers import AutoConfig, AutoTokenizer

from posttrain.check import check_recipe
from posttrain.recipe import parse_recipe

from .fake_server import FakeServer


@pytest.fixture
def server(checkpoint: Callable[[str], Path]) -> Iterator[FakeServer]:
    folder = checkpoint("student")
    fake = FakeServer(facts_of(AutoConfig.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)))
    yield fake
    fake.stop()


@pytest.mark.parametrize(
    ("thinking", "reads", "is_ready"), [("off", True, True), ("on", False, False), ("template", False, True)]
)
def test_a_served_template_that_thinks_alike_either_way_is_a_problem(
    server: FakeServer, checkpoint: Callable[[str], Path], tmp_path: Path, thinking: str, reads: bool, is_ready: bool
) -> None:
    server.reads_thinking = reads
    (tmp_path / "rows.jsonl").write_text(json.dumps({"prompt": "1+1?", "answer": "2"}))
    stage = {"algorithm": "answers", "thinking": thinking, "data": [{"path": str(tmp_path / "rows.jsonl")}]}
    recipe = {
        "name": "served",
        "model": {"path": str(checkpoint("student")), "dtype": "float32"},
        "teachers": {"big": {"server": server.url}},
        "stages": {"ask": stage},
    }
    problems = check_recipe(parse_recipe(recipe)).problems
    assert [("stages.ask: teacher 'big'" in p and "does not read enable_thinking" in p) for p in problems] == (
        [] if is_ready else [True]
    )
    assert len(server.asked) == (0 if thinking == "template" else 2)
