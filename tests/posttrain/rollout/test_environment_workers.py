"""Jobs that hang, block, come too late or are abandoned: nobody waits for them, and each is cleaned up once."""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import pytest

from posttrain.rollout import environment_workers
from posttrain.rollout.environment_turns import closed
from posttrain.rollout.environment_workers import EnvironmentWorkers, Late, Outcome


@pytest.fixture
def workers() -> Iterator[EnvironmentWorkers]:
    made = EnvironmentWorkers(max_threads=2)
    yield made
    made.close()


def outcomes(workers: EnvironmentWorkers, within_s: float = 10.0) -> dict[int, Outcome]:
    ends = time.monotonic() + within_s
    found: dict[int, Outcome] = {}
    while workers.num_pending and time.monotonic() < ends:
        found |= {outcome.key: outcome for outcome in workers.ready(0.1)}
    return found


def comes_true(condition: Callable[[], bool], within_s: float = 5.0) -> bool:
    ends = time.monotonic() + within_s
    while not condition() and time.monotonic() < ends:
        time.sleep(0.01)
    return condition()


class Hanging:
    """Its step never answers, and takes a moment to unwind; its close takes a moment too."""

    def __init__(self, step_s: float = 60.0, close_s: float = 0.5) -> None:
        self.step_s, self.close_s = step_s, close_s
        self.log: list[str] = []
        self.closed_on: list[str] = []

    async def step(self) -> None:
        try:
            await asyncio.sleep(self.step_s)
        finally:
            await asyncio.sleep(0.1)
            self.log.append("unwound")

    def close(self) -> Any:
        self.closed_on.append(threading.current_thread().name)
        time.sleep(self.close_s)
        self.log.append("closed")


class HangingAsync(Hanging):
    async def close(self) -> None:
        await asyncio.sleep(self.close_s)
        self.log.append("closed")


@pytest.mark.parametrize("kind", [Hanging, HangingAsync])
def test_a_coroutine_that_is_late_is_closed_once_it_has_unwound_while_nobody_waits(
    kind: Any, workers: EnvironmentWorkers
) -> None:
    environment = kind()
    workers.submit(0, environment.step, timeout_s=0.3, if_abandoned=partial(closed, environment))
    began = time.monotonic()
    assert isinstance(outcomes(workers)[0].error, Late)
    assert time.monotonic() - began < 0.3 + environment.close_s, "the caller waited for the environment to close"
    assert comes_true(lambda: "closed" in environment.log)
    assert environment.log == ["unwound", "closed"]
    assert threading.current_thread().name not in environment.closed_on


def test_a_coroutine_that_blocks_its_event_loop_keeps_no_later_one_waiting(workers: EnvironmentWorkers) -> None:
    async def block() -> None:
        time.sleep(2.5)

    async def answer(key: int) -> int:
        await asyncio.sleep(0)
        return key

    workers.submit(0, block, timeout_s=0.5)
    assert isinstance(outcomes(workers)[0].error, Late)
    for key in (1, 2, 3):
        workers.submit(key, partial(answer, key), timeout_s=0.5)
    found = outcomes(workers)
    assert {key: outcome.value for key, outcome in found.items()} == {1: 1, 2: 2, 3: 3}


@pytest.mark.filterwarnings("error")
def test_a_coroutine_abandoned_while_its_event_loop_is_blocked_is_not_run_but_cleaned_up(
    workers: EnvironmentWorkers,
) -> None:
    begun, ran, cleaned = threading.Event(), threading.Event(), threading.Event()

    async def block() -> None:
        begun.set()
        time.sleep(1.5)

    async def run() -> None:
        ran.set()

    workers.submit(0, block, timeout_s=5)
    assert begun.wait(5)
    workers.submit(1, run, timeout_s=5, if_abandoned=cleaned.set)
    assert comes_true(lambda: workers._pending[1].started is not None)
    workers.abandon_all()
    assert cleaned.wait(5) and not ran.is_set()


