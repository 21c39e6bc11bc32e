"""The `code` reward: does the program in the answer pass the reference's tests? Linux only.

A program runs in a process of its own that is confined for good (`sandbox/confine.py`) and killed with its group at its
deadline. What it prints is compared here; what its functions return is compared in another process that holds the
tests and gets plain data (`sandbox/wire.py`). So nothing that a program does to itself is a verdict: neither
`os._exit(0)`, nor printing "all tests passed", nor an object that equals everything.
"""

import os
import re
import sys
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from math import inf, isclose
from typing import Any, ClassVar, Literal

from .batching import BatchReward
from .code_tests import FunctionTests, ProgramTests, reference_tests
from .extraction import last_tagged, strip_thinking
from .references import reference_text
from .registry import register
from .sandbox.launch import LAYERS, Limits, SandboxError, layers_in_force, run_program, run_tests
from .score import BadReferenceError, Completion, Score

MAX_CODE_CHARS = 100_000
"""A longer program is not run."""

_FENCE = re.compile(r"^[ \t]*(`{3,}|~{3,})[ \t]*([\w+#.-]*)[^\n]*$", re.MULTILINE)
_PYTHON = frozenset(("", "python", "python3", "py"))


@register("code")
@dataclass(frozen=True, slots=True, kw_only=True)
class CodeReward(BatchReward):
    """1 where the answer's last Python code block passes the reference's tests, else 0. Linux only.

    The tests are pairs of input and output for a program, or statements about its functions (see `reference_tests` for
    the fields that data sets use). A program has no network, starts no process, reads only the standard library and
    writes no file, as far as the kernel can be told so; docs/rewards.md says what holds where.
    """

    reads_whole_text: ClassVar[bool] = True

    tests_key: str = "tests"
    """The reference field with the tests."""
    solution_key: str = "solution"
    """The reference field with a solution, from which the perfect answer is made; need not be there."""
    credit: Literal["all", "fraction"] = "all"
    """all pays for a program that passes every test, fraction the share of tests that pass."""
    test_s: float = 10.0
    """Wall-clock seconds of one test; a test that runs past them has failed."""
    deadline_s: float = 60.0
    """Wall-clock seconds of all tests of one answer; those that are left then have failed."""
    memory_mb: int = 512
    """Address space of the program, the interpreter included, in MiB."""
    tolerance: float = 0.0
    """How far numbers on stdout may be off, relatively or absolutely; 0 compares text."""
    packages: bool = False
    """Lets programs and tests import installed packages; by default the standard library alone."""
    require_isolation: bool = False
    """Refuses to run where the kernel lacks a layer of the sandbox; by default that is a warning."""

    def __post_init__(self) -> None:
        for name, seconds in (("test_s", self.test_s), ("deadline_s", self.deadline_s)):
            if not 0 < seconds < inf:
                raise ValueError(f"{name} must be above 0 seconds, got {seconds}")
        if self.memory_mb < 64:
            raise ValueError(f"memory_mb must be at least 64, which Python itself takes, got {self.memory_mb}")
        if not 0 <= self.tolerance < 1:
            raise ValueError(f"tolerance must be in [0, 1), got {self.tolerance}")

    def __call__(self, completion: Completion, reference: Mapping[str, Any]) -> Score:
        """The score. Raises `BadReferenceError`, and RuntimeError where programs cannot be run."""
        self._look_at_kernel()
        return self._score(completion, reference_tests(reference, self.tests_key))

    def score_batch(self, completions: Sequence[Completion], references: Sequence[Mapping[str, Any]]) -> list[Score]:
        self._look_at_kernel()

        def score(pair: tuple[Completion, Mapping[str, Any]]) -> Score:
            try:
                return self._score(pair[0], reference_tests(pair[1], self.tests_key))
            except BadReferenceError as error:
                return Score.unscored(f"bad reference: {error}")

        with ThreadPoolExecutor(os.cpu_count()) as threads:
            return list(threads.map(score, zip(completions, references, strict=True)))

    def perfect_answer(self, reference: Mapping[str, Any]) -> str | None:
        """The reference's solution in a code block; None without one. Raises `BadReferenceError` for bad tests."""
        reference_tests(reference, self.tests_key)
        if reference.get(self.solution_key) is None:
            return None
        solution = reference_text(reference, self.solution_key)
        return solution if last_program(solution) else f"```python\n{solution}\n```"

    def wrong_answers(self, reference: Mapping[str, Any]) -> list[str]:
        """A program that does nothing: tests that let it pass test nothing."""
        return ["```python\npass\n```"]

    def _score(self, completion: Completion, tests: ProgramTests | FunctionTests) -> Score:
        program = last_program(completion.response)
        if program is None:
            return Score(value=0.0, reason=f"no Python code block of at most {MAX_CODE_CHARS:,} characters")
        num_tests = len(tests.inputs if isinstance(tests, ProgramTests) else tests.sources)
        passed = num_run = 0
        reason = ""
        try:
            for is_passed, why in self._results(program, tests):
                num_run += 1
                passed += is_passed
                reason = reason or ("" if is_passed else f"test {num_run}: {why}")
                if not is_passed and self.credit == "all":
                    break
        except SandboxError as error:
            return Score.unscored(str(error))
        if num_run < num_tests and passed == num_run:
            reason = f"test {num_run + 1}: no time was left of {self.deadline_s:g} s"
        value = float(passed == num_tests) if self.credit == "all" else passed / num_tests
        return Score(value=value, parts={"passed_frac": passed / num_tests}, reason=reason)

    def _results(self, program: str, tests: ProgramTests | FunctionTests) -> Iterator[tuple[bool, str]]:
        """Whether each test passes, in order, and why not; ends early where the time has run out."""
        ends = time.monotonic() + self.deadline_s
        if isinstance(tests, ProgramTests):
            for given, wanted in zip(tests.inputs, tests.outputs, strict=True):
                if (limits := self._limits(ends)) is None:
                    return
                ended = run_program(program, given.encode(errors="replace"), limits)
                is_right = same_output(ended.output.decode(errors="replace"), wanted, self.tolerance)
                yield is_right and not ended.problem, ended.problem or "printed something else"
            return
        done = 0
        while done < len(tests.sources):  # a test that ended the process has failed; the others get a new one
            if (limits := self._limits(ends)) is None:
                return
            for result in run_tests(program, tests.sources[done:], tests.names, limits, ends=ends):
                done += 1
                yield result

    def _limits(self, ends: float) -> Limits | None:
        left = ends - time.monotonic()
        if left <= 0:
            return None
        return Limits(deadline_s=min(self.test_s, left), memory_bytes=self.memory_mb * 2**20, packages=self.packages)

    def _look_at_kernel(self) -> None:
        if sys.platform != "linux":
            raise RuntimeError(f"the reward 'code' confines programs by the Linux kernel, and this is {sys.platform}")
        missing = [layer for layer in LAYERS if layer not in layers_in_force()]
        if missing and self.require_isolation:
            raise RuntimeError(f"this kernel confines programs without {', '.join(missing)}; require_isolation is on")
        if missing:
            _warn_once(tuple(missing))


