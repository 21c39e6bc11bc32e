"""Rows, replies and environments that the tests of this folder share."""

import json
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from PIL import Image

from posttrain.environments import Observation, ToolEnvironment, parse_reply
from posttrain.records import Example

Row = Callable[..., Example]
Call = Callable[..., str]
Answers = Callable[..., Observation]


@pytest.fixture(scope="session")
def row() -> Row:
    def make(*images: Image.Image, text: str = "What does the sign say?", **reference: Any) -> Example:
        parts = [*({"type": "image"} for _ in images), {"type": "text", "text": text}]
        return Example(
            id="rows:1", task="look", messages=({"role": "user", "content": parts},), images=images, reference=reference
        )

    return make


@pytest.fixture(scope="session")
def call() -> Call:
    def write(name: object, **arguments: object) -> str:
        return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"

    return write


@pytest.fixture(scope="session")
def answers(row: Row) -> Answers:
    """What an environment with these tools answers to a reply."""

    def ask(tools: Sequence[Any], text: str, *images: Image.Image, **options: Any) -> Observation:
        environment = ToolEnvironment(tools=tools, **options)
        environment.start(row(*images))
        observation = environment.step(parse_reply(text))
        environment.close()
        assert isinstance(observation, Observation)
        return observation

    return ask
