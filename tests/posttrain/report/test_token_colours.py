"""Which number colours a page's tokens at first sight, and that each has its scale beside it."""

import json
from pathlib import Path
from typing import Any

import pytest

from posttrain.report import write_report

from .conftest import GROUND, Browser, write_lines

SHADE = 'document.querySelector("#trajectories").dataset.shade'
CHOSEN = 'document.querySelector(".filters").elements.shade.value'
COLOURS = '[...document.querySelectorAll(".policy i")].map((token) => getComputedStyle(token).backgroundColor)'
SCALES = '[...document.querySelectorAll(".card .scale")].filter((s) => s.offsetHeight).map((s) => s.className)'
CLEAR = "rgba(0, 0, 0, 0)"


def page_of(folder: Path, tokens: list[dict[str, Any]], advantage: float = 0.0) -> Path:
    write_lines(folder / "stages" / "rl" / "metrics.jsonl", [{"step": 4, "loss": 1.0}])
    row = {**GROUND, "advantage": advantage, "tokens": tokens, "images": [], "messages": [], "boxes": []}
    write_lines(folder / "stages" / "rl" / "trajectories.jsonl", [row])
    (folder / "manifest.json").write_text(json.dumps({"name": "colours"}))
    return write_report(folder)


@pytest.mark.parametrize(
    ("tokens", "advantage", "shade", "num_coloured"),
    [
        ([{"text": "a", "gate": 0.5, "logprob": -1.0}, {"text": "b", "gate": 1.0, "logprob": 0.0}], 0.0, "gate", 1),
        ([{"text": "a", "gate": 1.0, "logprob": -3.0}, {"text": "b", "gate": 1.0, "logprob": 0.0}], 0.0, "logprob", 1),
        ([{"text": "a", "gate": 1.0, "teacher": 2.0}, {"text": "b", "gate": 1.0, "teacher": 0.0}], 0.0, "teacher", 1),
        ([{"text": "a", "gate": 1.0}, {"text": "b", "gate": 1.0}], -1.0, "advantage", 2),
        ([{"text": "a", "gate": 1.0}, {"text": "b", "gate": 1.0}], 0.0, "gate", 0),
        ([{"text": "a", "gate": 0.5, "logprob": -3.0}] + [{"text": "b", "gate": 1.0}] * 199, 0.0, "gate", 1),
    ],
)
def test_the_page_begins_with_the_first_number_that_colours_anything(
    tokens: list[dict[str, Any]], advantage: float, shade: str, num_coloured: int, tmp_path: Path, browser: Browser
) -> None:
    """On-policy, every gate is 1. A single token of 200 is too little; where there is no more, it comes first still."""
    browser.open(page_of(tmp_path, tokens, advantage))
    assert browser.run(SHADE) == browser.run(CHOSEN) == shade
    assert sum(colour != CLEAR for colour in browser.run(COLOURS)) == num_coloured
    assert browser.run(SCALES) == [f"scale {shade}"], "which says what a colour means"
    assert browser.messages == []