def test_jobs_abandoned_before_they_began_are_never_run_and_the_next_ones_are(workers: EnvironmentWorkers) -> None:
    leave = threading.Event()
    ran: list[int] = []

    def work(key: int) -> int:
        ran.append(key)
        leave.wait(20)
        return key

    for key in range(6):
        workers.submit(key, partial(work, key), timeout_s=20)
    assert comes_true(lambda: len(ran) == 2)
    assert workers.abandon_all() == set(range(6))
    for key in (10, 11):
        workers.submit(key, partial(int, key), timeout_s=20)
    assert {key: outcome.value for key, outcome in outcomes(workers).items()} == {10: 10, 11: 11}
    leave.set()
    for key in (20, 21):
        workers.submit(key, partial(int, key), timeout_s=20)
    assert sorted(outcomes(workers)) == [20, 21], "the threads that came back late are not counted twice"
    assert sorted(ran) == [0, 1]


def test_every_abandoned_job_is_cleaned_up_once_and_those_at_work_when_they_have_ended(
    workers: EnvironmentWorkers,
) -> None:
    leave, both = threading.Event(), threading.Barrier(3)
    cleaned: Counter[int] = Counter()
    answered = EnvironmentWorkers()
    for key in range(4):
        workers.submit(
            key, lambda: (both.wait(5), leave.wait(20)), timeout_s=20, if_abandoned=partial(cleaned.update, [key])
        )
    both.wait(5)
    assert workers.abandon_all() == {0, 1, 2, 3}
    assert comes_true(lambda: set(cleaned) == {2, 3}), "they had not begun"
    leave.set()
    assert comes_true(lambda: len(cleaned) == 4)
    answered.submit(0, lambda: None, timeout_s=20, if_abandoned=partial(cleaned.update, [9]))
    assert comes_true(lambda: not answered._outcomes.empty())
    assert answered.abandon_all() == set(), "it has answered: nothing is left to be abandoned"
    time.sleep(0.1)
    assert cleaned == Counter(range(4))
    assert answered.ready(0.0) == []


@pytest.mark.parametrize("kind", [Hanging, HangingAsync])
def test_closing_the_workers_waits_for_environments_that_close_slowly(kind: Any) -> None:
    workers = EnvironmentWorkers()
    ended: Any = kind()
    hanging: Any = kind()
    workers.submit(0, hanging.step, timeout_s=20, if_abandoned=partial(closed, hanging))
    assert comes_true(lambda: workers._pending[0].awaited is not None)
    workers.aside(partial(closed, ended))
    workers.abandon_all()
    workers.close()
    assert ended.log == ["closed"] and hanging.log in (["unwound", "closed"], ["closed"])


def test_closing_the_workers_leaves_behind_what_never_closes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(environment_workers, "_CLOSE_S", 0.2)
    workers = EnvironmentWorkers()
    for kind in (Hanging, HangingAsync):
        environment: Any = kind(close_s=20)
        workers.aside(partial(closed, environment))
    began = time.monotonic()
    workers.close()
    assert time.monotonic() - began < 2
    assert "2 environments had not closed after 0.2 s" in caplog.text


@pytest.mark.parametrize("is_async", [False, True])
def test_an_environment_that_fails_to_close_is_logged(is_async: bool, caplog: pytest.LogCaptureFixture) -> None:
    class Failing:
        def close(self) -> Any:
            async def later() -> None:
                await asyncio.sleep(0.01)
                raise RuntimeError("no such sandbox")

            if is_async:
                return later()
            raise RuntimeError("no such sandbox")

    workers = EnvironmentWorkers()
    environment: Any = Failing()
    with caplog.at_level(logging.WARNING):
        workers.aside(partial(closed, environment))
        workers.close()
    assert "an environment failed to close: RuntimeError: no such sandbox" in caplog.text


@pytest.mark.parametrize("error", [SystemExit(3), ValueError("no")])
def test_what_a_coroutine_raises_is_its_own_outcome_and_the_loop_lives_on(
    error: BaseException, workers: EnvironmentWorkers
) -> None:
    async def fail() -> None:
        await asyncio.sleep(0)
        raise error

    async def loop_id() -> int:
        return id(asyncio.get_running_loop())

    loops = []
    for work in (loop_id, fail, loop_id):
        workers.submit(0, work, timeout_s=5)
        loops.append(outcomes(workers)[0])
    assert loops[1].error is error and loops[0].value == loops[2].value is not None
