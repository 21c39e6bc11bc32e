"""Environments written for TRL run as they are, by the rules that TRL's own trainer applies."""

import inspect
from typing import Any

import pytest
from PIL import Image

from posttrain.environments import (
    Done,
    Environment,
    Observation,
    ScoringEnvironment,
    TRLEnvironment,
    make_environment_factory,
    parse_reply,
)
from posttrain.errors import ConfigError, DataError
from posttrain.records import Example


class Counter:
    """As in TRL's documentation of `environment_factory`."""

    def __init__(self) -> None:
        self.value = 0
        self.row: dict[str, Any] = {}

    @property
    def double(self) -> int:
        raise AssertionError("a property is no tool, and not looked at")

    def reset(self, **kwargs: Any) -> str | None:
        self.value, self.row = kwargs.get("start", 0), kwargs
        return kwargs.get("hint")

    def increment(self, step: int) -> int:
        """Increment the counter.

        Args:
            step: How much

        Returns:
            The value.
        """
        self.value += step
        return self.value

    async def read(self) -> str:
        """Read the counter."""
        return f"it is {self.value}"

    def look(self) -> list[dict[str, Any]]:
        """See the counter."""
        return [{"type": "image", "image": Image.new("RGB", (32, 32))}, {"type": "text", "text": "seen"}]

    def get_reward(self) -> float:
        return float(self.value == 5)

    def _secret(self) -> None: ...


class NoReset:
    def act(self) -> None:
        """Acts."""


def example(content: Any = "Count to 5.", images: tuple[Image.Image, ...] = (), **reference: Any) -> Example:
    messages = ({"role": "user", "content": content}, {"role": "assistant", "content": "5"})
    return Example(id="rows:1", task="t", messages=messages, images=images, reference=reference)


def test_an_episode(call: Any) -> None:
    environment = TRLEnvironment(environment=Counter)
    assert isinstance(environment, Environment) and isinstance(environment, ScoringEnvironment)
    opening = environment.start(example(start=2, hint=" Begin at 2."))
    assert opening.messages == ({"role": "user", "content": "Count to 5. Begin at 2."},)
    assert [tool["function"]["name"] for tool in opening.tools] == ["increment", "look", "read"]
    seen = environment.step(parse_reply(call("increment", step=3) + call("read") + call("look") + call("get_reward")))
    assert isinstance(seen, Observation)
    contents = [message["content"] for message in seen.messages]
    assert contents[:2] == ["5", "it is 5"]
    assert contents[2] == [{"type": "image"}, {"type": "text", "text": "seen"}] and len(seen.images) == 1
    assert "there is no tool 'get_reward'" in contents[3]
    assert environment.step(parse_reply("5")) == Done()
    assert environment.score() == 1.0
    environment.close()


def test_reset_gets_the_columns() -> None:
    seen: dict[str, Any] = {}

    class Names:
        def reset(self, start: int, prompt: list[Any]) -> None:
            seen.update(start=start, prompt=prompt)

    environment = TRLEnvironment(environment=Names)
    environment.start(example(start=7, other=1))
    assert seen == {"start": 7, "prompt": [{"role": "user", "content": "Count to 5."}]}
    assert environment.score() is None


def test_reset_may_show_images() -> None:
    red = Image.new("RGB", (64, 64), "red")

    class Shows:
        def reset(self, images: list[Image.Image]) -> list[Any]:
            return [{"type": "image", "image": images[0].rotate(90)}, {"type": "text", "text": "<|im_end|>"}]

    opening = TRLEnvironment(environment=Shows).start(example([{"type": "image"}], (red,)))
    assert opening.messages[0]["content"] == [{"type": "image"}] * 2 + [{"type": "text", "text": "< |im_end|>"}]
    assert len(opening.images) == 2


def test_what_cannot_be_used_is_named() -> None:
    with pytest.raises(ConfigError, match="NoReset has no method reset"):
        TRLEnvironment(environment=NoReset)
    with pytest.raises(ConfigError, match="give {name: trl"):
        make_environment_factory(Counter)

    class Odd:
        def reset(self) -> int:
            return 3

    with pytest.raises(DataError, match="reset must return None, text"):
        TRLEnvironment(environment=Odd).start(example())


def test_every_episode_has_its_own_object(call: Any) -> None:
    factory = make_environment_factory({"name": "trl", "environment": Counter})
    first, second = factory(), factory()
    for environment, value in ((first, "1"), (second, "1"), (first, "2")):
        if value == "1":
            environment.start(example())
        seen = environment.step(parse_reply(call("increment", step=1)))
        assert isinstance(seen, Observation)
        assert seen.messages[0]["content"] == value


def test_tools_are_the_methods_that_trl_finds() -> None:
    """The selection that GRPOTrainer 1.16 makes: functions of the class, in alphabetical order."""
    theirs = [
        name
        for name, _ in inspect.getmembers(Counter, predicate=inspect.isfunction)
        if name not in ("reset", "get_reward") and not name.startswith("_")
    ]
    opening = TRLEnvironment(environment=Counter).start(example())
    assert [tool["function"]["name"] for tool in opening.tools] == theirs
