"""Killable workers: what hangs or crashes costs one deadline."""

import asyncio
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from posttrain.rewards import WorkerError, WorkerPool

from tests.waiting import HANG_S, PATIENCE_S, PROCESS_S


@pytest.fixture(scope="module")
def pool() -> Iterator[WorkerPool]:
    pool = WorkerPool(2)
    yield pool
    pool.close()


def test_a_job_returns_its_value_and_its_worker_is_used_again(pool: WorkerPool) -> None:
    assert pool.run("operator:add", 2, 3, deadline_s=30) == 5
    first = pool.run("os:getpid", deadline_s=30)
    assert pool.run("os:getpid", deadline_s=30) == first


def test_a_hang_in_python_and_one_inside_c_end_at_the_deadline(pool: WorkerPool) -> None:
    before = pool.num_timeouts
    for function, arguments in [("time:sleep", (600,)), ("operator:pow", (10, 10**10))]:
        started = time.monotonic()
        with pytest.raises(WorkerError, match=r"deadline of 0\.5 s"):
            pool.run(function, *arguments, deadline_s=0.5)
        assert time.monotonic() - started < PATIENCE_S  # the hangs are far longer
    assert pool.num_timeouts == before + 2
    assert pool.run("operator:add", 1, 1, deadline_s=30) == 2


def test_a_crash_is_counted_and_the_next_job_gets_a_new_process(pool: WorkerPool) -> None:
    before = pool.num_crashes
    with pytest.raises(WorkerError, match="killed its worker"):
        pool.run("os:_exit", 3, deadline_s=30)
    assert pool.num_crashes == before + 1
    assert pool.run("operator:add", 1, 1, deadline_s=30) == 2


def test_an_exception_is_told_and_keeps_the_process(pool: WorkerPool) -> None:
    pool.run("operator:truediv", 1, 1, deadline_s=30)
    pid = pool.run("os:getpid", deadline_s=30)
    with pytest.raises(WorkerError, match="ZeroDivisionError: division by zero"):
        pool.run("operator:truediv", 1, 0, deadline_s=30)
    assert pool.run("os:getpid", deadline_s=30) == pid


def test_what_a_job_prints_does_not_mix_with_its_answer(pool: WorkerPool) -> None:
    assert pool.run("builtins:print", '{"value": "wrong"}', deadline_s=30) is None
    assert pool.run("os:system", "echo wrong", deadline_s=30) == 0


def test_a_function_that_is_not_there_is_an_error_of_the_caller(pool: WorkerPool) -> None:
    with pytest.raises(RuntimeError, match="no worker process can run no_such_module:f: ModuleNotFoundError"):
        pool.run("no_such_module:f", deadline_s=30)


def test_after_a_kill_or_a_crash_nothing_is_imported_again(pool: WorkerPool) -> None:
    """The process that holds the modules lives on, and forks the next child in milliseconds."""
    alone = WorkerPool(1)
    nursery = alone.run("os:getppid", deadline_s=30)
    for function, arguments, deadline_s in [
        ("time:sleep", (600,), 0.5),
        ("ctypes:string_at", (0,), PATIENCE_S),
        ("os:abort", (), PATIENCE_S),
    ]:
        with pytest.raises(WorkerError):
            alone.run(function, *arguments, deadline_s=deadline_s)
        assert alone.run("os:getppid", deadline_s=30) == nursery
    assert (alone.num_jobs, alone.num_timeouts, alone.num_crashes) == (7, 1, 2)
    assert alone.timeout_rate == 1 / 7
    alone.close()


def test_a_process_that_dies_as_a_whole_is_replaced() -> None:
    alone = WorkerPool(1)
    nursery = alone.run("os:getppid", deadline_s=30)
    with pytest.raises(WorkerError, match="killed its worker"):
        alone.run("os:killpg", nursery, 9, deadline_s=30)
    assert alone.run("os:getppid", deadline_s=30) != nursery
    assert alone.num_crashes == 1
    alone.close()


@pytest.mark.parametrize(
    ("function", "argument"),
    [
        ("json:loads", "[" * 1_000_000),
        ("ast:literal_eval", "(" * 100_000),
        ("builtins:eval", "(lambda f: f(f))(lambda f: f(f))"),
        ("builtins:eval", "[0] * 10**12"),
        ("builtins:eval", "exit()"),
    ],
)
def test_a_bomb_is_an_error_or_a_crash_and_the_pool_works_on(pool: WorkerPool, function: str, argument: str) -> None:
    with pytest.raises(WorkerError):
        pool.run(function, argument, deadline_s=30)
    assert pool.run("operator:add", 1, 1, deadline_s=30) == 2


@pytest.mark.skipif(sys.platform != "linux", reason="the address space is limited on Linux alone")
def test_memory_is_limited_per_worker() -> None:
    small, large = WorkerPool(1, memory_limit_bytes=2**29), WorkerPool(1)
    with pytest.raises(WorkerError, match="MemoryError"):
        small.run("builtins:eval", "len(bytes(2**29))", deadline_s=30)
    assert large.run("builtins:eval", "len(bytes(2**29))", deadline_s=30) == 2**29
    small.close()
    large.close()


