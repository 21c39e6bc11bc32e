"""Every key that a recipe may hold is read by something, and says what it is for."""

import ast
import inspect
from pathlib import Path
from typing import Any

import pytest
from pydantic import BaseModel

import posttrain
from posttrain import config

PACKAGE = Path(inspect.getfile(posttrain)).parent
SECTIONS = sorted(
    (
        cls
        for _, cls in inspect.getmembers(config, inspect.isclass)
        if issubclass(cls, BaseModel) and cls is not BaseModel
    ),
    key=lambda cls: cls.__name__,
)
FIELDS = sorted({(cls.__name__, name) for cls in SECTIONS for name in cls.model_fields})


@pytest.fixture(scope="module")
def attributes_read() -> set[str]:
    """Names after a dot, anywhere in the package but in the configuration itself."""
    files = [path for path in PACKAGE.rglob("*.py") if path.parent.name != "config"]
    assert len(files) > 30
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in files]
    return {
        node.attr
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load)
    }


def test_there_are_sections() -> None:
    assert {"Recipe", "ModelSection", "SFTStage", "SAPOStage", "DataSection"} <= {cls.__name__ for cls in SECTIONS}
    assert len(FIELDS) > 80


def test_every_key_has_a_reader(attributes_read: set[str]) -> None:
    dead = [f"{section}.{name}" for section, name in FIELDS if name not in attributes_read]
    assert not dead, f"accepted by a recipe and read by nothing: {', '.join(dead)}"


def test_the_search_for_readers_can_fail(attributes_read: set[str]) -> None:
    assert "key_that_nothing_reads" not in attributes_read


SAYS_ITSELF = {"algorithm", "model"}
"""What names a stage's class, and a section whose own keys are described."""


@pytest.mark.parametrize("section", SECTIONS, ids=lambda cls: cls.__name__)
def test_every_key_says_what_it_is_for(section: Any) -> None:
    silent = [
        name
        for name, field in section.model_fields.items()
        if not field.description and name not in SAYS_ITSELF and not _is_section(field.annotation)
    ]
    assert not silent, silent


def _is_section(annotation: Any) -> bool:
    return inspect.isclass(annotation) and issubclass(annotation, BaseModel)


@pytest.mark.parametrize("section", SECTIONS, ids=lambda cls: cls.__name__)
def test_every_section_refuses_keys_it_does_not_know_and_is_frozen(section: Any) -> None:
    assert section.model_config["extra"] == "forbid" and section.model_config["frozen"]


def test_defaults_that_papers_and_measurements_give() -> None:
    data = [{"scenes": {"task": "count"}}]
    sapo = config.SAPOStage(steps=1, data=data)  # type: ignore[arg-type]
    assert (sapo.tau_positive, sapo.tau_negative) == (1.0, 1.05)  # SAPO, sec. 4
    assert sapo.kl_coefficient == 0.0 and sapo.temperature == 1.0
    gspo = config.GSPOStage(steps=1, data=data)  # type: ignore[arg-type]
    assert (gspo.clip_low, gspo.clip_high) == (3e-4, 4e-4)  # GSPO, sec. 5.1
