"""Maths verification of 1,024 completions, a twentieth of them hostile, against TRL's `accuracy_reward`.

Each side has a process of its own, pinned to its cores, and scores the same completions; they take turns. Hostile
answers end here at their deadline. TRL scores them under a time limit, and what happened is told.
"""

import argparse
import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from _maths import Case, benign, hostile

DEADLINE_S = 1.0
"""Of one comparison with hostile answers in the batch: a hundred times what an honest one takes."""
PATIENT_S = 60.0
"""Of one comparison without: what is measured there is throughput."""
TRL_LIMIT_S = 60.0
"""For TRL to score the hostile answers."""
MEMORY_BYTES = 4 * 2**30
"""Address space that TRL gets for them, as our workers do."""


def main() -> None:
    from _harness import arguments, finish, settle, show

    parser = arguments(str(__doc__).splitlines()[0])
    parser.add_argument("--side", choices=("ours", "trl"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    cores = sorted(os.sched_getaffinity(0))
    settle(options)
    num_hostile = 6 if options.quick else 51
    num_benign = (128 if options.quick else 1024) - num_hostile
    sides = {
        "TRL, 1 core": Side("trl", cores[-1:]),
        "ours, 1 core": Side("ours", cores[-1:]),
        "ours, 2 cores": Side("ours", cores[-2:]),
    }
    answers: dict[str, list[dict[str, Any]]] = {name: [] for name in sides}
    for repeat in range(-1, options.repeats):  # the first one warms up
        for name, side in sides.items():
            answer = side.ask("benign", num_benign)
            if repeat >= 0:
                answers[name].append(answer)
    mixed = sides["ours, 2 cores"].ask("mixed", num_benign, num_hostile)
    told = sides["TRL, 1 core"].try_hostile(num_hostile, 10.0 if options.quick else TRL_LIMIT_S)
    for side in sides.values():
        side.end()

    median = {name: statistics.median(answer["seconds"] for answer in found) for name, found in answers.items()}
    wrong = {name: found[-1]["wrong"] for name, found in answers.items()}
    cells: list[dict[str, object]] = [
        {
            "side": name,
            "seconds": round(median[name], 3),
            "min_s": round(min(answer["seconds"] for answer in answers[name]), 3),
            "per_s": round(num_benign / median[name]),
            "wrong": len(wrong[name]),
            "unscored": answers[name][-1]["unscored"],
        }
        for name in sides
    ]
    columns = ("", "seconds, median", "(min)", "completions/s", "wrong verdicts", "no verdict")
    show(f"{num_benign} benign completions", columns, [tuple(cell.values()) for cell in cells])
    over = mixed["seconds"] - median["ours, 2 cores"] - mixed["timeouts"] * DEADLINE_S / 2
    what = f"{mixed['timeouts']} ran into their deadline of {DEADLINE_S:g} s, {mixed['crashes']} crashed"
    rows = [
        ("ours, 2 cores: all", num_benign + num_hostile, mixed["seconds"], what),
        ("TRL, 1 core: the hostile ones", num_hostile, told["seconds"], told["what"]),
    ]
    show(f"with {num_hostile} hostile completions", ("", "completions", "seconds", "what happened"), rows)
    for name in ("TRL, 1 core", "ours, 2 cores"):
        for gold, said in wrong[name][:8]:
            print(f"{name}: wrong about {said} where {gold} is right")
    figures = {
        "throughput_ratio_benign": round(median["TRL, 1 core"] / median["ours, 1 core"], 2),
        "scaling_2_cores": round(median["ours, 1 core"] / median["ours, 2 cores"], 2),
        "adversarial_seconds_over_deadline": round(max(over, 0.0), 2),
        "false_verdicts": len(wrong["ours, 2 cores"]) + len(mixed["wrong"]),
        "false_verdicts_trl": len(wrong["TRL, 1 core"]),
    }
    cells += [{"side": "ours, with hostile ones", **mixed}, {"side": "TRL, hostile ones alone", **told}]
    finish("rewards_math", figures, cells, quick=options.quick)


class Side:
    """A process that scores, asked by a line of JSON on its stdin."""

    def __init__(self, side: str, cores: Sequence[int]) -> None:
        command = [sys.executable, __file__, "--side", side]
        self._process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0)
        os.sched_setaffinity(self._process.pid, cores)

    def ask(self, what: str, *counts: int) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps([what, *counts]).encode() + b"\n")
        return self._line(None)

    def try_hostile(self, count: int, limit_s: float) -> dict[str, Any]:
        """Asks TRL to score hostile answers one by one, and ends it at the limit."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(["hostile", count]).encode() + b"\n")
        start, done, failed = time.perf_counter(), 0, 0
        try:
            for _ in range(count):
                line = self._line(start + limit_s - time.perf_counter())
                done, failed = done + 1, failed + ("error" in line)
            what = f"all {count} scored, {failed} of them by an exception"
        except TimeoutError:
            what = (
                f"{done} of {count} came back ({failed} by an exception) in {limit_s:g} s; the next was still running"
            )
        except EOFError:
            self._process.wait()
            what = f"its process ended (status {self._process.returncode}) after {done} of {count}"
        return {"seconds": round(time.perf_counter() - start, 1), "done": done, "failed": failed, "what": what}

    def end(self) -> None:
        self._process.kill()
        self._process.wait()

    def _line(self, seconds: float | None) -> dict[str, Any]:
        assert self._process.stdout is not None
        if not select.select([self._process.stdout], [], [], seconds if seconds is None else max(seconds, 0.0))[0]:
            raise TimeoutError
        line = self._process.stdout.readline()
        if not line:
            raise EOFError
        return json.loads(line)


def serve(score: Callable[[list[Case], float], list[float | None]]) -> None:
    """The life of a side: answers until its stdin closes."""
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what a library prints is no answer
    for line in sys.stdin:
        what, *counts = json.loads(line)
        if what == "hostile":
            limit_memory()
            for case in hostile(counts[0]):
                try:
                    print(json.dumps({"values": score([case], PATIENT_S)}), file=answers)
                except Exception as error:  # what TRL raises here is what is to be told
                    print(json.dumps({"error": repr(error)[:200]}), file=answers)
            continue
        cases = benign(counts[0])
        if what == "mixed":
            every = max(len(cases) // counts[1], 1)
            for place, case in enumerate(hostile(counts[1])):
                cases.insert(place * (every + 1), case)
        before = pool_counts()
        start = time.perf_counter()
        values = score(cases, DEADLINE_S if what == "mixed" else PATIENT_S)
        seconds = time.perf_counter() - start
        scored = [(case, value) for case, value in zip(cases, values, strict=True) if value is not None]
        wrong = [
            (case.gold, case.text.rpartition("the answer is ")[2])
            for case, value in scored
            if value != bool(case.is_right)
        ]
        timeouts, crashes = (now - then for now, then in zip(pool_counts(), before, strict=True))
        told = {"seconds": seconds, "wrong": wrong, "unscored": len(cases) - len(scored)}
        told |= {"timeouts": timeouts, "crashes": crashes}
        print(json.dumps(told), file=answers)


def ours(cases: list[Case], deadline_s: float) -> list[float | None]:
    from posttrain.rewards import Completion, MathReward

    completions, references = [Completion(text=case.text) for case in cases], [{"answer": case.gold} for case in cases]
    return [score.value for score in MathReward(deadline_s=deadline_s).score_batch(completions, references)]


def trl(cases: list[Case], deadline_s: float) -> list[float | None]:
    from trl.rewards.accuracy_rewards import accuracy_reward

    completions = [[{"role": "assistant", "content": case.text}] for case in cases]
    return accuracy_reward(completions, solution=[f"${case.gold}$" for case in cases])


def pool_counts() -> tuple[int, int]:
    from posttrain.rewards import shared_pool

    return shared_pool().num_timeouts, shared_pool().num_crashes


def limit_memory() -> None:
    import resource

    resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES * 4, MEMORY_BYTES * 4))  # torch alone maps several GiB


if __name__ == "__main__":
    if "--side" in sys.argv:
        serve({"ours": ours, "trl": trl}[sys.argv[-1]])
    else:
        main()
