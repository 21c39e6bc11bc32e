"""Jobs that hang, block, come too late or are abandoned: nobody waits for them, and each is cleaned up once."""

import asyncio
import logging
import threading
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import pytest

from posttrain.environments import event_loops
from posttrain.rollout import environment_workers
from posttrain.rollout.environment_turns import closed
from posttrain.rollout.environment_workers import EnvironmentWorkers, Late, Outcome
from tests.waiting import GROWING_S, HANG_S, PATIENCE_S, comes_true


@pytest.fixture(autouse=True)
def closing_may_take_long(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment_workers, "_CLOSE_S", PATIENCE_S)


@pytest.fixture
def workers() -> Iterator[EnvironmentWorkers]:
    made = EnvironmentWorkers(max_threads=2)
    yield made
    made.close()


def outcomes(workers: EnvironmentWorkers) -> dict[int, Outcome]:
    ends = time.monotonic() + PATIENCE_S
    found: dict[int, Outcome] = {}
    while workers.num_pending and time.monotonic() < ends:
        found |= {outcome.key: outcome for outcome in workers.ready(0.1)}
    return found


class Hanging:
    """Its step never answers, and takes a moment to unwind; its close lasts until it is let go."""

    def __init__(self) -> None:
        self.begun, self.let_go = threading.Event(), threading.Event()
        self.log: list[str] = []
        self.closed_on: list[str] = []

    async def step(self) -> None:
        self.begun.set()
        try:
            await asyncio.sleep(HANG_S)
        finally:
            await asyncio.sleep(0.1)
            self.log.append("unwound")

    def close(self) -> Any:
        self.closed_on.append(threading.current_thread().name)
        self.let_go.wait(HANG_S)
        self.log.append("closed")


class HangingAsync(Hanging):
    async def close(self) -> None:
        while not self.let_go.is_set():
            await asyncio.sleep(0.01)
        self.log.append("closed")


@pytest.mark.parametrize("kind", [Hanging, HangingAsync])
def test_a_coroutine_that_is_late_is_closed_once_it_has_unwound_while_nobody_waits(
    kind: Any, workers: EnvironmentWorkers
) -> None:
    for timeout_s in GROWING_S:
        environment = kind()
        workers.submit(0, environment.step, timeout_s=timeout_s, if_abandoned=partial(closed, environment))
        assert isinstance(outcomes(workers)[0].error, Late)
        if environment.begun.is_set():
            break
        environment.let_go.set()
    assert "closed" not in environment.log, "the caller waited for the environment to close"
    environment.let_go.set()
    assert comes_true(lambda: "closed" in environment.log)
    assert environment.log == ["unwound", "closed"]
    assert threading.current_thread().name not in environment.closed_on


def test_a_coroutine_that_blocks_its_event_loop_keeps_no_later_one_waiting(workers: EnvironmentWorkers) -> None:
    """Nor does the search for another loop, which takes a while, take anything of its time."""
    leave, may_answer = threading.Event(), threading.Event()

    async def block() -> None:
        leave.wait(HANG_S)

    async def answer(key: int) -> int:
        while not may_answer.is_set():
            await asyncio.sleep(0.01)
        return key

    workers.submit(0, block, timeout_s=0.5)
    assert isinstance(outcomes(workers)[0].error, Late)
    workers.submit(1, partial(answer, 1), timeout_s=HANG_S)
    first = workers._pending[1]
    assert comes_true(lambda: first.awaited is not None) and first.started is not None
    assert first.late_at - first.started > HANG_S + 0.9 * event_loops._PING_S
    for key in (2, 3):
        workers.submit(key, partial(answer, key), timeout_s=HANG_S)
    may_answer.set()
    found = outcomes(workers)
    assert {key: outcome.value for key, outcome in found.items()} == {1: 1, 2: 2, 3: 3}
    leave.set()