def last_program(text: str) -> str | None:
    """What stands in the last closed code block that is Python or marked as nothing; None where there is none.

    The block is looked for in the last `<answer>`, and where that holds none, in all that follows the thoughts. A block
    in another language is no program: it shows output, or a command.
    """
    spoken = strip_thinking(text) or ""
    tagged = last_tagged(spoken)
    found = None if tagged is None else _last_block(tagged)
    return _last_block(spoken) if found is None else found


def _last_block(spoken: str) -> str | None:
    found, opening = None, None
    for fence in _FENCE.finditer(spoken):
        if opening is None:
            opening = fence
        elif fence[1].startswith(opening[1]) and not fence[2]:
            if opening[2].lower() in _PYTHON:
                found = spoken[opening.end() + 1 : fence.start()]
            opening = None
    return found if found and found.strip() and len(found) <= MAX_CODE_CHARS else None


def same_output(said: str, wanted: str, tolerance: float) -> bool:
    """Whether two outputs are the same, but for spaces at the ends of lines and empty lines at the end.

    With a tolerance they are compared word by word, and numbers with a decimal point by that.
    """
    if _trimmed(said) == _trimmed(wanted):
        return True
    words, wanted_words = said.split(), wanted.split()
    return (
        tolerance > 0
        and len(words) == len(wanted_words)
        and all(a == b or _is_near(a, b, tolerance) for a, b in zip(words, wanted_words, strict=True))
    )


def _trimmed(text: str) -> list[str]:
    return [line.rstrip() for line in text.rstrip().splitlines()]


def _is_near(said: str, wanted: str, tolerance: float) -> bool:
    try:
        return isclose(float(said), float(wanted), rel_tol=tolerance, abs_tol=tolerance)
    except ValueError:
        return False


@cache
def _warn_once(missing: tuple[str, ...]) -> None:
    warnings.warn(
        f"this kernel confines programs without {', '.join(missing)}; only an audit hook forbids the same in its place",
        stacklevel=4,
    )
