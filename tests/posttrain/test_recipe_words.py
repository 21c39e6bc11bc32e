"""Words and truth values in recipes: on, off, yes and no are words, and only true and false are not."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from posttrain.errors import ConfigError
from posttrain.recipe import load_recipe, parse_recipe

ASKS = """
name: words
model: {path: there}
teachers: {big: {path: elsewhere}}
stages:
  ask: {algorithm: answers, data: [{path: a.jsonl}], thinking: WORD}
"""


@pytest.mark.parametrize("word", ["on", "off", "mixed", "template"])
def test_every_way_of_thinking_can_be_written_as_it_is_documented(tmp_path: Path, word: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(ASKS.replace("WORD", word))
    assert load_recipe(file).stages["ask"].thinking == word  # type: ignore[union-attr]
    file.write_text(ASKS.replace("WORD", "template"))
    assert load_recipe(file, [f"stages.ask.thinking={word}"]).stages["ask"].thinking == word  # type: ignore[union-attr]


@pytest.mark.parametrize("name", ["on", "off", "yes", "no", "y", "n"])
def test_a_stage_may_have_any_word_for_a_name(tmp_path: Path, name: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(ASKS.replace("  ask:", f"  {name}:").replace("WORD", "on"))
    assert list(load_recipe(file).stages) == [name]


def test_a_key_that_is_no_text_is_named(tmp_path: Path) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(ASKS.replace("  ask:", "  true:").replace("WORD", "on"))
    with pytest.raises(ConfigError, match="'stages' has the key True, which is no text: write it in quotes"):
        load_recipe(file)


@pytest.mark.parametrize("written", ["true", "True", "TRUE"])
def test_true_is_true(tmp_path: Path, written: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(ASKS.replace("WORD", "on").replace("path: there", f"path: there, trust_remote_code: {written}"))
    assert load_recipe(file).model.trust_remote_code is True
    assert load_recipe(file, [f"model.thinking={written}"]).model.thinking is True
    assert load_recipe(file, ["model.trust_remote_code=false"]).model.trust_remote_code is False


@pytest.mark.parametrize("written", ["yes", "on", "no", "off", "1", "0", "'true'"])
def test_nothing_else_is_a_truth_value(tmp_path: Path, written: str) -> None:
    file = tmp_path / "recipe.yaml"
    file.write_text(ASKS.replace("WORD", "on"))
    for key in ("model.trust_remote_code", "model.thinking"):
        with pytest.raises(ConfigError, match=rf"'{key}' is '?\w+'?: write true or false"):
            load_recipe(file, [f"{key}={written}"])


def test_a_number_still_opens_a_gate() -> None:
    content: dict[str, Any] = yaml.safe_load(ASKS.replace("WORD", "template"))
    for gate in (True, 1, 0.5):
        content["rewards"] = {"m": {"rewards": [{"name": "math", "gate": gate}]}}
        assert parse_recipe(content).rewards["m"].rewards[0].gate == gate
