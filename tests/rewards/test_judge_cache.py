"""Verdicts on disk: shared by processes, and whole after a kill."""

import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from posttrain.rewards import Completion, JudgeAccuracy, JudgeRubric
from posttrain.rewards.judge_cache import VerdictCache

from tests.rewards.judge_server import JudgeServerFake
from tests.waiting import PROCESS_S

SAID = Completion(text="<answer>12</answer>", prompt="How long?")


@pytest.fixture
def fake() -> Iterator[JudgeServerFake]:
    server = JudgeServerFake()
    yield server
    server.stop()


def options(fake: JudgeServerFake, path: Path, **more: Any) -> dict[str, Any]:
    return {"url": fake.url, "model": "judge", "retries": 0, "cache": str(path / "judge.sqlite"), **more}


def test_what_was_said_is_not_asked_again_and_needs_no_server(fake: JudgeServerFake, tmp_path: Path) -> None:
    assert JudgeAccuracy(server=options(fake, tmp_path))(SAID, {"answer": "12"}).value == 1.0
    fake.stop()
    later = JudgeAccuracy(server=options(fake, tmp_path, timeout_s=7.0))  # another judge, as of another run
    assert later(SAID, {"answer": "12"}).value == 1.0
    assert later.metrics()["judge/cache_hits"] == 1 and later.metrics()["judge/requests"] == 0
    fake.start()


def test_everything_that_the_judge_sees_is_in_the_key(fake: JudgeServerFake, tmp_path: Path) -> None:
    image = "data:image/png;base64,"
    rows: list[tuple[dict[str, Any], Completion, dict[str, Any]]] = [
        ({}, SAID, {"answer": "12"}),
        ({}, SAID, {"answer": "13"}),
        ({}, SAID, {"answer": "12", "question": "How wide?"}),
        ({}, Completion(text="<answer>11</answer>", prompt="How long?"), {"answer": "12"}),
        ({}, SAID, {"answer": "12", "images": [image + "AA"]}),
        ({}, SAID, {"answer": "12", "images": [image + "BB"]}),
        ({"model": "other"}, SAID, {"answer": "12"}),
        ({"temperature": 0.5}, SAID, {"answer": "12"}),
        ({"extra_body": {"top_p": 0.5}}, SAID, {"answer": "12"}),
    ]
    for repeat in range(2):
        for server, completion, reference in rows:
            JudgeAccuracy(server=options(fake, tmp_path, **server), images=True)(completion, reference)
        assert len(fake.asked) == len(rows), f"in round {repeat}"


def test_failures_are_not_kept(fake: JudgeServerFake, tmp_path: Path) -> None:
    right = fake.say
    fake.say = lambda asked: "prose"
    assert JudgeAccuracy(server=options(fake, tmp_path))(SAID, {"answer": "12"}).value is None
    fake.say = right
    assert JudgeAccuracy(server=options(fake, tmp_path))(SAID, {"answer": "12"}).value == 1.0


def test_a_kept_verdict_that_could_not_have_been_said_is_asked_again(fake: JudgeServerFake, tmp_path: Path) -> None:
    reward = JudgeAccuracy(server=options(fake, tmp_path))
    reward(SAID, {"answer": "12"})
    with sqlite3.connect(tmp_path / "judge.sqlite") as connection:
        connection.execute("UPDATE verdicts SET verdict = ?", (json.dumps({"correct": "yes"}),))
    assert reward(SAID, {"answer": "12"}).value == 1.0
    assert len(fake.asked) == 2


def test_a_file_that_is_no_cache_is_named(tmp_path: Path) -> None:
    (tmp_path / "x.sqlite").write_bytes(b"no database at all" * 100)
    with pytest.raises(ValueError, match=r"x\.sqlite cannot be read"):
        VerdictCache(tmp_path / "x.sqlite").get("a")


def test_a_disk_that_takes_no_more_warns_once(tmp_path: Path) -> None:
    cache = VerdictCache(tmp_path / "x.sqlite")
    cache.put("a", {"correct": True})
    cache._connection.execute("PRAGMA query_only = ON")
    with pytest.warns(UserWarning, match="keeps no more verdicts"):
        cache.put("b", {"correct": True})
    cache.put("c", {"correct": True})
    assert cache.get("a") == {"correct": True} and cache.get("b") is None


WRITER = """
import sys
from posttrain.rewards.judge_cache import VerdictCache
cache = VerdictCache(sys.argv[1])
for i in range(int(sys.argv[3])):
    cache.put(f"{sys.argv[2]}{i}", {"correct": True})
    print(i, flush=True)
"""


def writer(path: Path, name: str, number: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", WRITER, str(path), name, str(number)]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def test_two_processes_write_one_file(tmp_path: Path) -> None:
    processes = [writer(tmp_path / "x.sqlite", name, 200) for name in "ab"]
    for process in processes:
        process.communicate(timeout=PROCESS_S)
        assert process.returncode == 0
    cache = VerdictCache(tmp_path / "x.sqlite")
    assert all(cache.get(f"{name}{i}") == {"correct": True} for name in "ab" for i in range(200))


def test_a_killed_process_loses_nothing_that_it_had_written(tmp_path: Path) -> None:
    process = writer(tmp_path / "x.sqlite", "a", 1_000_000)
    assert process.stdout is not None
    for _ in range(50):
        process.stdout.readline()
    os.kill(process.pid, signal.SIGKILL)
    written = 50 + len(process.stdout.read().split())
    process.wait()
    process.stdout.close()
    cache = VerdictCache(tmp_path / "x.sqlite")
    assert all(cache.get(f"a{i}") for i in range(written))
    cache.put("b", {"correct": False})
    assert cache.get("b") == {"correct": False}


def test_a_forked_child_asks_on_a_loop_and_connections_of_its_own(fake: JudgeServerFake, tmp_path: Path) -> None:
    reward = JudgeRubric(server=options(fake, tmp_path), axes={"style": 1.0})
    fake.say = lambda asked: asked.verdict(style=5)
    assert reward(Completion(text="here"), {}).value == 0.5
    child = os.fork()
    if child == 0:
        os._exit(reward(Completion(text="there"), {}).value != 0.5)
    deadline = time.monotonic() + 60
    while (ended := os.waitpid(child, os.WNOHANG))[0] == 0 and time.monotonic() < deadline:
        time.sleep(0.05)
    if ended[0] == 0:
        os.kill(child, signal.SIGKILL)
    assert ended[0] == child and os.waitstatus_to_exitcode(ended[1]) == 0
