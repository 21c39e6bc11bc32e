"""What TRL's `reset` asks of a row, and what its tools may return."""

import asyncio
from decimal import Decimal
from typing import Any

import numpy as np
import pytest

from posttrain.environments import Observation, ToolBroken, ToolEnvironment, TRLEnvironment, parse_reply
from posttrain.environments.tool_answers import AnswerLimits, tool_answer
from posttrain.errors import DataError
from posttrain.records import Example


class Wants:
    def reset(self, prompt: Any, answer: str, level: int, hint: str = "") -> str:
        return f" {answer} {level}"

    def bag(self) -> Any:
        """A set."""
        return {Decimal("1.5")}


class Later:
    async def reset(self, **columns: Any) -> str:
        await asyncio.sleep(0)
        return " now"

    async def get_reward(self) -> float:
        await asyncio.sleep(0)
        return 0.5


def bag() -> Any:
    """A set."""
    return {1}


def row(**reference: Any) -> Example:
    return Example(id="rows:1", task="t", messages=({"role": "user", "content": "?"},), reference=reference)


def test_columns_that_reset_wants_are_compared_with_the_row() -> None:
    environment = TRLEnvironment(environment=Wants)
    with pytest.raises(DataError, match="rows:1: Wants.reset wants 'level', but the row's columns are: answer, prompt"):
        environment.validate(row(answer="3"))
    environment.validate(row(answer="3", level=1, more=2))
    assert environment.start(row(answer="3", level=1)).messages[0]["content"] == "? 3 1"


def test_reset_and_get_reward_may_be_coroutines() -> None:
    environment = TRLEnvironment(environment=Later)
    assert environment.start(row()).messages[0]["content"] == "? now"
    assert environment.score() == 0.5
    environment.close()


def test_what_json_cannot_write_is_written_as_trl_writes_it(call: Any) -> None:
    environment = TRLEnvironment(environment=Wants)
    environment.start(row(answer="3", level=1))
    seen = environment.step(parse_reply(call("bag")))
    assert isinstance(seen, Observation)
    assert (seen.messages[0]["content"], seen.calls[0].error) == ("{Decimal('1.5')}", "")


def test_elsewhere_it_is_the_tools_fault_and_not_the_policys(call: Any) -> None:
    environment = ToolEnvironment(tools=[bag])
    environment.start(row())
    with pytest.raises(
        ToolBroken, match="tool 'bag' returned a set that is no text, image or JSON .*; write it as text"
    ):
        environment.step(parse_reply(call("bag")))


@pytest.mark.parametrize(
    ("result", "text"),
    [
        (np.float32(0.5), "0.5"),
        (np.int64(3), "3"),
        (np.bool_(True), "true"),
        (np.arange(3), "[0, 1, 2]"),
        ({"box": np.zeros((1, 2))}, '{"box": [[0.0, 0.0]]}'),
    ],
)
def test_numbers_of_numpy_are_json(result: Any, text: str) -> None:
    assert tool_answer(result, AnswerLimits()).text == text
