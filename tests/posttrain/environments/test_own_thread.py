"""Objects with state have a thread of their own for an episode; a call that hangs there ends it."""

import gc
import sqlite3
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from posttrain.environments import (
    Done,
    Observation,
    Opening,
    Reply,
    ToolBroken,
    ToolEnvironment,
    TRLEnvironment,
    parse_reply,
)
from posttrain.environments.deadlines import run_on
from posttrain.environments.own_thread import OwnThread
from posttrain.records import Example

JOIN_S = 30.0


class Shop:
    """Made by the factory: its connection works only on the thread that made it."""

    made_on: threading.Thread

    def __init__(self) -> None:
        Shop.made_on = threading.current_thread()
        self.connection = sqlite3.connect(":memory:")

    def reset(self) -> None:
        self.connection.execute("create table goods (name text)")

    def sell(self, what: str) -> str:
        """Sell something.

        Args:
            what: Its name
        """
        self.connection.execute("insert into goods values (?)", (what,))
        return str(self.connection.execute("select * from goods").fetchall())

    def get_reward(self) -> float:
        (number,) = self.connection.execute("select count(*) from goods").fetchone()
        return float(number)


class Hanging:
    """Calls of `wait` go on until the test lets them, and then change the object."""

    release = threading.Event()
    ended = threading.Event()

    def __init__(self) -> None:
        self.value = 0

    def reset(self) -> None: ...

    def wait(self) -> str:
        """Wait."""
        Hanging.release.wait()
        self.value += 10
        Hanging.ended.set()
        return "done"

    def read(self) -> str:
        """Read."""
        return str(self.value)

    def get_reward(self) -> float:
        return float(self.value)


class Countdown:
    """An environment of a user's own, whose methods are its tools."""

    def __init__(self) -> None:
        self.threads: list[threading.Thread] = []
        self.inner = ToolEnvironment(tools=[self.note, free], tool_timeout_s=60, turn_timeout_s=100)

    def note(self) -> str:
        """Note the thread."""
        self.threads.append(threading.current_thread())
        return "noted"

    def validate(self, example: Example) -> None: ...

    def start(self, example: Example) -> Opening:
        return self.inner.start(example)

    def step(self, reply: Reply) -> Observation | Done:
        return self.inner.step(reply)

    def close(self) -> None:
        self.inner.close()


free_threads: list[threading.Thread] = []


def free() -> str:
    """A function has no object."""
    free_threads.append(threading.current_thread())
    return "free"


@pytest.fixture
def release() -> Iterator[threading.Event]:
    Hanging.release.clear()
    Hanging.ended.clear()
    yield Hanging.release
    Hanging.release.set()


def example() -> Example:
    return Example(id="rows:1", task="t", messages=({"role": "user", "content": "?"},))


def test_a_connection_of_the_object_serves_the_whole_episode(call: Any) -> None:
    environment = TRLEnvironment(environment=Shop)
    thread = Shop.made_on
    starting = threading.Thread(target=lambda: environment.start(example()))
    starting.start()
    starting.join(JOIN_S)
    seen: list[Any] = []
    for what in ("tea", "ink"):
        stepping = threading.Thread(
            target=lambda what=what: seen.append(environment.step(parse_reply(call("sell", what=what))))
        )
        stepping.start()
        stepping.join(JOIN_S)
    assert [answer.calls[0].error for answer in seen] == ["", ""]
    assert seen[1].messages[0]["content"] == "[('tea',), ('ink',)]"
    assert environment.score() == 2.0
    environment.close()
    thread.join(JOIN_S)
    assert not thread.is_alive()


def test_each_episode_has_its_own_thread() -> None:
    environments = [TRLEnvironment(environment=Shop) for _ in range(2)]
    assert [environment.start(example()).tools[0]["function"]["name"] for environment in environments] == ["sell"] * 2
    for environment in environments:
        assert environment.score() == 0.0
        environment.close()


def test_an_object_that_was_never_closed_leaves_no_thread() -> None:
    environment = TRLEnvironment(environment=Shop)
    thread = Shop.made_on
    assert thread.is_alive()
    del environment
    gc.collect()
    thread.join(JOIN_S)
    assert not thread.is_alive()


def test_a_call_that_hangs_ends_the_episode(call: Any, release: threading.Event) -> None:
    environment = TRLEnvironment(environment=Hanging, tool_timeout_s=0.2)
    environment.start(example())
    with pytest.raises(ToolBroken, match="tool 'wait' gave no answer within 0.2 s, and may still be changing"):
        environment.step(parse_reply(call("wait") + call("read")))
    release.set()
    assert Hanging.ended.wait(JOIN_S)
    with pytest.raises(ToolBroken, match="may still be changing it"):
        environment.step(parse_reply(call("read")))
    with pytest.raises(ToolBroken, match="may still be changing it"):
        environment.score()
    environment.close()


def test_methods_of_an_environment_run_on_one_thread_and_functions_do_not(call: Any) -> None:
    environment = Countdown()
    environment.start(example())
    for _ in range(2):
        environment.step(parse_reply(call("note") + call("free")))
    first, second = environment.threads
    assert first is second and first not in free_threads[-2:]
    environment.close()
    first.join(JOIN_S)
    assert not first.is_alive()


def test_what_work_raises_is_raised_and_the_thread_serves_on() -> None:
    thread = OwnThread()
    with pytest.raises(ZeroDivisionError):
        run_on(thread, lambda: 1 // 0)
    assert run_on(thread, threading.current_thread) is run_on(thread, threading.current_thread)
    thread.end()
    with pytest.raises(ToolBroken, match="is over"):
        run_on(thread, threading.current_thread)
