"""Environments from Python: one or one for each task, in a recipe's layout or in a registry's."""

from typing import Any

import pytest

from posttrain.config import EnvironmentSection
from posttrain.environments import Done, Opening, Reply, ToolEnvironment
from posttrain.errors import ConfigError
from posttrain.given_environments import described_environment, given_environments, task_environments
from posttrain.records import Example

OPTIONS = {"tools": ["image_rotate"]}


class Guess:
    def __init__(self, *, high: int = 3, max_turns: int = 0) -> None:
        self.high, self.max_turns = high, max_turns

    def validate(self, example: Example) -> None: ...

    def start(self, example: Example) -> Opening:
        return Opening(messages=example.messages)

    def step(self, reply: Reply) -> Done:
        return Done()

    def close(self) -> None: ...


def double(x: int) -> int:
    """Twice a number.

    Args:
        x: The number
    """
    return 2 * x


@pytest.mark.parametrize(
    ("given", "max_turns"),
    [
        ({"name": "tools", "options": OPTIONS, "max_turns": 3, "timeout_s": 100.0}, 3),
        (EnvironmentSection(name="tools", options=OPTIONS, max_turns=4), 4),
        ({"name": "tools", **OPTIONS}, 6),
    ],
)
def test_a_recipes_layout_and_a_registrys(given: Any, max_turns: int) -> None:
    for environments in ({"look": given}, given):
        ((task, played),) = task_environments(given_environments(environments)).items()
        assert task == ("look" if environments is not given else "default")
        assert isinstance(played.make(), ToolEnvironment)
        assert played.limits.max_turns == max_turns


@pytest.mark.parametrize("given", [Guess, lambda: Guess(high=7)])
def test_one_alone_is_for_every_task(given: Any) -> None:
    ((task, played),) = task_environments(given_environments(given)).items()
    assert task == "default" and isinstance(played.make(), Guess)


def test_an_option_that_has_a_limits_name_stands_in_options() -> None:
    given = {"name": f"{__name__}:Guess", "high": 4, "max_turns": 5}
    assert not isinstance(given_environments({"t": given})["t"], EnvironmentSection)
    section = given_environments({"t": {"name": "x:Guess", "max_turns": 5}})["t"]
    assert isinstance(section, EnvironmentSection) and (section.options, section.max_turns) == ({}, 5)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"name": "tools", **OPTIONS, "max_turns": 3}, "environments.look: .*max_turns stands beside 'options'"),
        ({"name": "tools", "options": OPTIONS, "max_turn": 3}, "'max_turn' is not a key; did you mean 'max_turns'"),
        ({"options": OPTIONS}, "environments.look: 'name' is missing"),
        ({"name": "tools", "options": {"tool": []}}, "environments.look: .*no option 'tool'; did you mean 'tools'"),
        (3, "environments.look: .*give its class"),
    ],
)
def test_what_cannot_be_used_is_named(given: Any, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        task_environments(given_environments({"look": given}))


def test_a_description_does_not_change_from_process_to_process() -> None:
    for given in ({"name": "tools", "tools": [double]}, {"name": "tools", "options": {"tools": [double]}}):
        described = described_environment(given_environments({"look": given})["look"])
        assert "double" in str(described) and " at 0x" not in str(described)
    assert described_environment(Guess) == "Guess"
    assert given_environments(None) == {}