def test_a_value_that_json_cannot_carry_is_an_error(pool: WorkerPool) -> None:
    with pytest.raises(WorkerError, match="TypeError"):
        pool.run("builtins:eval", "{1, 2}", deadline_s=30)
    assert pool.run("builtins:eval", "'\\ud800' * 3", deadline_s=30) == "\ud800" * 3


def test_large_jobs_and_answers_pass(pool: WorkerPool) -> None:
    text = "a\n" * 2**20
    assert pool.run("builtins:str", text, deadline_s=60) == text


def until_there_is(file: Path) -> str:
    """A job of `builtins:exec`."""
    return f"import os, time\nwhile not os.path.exists({str(file)!r}): time.sleep(0.01)"


def test_an_event_loop_goes_on_while_jobs_run(pool: WorkerPool, tmp_path: Path) -> None:
    """Only what the loop does next lets the first job end."""

    async def work(file: Path) -> list[object]:
        held = asyncio.create_task(pool.run_async("builtins:exec", until_there_is(file), deadline_s=HANG_S))
        jobs = [pool.run_async("operator:mul", i, i, deadline_s=30) for i in range(6)]
        hanging = pool.run_async("time:sleep", HANG_S, deadline_s=0.5)
        results = await asyncio.gather(*jobs, hanging, return_exceptions=True)
        assert not held.done()
        file.touch()
        assert await held is None
        return results

    for number in range(2):  # another loop later, the same pool
        results = asyncio.run(work(tmp_path / str(number)))
        assert results[:6] == [i * i for i in range(6)] and isinstance(results[6], WorkerError)


def test_a_job_that_waits_can_be_taken_back(tmp_path: Path) -> None:
    alone = WorkerPool(1)
    first = alone.submit("builtins:exec", until_there_is(tmp_path / "go"), deadline_s=HANG_S)
    second = alone.submit("operator:add", 1, 1, deadline_s=30)
    assert second.cancel()
    (tmp_path / "go").touch()
    assert first.result() is None
    assert alone.run("operator:add", 1, 1, deadline_s=30) == 2
    assert alone.num_jobs == 2
    alone.close()


def test_many_jobs_keep_their_order_around_a_failure(pool: WorkerPool) -> None:
    outcomes = pool.run_many("operator:truediv", [(i, i - 3) for i in range(8)], deadline_s=30)
    assert isinstance(outcomes.pop(3), WorkerError)
    assert outcomes == [i / (i - 3) for i in range(8) if i != 3]
    assert pool.run_many("operator:add", [], deadline_s=30) == []


def test_more_threads_than_workers_share_the_pool(pool: WorkerPool) -> None:
    results: dict[int, int] = {}

    def work(number: int) -> None:
        results[number] = pool.run("operator:mul", number, number, deadline_s=30)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: number**2 for number in range(12)}


def test_a_closed_pool_starts_again_when_used() -> None:
    pool = WorkerPool(1)
    pid = pool.run("os:getpid", deadline_s=30)
    pool.close()
    assert pool.run("os:getpid", deadline_s=30) != pid
    pool.close()


def run_script(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=PROCESS_S, check=False
    )


def test_a_worker_holds_no_torch_and_the_main_script_is_not_run_again(tmp_path) -> None:
    script = tmp_path / "script.py"  # without the usual __main__ guard
    script.write_text(
        "print('started', flush=True)\n"
        "from posttrain.rewards import MathReward, Completion, shared_pool\n"
        "assert MathReward()(Completion(text=r'\\boxed{1+x}'), {'answer': 'x+1'}).value == 1.0\n"
        "names = shared_pool().run('builtins:eval', 'list(__import__(\"sys\").modules)', deadline_s=30)\n"
        "print('math_verify' in names, {'torch', 'transformers', 'numpy', 'pydantic'} & set(names))\n"
    )
    run = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=PROCESS_S, check=False)
    assert run.stdout == "started\nTrue set()\n", run.stderr


def test_the_interpreter_exits_at_once_although_a_thread_waits_for_a_hanging_job() -> None:
    started = time.monotonic()
    run = run_script("""
        import threading, time
        from posttrain.rewards import shared_pool
        wait = lambda: shared_pool().run("time:sleep", 600, deadline_s=600)
        threading.Thread(target=wait, daemon=True).start()
        time.sleep(1)
        print("end")
    """)
    assert run.stdout == "end\n" and run.returncode == 0, run.stderr
    assert time.monotonic() - started < 300


def test_importing_rewards_is_light() -> None:
    run = run_script("""
        import sys, posttrain.rewards
        heavy = {"torch", "transformers", "numpy", "scipy", "sympy", "math_verify", "pydantic", "PIL"}
        print(sorted(heavy & set(sys.modules)))
    """)
    assert run.stdout == "[]\n", run.stderr
