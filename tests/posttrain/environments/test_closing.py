"""An environment that is only made to be looked at is neither started nor closed."""

from typing import Any

import pytest

from posttrain.environments import Done, Opening, Reply, make_environment_factory
from posttrain.errors import ConfigError
from posttrain.records import Example


class Simulator:
    """Its close uses what its start made."""

    closed = 0

    def validate(self, example: Example) -> None: ...

    def start(self, example: Example) -> Opening:
        self.engine = object()
        return Opening(messages=example.messages)

    def step(self, reply: Reply) -> Done:
        return Done()

    def close(self) -> None:
        Simulator.closed += 1
        del self.engine


class AsyncSimulator(Simulator):
    async def close(self) -> None:  # pyright: ignore[reportIncompatibleMethodOverride]
        del self.engine


class Game:
    """As TRL's."""

    def reset(self) -> None: ...


@pytest.mark.parametrize("spec", [Simulator, AsyncSimulator, lambda: Simulator()])
def test_what_was_never_started_is_not_closed(spec: Any) -> None:
    before = Simulator.closed
    environment = make_environment_factory(spec)()
    assert Simulator.closed == before
    assert not vars(environment)


@pytest.mark.parametrize("spec", [Game, lambda: Game()])
def test_an_environment_of_trl_is_told_how_to_be_given(spec: Any) -> None:
    with pytest.raises(ConfigError, match="give {name: trl, environment: ...}"):
        make_environment_factory(spec)