@pytest.mark.filterwarnings("error")
def test_a_coroutine_abandoned_while_its_event_loop_is_blocked_is_not_run_but_cleaned_up(
    workers: EnvironmentWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_loops, "_PING_S", HANG_S)  # no other loop takes over
    begun, leave, ran, cleaned = (threading.Event() for _ in range(4))

    async def block() -> None:
        begun.set()
        leave.wait(HANG_S)

    async def run() -> None:
        ran.set()

    workers.submit(0, block, timeout_s=HANG_S)
    assert begun.wait(PATIENCE_S)
    workers.submit(1, run, timeout_s=HANG_S, if_abandoned=cleaned.set)
    assert comes_true(lambda: workers._pending[1].started is not None)
    workers.abandon_all()
    leave.set()
    assert cleaned.wait(PATIENCE_S) and not ran.is_set()


def test_jobs_abandoned_before_they_began_are_never_run_and_the_next_ones_are(workers: EnvironmentWorkers) -> None:
    leave = threading.Event()
    ran: list[int] = []

    def work(key: int) -> int:
        ran.append(key)
        leave.wait(HANG_S)
        return key

    for key in range(6):
        workers.submit(key, partial(work, key), timeout_s=HANG_S)
    assert comes_true(lambda: len(ran) == 2)
    assert workers.abandon_all() == set(range(6))
    for key in (10, 11):
        workers.submit(key, partial(int, key), timeout_s=HANG_S)
    assert {key: outcome.value for key, outcome in outcomes(workers).items()} == {10: 10, 11: 11}
    leave.set()
    for key in (20, 21):
        workers.submit(key, partial(int, key), timeout_s=HANG_S)
    assert sorted(outcomes(workers)) == [20, 21], "the threads that came back late are not counted twice"
    assert sorted(ran) == [0, 1]


def test_every_abandoned_job_is_cleaned_up_once_and_those_at_work_when_they_have_ended(
    workers: EnvironmentWorkers,
) -> None:
    leave, both = threading.Event(), threading.Barrier(3, timeout=PATIENCE_S)
    cleaned: Counter[int] = Counter()
    answered = EnvironmentWorkers()
    for key in range(4):
        clean = partial(cleaned.update, [key])
        workers.submit(key, lambda: (both.wait(), leave.wait(HANG_S)), timeout_s=HANG_S, if_abandoned=clean)
    both.wait()
    assert workers.abandon_all() == {0, 1, 2, 3}
    assert comes_true(lambda: set(cleaned) == {2, 3}), "they had not begun"
    leave.set()
    assert comes_true(lambda: len(cleaned) == 4)
    answered.submit(0, lambda: None, timeout_s=HANG_S, if_abandoned=partial(cleaned.update, [9]))
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
    workers.submit(0, hanging.step, timeout_s=HANG_S, if_abandoned=partial(closed, hanging))
    assert comes_true(lambda: workers._pending[0].awaited is not None)
    workers.aside(partial(closed, ended))
    workers.abandon_all()
    for environment in (ended, hanging):
        threading.Timer(0.5, environment.let_go.set).start()
    workers.close()
    assert ended.log == ["closed"] and hanging.log in (["unwound", "closed"], ["closed"])


def test_closing_the_workers_leaves_behind_what_never_closes(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(environment_workers, "_CLOSE_S", 0.2)
    workers, never = EnvironmentWorkers(), [Hanging(), HangingAsync()]
    for environment in never:
        workers.aside(partial(closed, environment))  # type: ignore[arg-type]
    workers.close()
    assert "2 environments had not closed after 0.2 s" in caplog.text
    assert not any(environment.log for environment in never), "the caller waited for them to close"
    for environment in never:
        environment.let_go.set()


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
    error: BaseException, workers: EnvironmentWorkers, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(event_loops, "_PING_S", PATIENCE_S)  # a machine that pauses is no loop that is blocked

    async def fail() -> None:
        await asyncio.sleep(0)
        raise error

    async def loop_id() -> int:
        return id(asyncio.get_running_loop())

    loops = []
    for work in (loop_id, fail, loop_id):
        workers.submit(0, work, timeout_s=HANG_S)
        loops.append(outcomes(workers)[0])
    assert loops[1].error is error and loops[0].value == loops[2].value is not None
