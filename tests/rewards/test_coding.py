"""The code reward: what programs earn, and what hostile ones cannot do."""

import subprocess
import sys
import threading
import time
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from posttrain.rewards import BadReferenceError, CodeReward, Completion, Score, WholeTextReward, make_table
from posttrain.rewards.coding import last_program, same_output

from tests.waiting import PATIENCE_S

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined by the Linux kernel")

DOUBLE = {"tests": [{"input": "21\n", "output": "42\n"}, {"input": "-1", "output": "-2"}]}
ADD = {"tests": ["assert add(1, 2) == 3", "assert add([1], [2]) == [1, 2]", "assert add('a', 'b') == 'ab'"]}
PATIENT: dict[str, Any] = {"test_s": 60.0, "deadline_s": 600.0}
"""For a busy machine."""


def said(program: str) -> Completion:
    return Completion(text=f"Here it is:\n```python\n{program}\n```\nDone.")


def score(program: str, reference: dict[str, Any], **options: Any) -> Score:
    return CodeReward(**{**PATIENT, **options})(said(program), reference)


@pytest.mark.parametrize(
    ("program", "value"),
    [
        ("print(int(input()) * 2)", 1),
        ("import sys\nfor line in sys.stdin: print(2 * int(line), end='  \\n\\n')", 1),
        ("n = int(open(0).read())\nprint(n + n)", 1),
        ("def main():\n    print(int(input()) * 2)\nif __name__ == '__main__':\n    main()", 1),
        ("import sys\nprint(int(input()) * 2)\nsys.exit(0)", 1),
        ("import asyncio\nasync def f(): print(int(input()) * 2)\nasyncio.run(f())", 1),
        (
            "import sys, threading\nsys.setrecursionlimit(10**6)\nthreading.stack_size(2**26)\n"
            "def f(n): return 0 if n == 0 else f(n - 1) + 0\n"
            "def main(): print(int(input()) * 2 + f(50_000))\n"
            "t = threading.Thread(target=main)\nt.start()\nt.join()",
            1,
        ),
        ("print(42)", 0),
        ("print(int(input()) * 3)", 0),
        ("print(int(input()) * 2)\nraise ValueError", 0),
        ("print(int(input()) * 2)\nexit(1)", 0),
        ("print(int(input()) * 2) +", 0),
        ("", 0),
    ],
)
def test_a_program_prints_what_is_wanted_or_not(program: str, value: int) -> None:
    assert score(program, DOUBLE).value == value


@pytest.mark.parametrize(
    ("program", "value"),
    [
        ("def add(a, b):\n    return a + b", 1),
        ("add = lambda a, b: a + b", 1),
        ("class Solution:\n    def add(self, a, b):\n        return a + b", 1),
        ("def add(a, b):\n    return a + b\nif __name__ == '__main__':\n    print(input())", 1),
        ("def add(a, b):\n    print('3')\n    return a + b", 1),
        ("def add(a, b):\n    return 3", 0),
        ("def plus(a, b):\n    return a + b", 0),
        ("def add(a, b):\n    a + b", 0),
        ("def add(a, b)\n    return a + b", 0),
        ("raise SystemExit", 0),
    ],
)
def test_a_function_returns_what_is_wanted_or_not(program: str, value: int) -> None:
    assert score(program, ADD).value == value


def test_credit_for_a_part_of_the_tests() -> None:
    half = "def add(a, b):\n    return 3 if a == 1 else a + b if a == 'a' else None"
    assert score(half, ADD).value == 0.0
    result = score(half, ADD, credit="fraction")
    assert result.value == pytest.approx(2 / 3) and result.parts == {"passed_frac": pytest.approx(2 / 3)}
    assert result.reason.startswith("test 2: AssertionError")
    assert score("print(42)", DOUBLE, credit="fraction").value == 0.5


def test_a_test_that_ends_the_process_leaves_the_others_their_chance() -> None:
    program = "import os\ndef add(a, b):\n    if a == [1]: os._exit(0)\n    return a + b"
    result = score(program, ADD, credit="fraction")
    assert result.value == pytest.approx(2 / 3) and "test 2: PeerGoneError" in result.reason


@pytest.mark.parametrize(
    ("program", "test"),
    [
        ("def f(x): x.append(1); x[0][0] = 5", "a = [[2], 3]\nf(a)\nassert a == [[5], 3, 1]"),
        ("def f(d): d.clear()", "d = {1: 2}\nf(d)\nassert d == {}"),
        ("def f(): return (1, [2.5, None], {'a': {3}}, b'x', True, 2**100, 1j, range(3))",
         "assert f() == (1, [2.5, None], {'a': {3}}, b'x', True, 2**100, 1j, range(3)) and f()[4] is True"),
        ("from collections import *\ndef f(): return Counter('aab'), deque([1]), namedtuple('P', 'x')(1)",
         "from collections import deque\nassert f() == ({'a': 2, 'b': 1}, deque([1]), (1,))"),
        ("def f(n):\n    while n:\n        yield n\n        n -= 1", "assert list(f(3)) == [3, 2, 1]"),
        ("def f(g, x): return g(g(x))", "assert f(lambda x: x + 1, 1) == 3"),
        ("def f(n): return lambda x: x + n", "assert f(2)(3) == 5"),
        ("def f(t): return isinstance(1, t)", "assert f(int) and not f(str)"),
        ("class Stack:\n    def __init__(self): self.items = []\n    def push(self, x): self.items.append(x)\n"
         "    def __len__(self): return len(self.items)\n    def __repr__(self): return f'Stack({self.items})'",
         "s = Stack()\nassert not s\ns.push(4)\nassert len(s) == 1 and s.items == [4] and repr(s) == 'Stack([4])'"),
        ("class V:\n    def __init__(self, x): self.x = x\n    def __add__(self, o): return V(self.x + o.x)\n"
         "    def __eq__(self, o): return self.x == o.x\n    def __lt__(self, o): return self.x < o.x",
         "v = V(1)\nassert v + V(2) == V(3) and v != V(2) and v < V(2) and not v == 1\nv.x = 7\nassert v.x == 7"),
        ("def f(x):\n    if x < 0: raise ValueError('below 0')",
         "try:\n    f(-1)\nexcept ValueError as error:\n    assert str(error) == 'below 0'\nelse:\n    assert False"),
        ("class TooLow(ValueError): pass\ndef f(x): raise TooLow('low')",
         "try:\n    f(-1)\nexcept TooLow as error:\n    assert str(error) == 'low'\nelse:\n    assert False"),
        ("LIMIT = 7\ndef f(): return LIMIT", "assert f() == LIMIT == 7"),
        ("def f(a, *, b=1): return a + b", "assert f(1, b=2) == 3"),
    ],
)  # fmt: skip
def test_tests_reach_functions_as_if_they_were_theirs(program: str, test: str) -> None:
    result = score(program, {"tests": [test]})
    assert result.value == 1.0, result.reason


@pytest.mark.parametrize("program", ["while True: pass", "import time\ntime.sleep(600)", "input()\ninput()"])
def test_what_does_not_end_is_ended_at_its_deadline(program: str) -> None:
    started = time.monotonic()
    many = {"tests": [{"input": "1", "output": "1"}] * 50}
    result = score(program, many, test_s=0.5, deadline_s=1.0, credit="fraction")
    assert result.value == 0.0
    assert time.monotonic() - started < PATIENCE_S
    endless = "import time\ndef add(a, b):\n    time.sleep(600)"
    result = score(endless, ADD, test_s=0.5)
    assert result.value == 0.0 and result.reason == "test 1: ran past its deadline"


def test_the_environment_and_the_folder_are_empty() -> None:
    program = "import os, sys\nprint(dict(os.environ), os.listdir('.'), sys.argv, os.path.basename(os.getcwd())[:8])"
    wanted = "{} [] ['answer.py'] program-"
    assert score(program, {"tests": [{"input": "", "output": wanted}]}).value == 1.0


def test_the_same_program_gets_the_same_verdict_every_time() -> None:
    program = "print(list({'a', 'b', 'c', 'd', 'e', 'f', 'g', 'h'}))"
    order = subprocess.check_output([sys.executable, "-c", program], env={"PYTHONHASHSEED": "0"}, text=True)
    assert [score(program, {"tests": [{"input": "", "output": order}]}).value for _ in range(3)] == [1.0] * 3


def test_the_verdict_is_the_same_on_and_off_the_main_thread() -> None:
    programs = ["print(int(input()) * 2)", "print(42)", "import os\nos._exit(0)", "x = bytes(2**40)"]
    completions, references = [said(program) for program in programs], [DOUBLE] * len(programs)
    reward = CodeReward(**PATIENT, credit="fraction")
    here = reward.score_batch(completions, references)
    elsewhere: list[Score] = []
    thread = threading.Thread(target=lambda: elsewhere.extend(reward.score_batch(completions, references)))
    thread.start()
    thread.join()
    assert [result.value for result in here] == [1.0, 0.5, 0.0, 0.0]
    assert elsewhere == here


def test_memory_is_limited_by_the_option() -> None:
    program = "x = bytes(2**28)\nprint(42)"
    reference = {"tests": [{"input": "", "output": "42"}]}
    assert score(program, reference, memory_mb=128).value == 0.0
    assert score(program, reference, memory_mb=1024).value == 1.0


def test_packages_can_be_allowed() -> None:
    program, reference = "import numpy\nprint(numpy.arange(3).sum())", {"tests": [{"input": "", "output": "3"}]}
    assert score(program, reference).value == 0.0
    assert score(program, reference, packages=True, memory_mb=4096).value == 1.0


@pytest.mark.parametrize(
    ("reference", "program"),
    [
        ({"tests": {"inputs": ["1\n", "2\n"], "outputs": ["2\n", "4\n"]}}, "print(2 * int(input()))"),
        ({"tests": '{"inputs": [["1"], ["2"]], "outputs": [["2"], ["4"]]}'}, "print(2 * int(input()))"),
        ({"tests": '[{"input": "1", "output": "2"}]'}, "print(2 * int(input()))"),
        ({"tests": {"inputs": [[1, [2]]], "outputs": [[1, 2]], "fn_name": "f"}}, "def f(a, b): return (a, *b)"),
        ({"tests": [{"input": "1\n[2.0]", "output": "[1, 2]"}], "entry_point": "f"}, "def f(a, b): return [a, *b]"),
        ({"tests": '[{"input": "\\"a\\"", "output": "\\"aa\\""}]', "fn_name": "f"},
         "class Solution:\n    f = lambda s, x: x + x"),
        ({"tests": "def check(c):\n    assert c(1) == 2", "entry_point": "f"}, "def f(x): return 2 * x"),
        ({"tests": "for x in range(3):\n    assert f(x) == 2 * x"}, "def f(x): return 2 * x"),
    ],
)  # fmt: skip
def test_the_tests_of_common_data_sets_are_read(reference: dict[str, Any], program: str) -> None:
    assert score(program, reference).value == 1.0
    assert score(program.replace("2", "3").replace("+ x", "+ x + x").replace("*b", "9"), reference).value == 0.0


@pytest.mark.parametrize(
    ("reference", "message"),
    [
        ({}, "no 'tests'"),
        ({"tests": []}, "must be a list of tests"),
        ({"tests": 3}, "must be a list of tests"),
        ({"tests": "def check(:"}, "is no Python"),
        ({"tests": ["assert f(1) = 2"]}, "is no Python"),
        ({"tests": ["assert f(1) == 2", {"input": "", "output": ""}]}, "must hold statements, or mappings"),
        ({"tests": [{"input": "1"}]}, "must hold statements, or mappings"),
        ({"tests": [{"input": 1, "output": "1"}]}, "must be text"),
        ({"tests": {"inputs": ["1"], "outputs": []}}, "of one length"),
        ({"tests": {"inputs": [], "outputs": []}}, "holds no test"),
        ({"tests": {"inputs": ["x y"], "outputs": ["1"], "fn_name": "f"}}, "one JSON a line"),
        ({"tests": ["assert f(1) == 2"], "entry_point": "f(1)"}, "a function's name"),
        ({"tests": ["assert f(1) == 2"] * 2000}, "too many"),
    ],
)
def test_tests_that_cannot_be_read_are_an_error_of_the_data(reference: dict[str, Any], message: str) -> None:
    reward = CodeReward()
    with pytest.raises(BadReferenceError, match=message):
        reward.perfect_answer(reference)
    with pytest.raises(BadReferenceError, match=message):
        reward(said("x = 1"), reference)
    (result,) = reward.score_batch([said("x = 1")], [reference])
    assert not result.is_scored and "bad reference" in result.reason


def test_tests_that_test_nothing_are_named_by_the_check() -> None:
    table = make_table({"t": {"name": "code"}})
    solved = {**ADD, "solution": "def add(a, b):\n    return a + b"}
    assert table.check("t", solved) == [] and table.check_wrong("t", solved) == []
    (problem,) = table.check_wrong("t", {**solved, "tests": ["assert True"]})
    assert "pass" in problem and "earns full marks" in problem
    (problem,) = table.check("t", {**solved, "solution": "def add(a, b):\n    return a - b"})
    assert "earns 0, not 1" in problem


def test_a_task_s_extraction_does_not_hide_the_program() -> None:
    table = make_table({"t": {"name": "code", "test_s": 60.0, "deadline_s": 600.0}})
    assert table.score("t", said("print(int(input()) * 2)"), DOUBLE).value == 1.0
    assert isinstance(CodeReward(), WholeTextReward)


def test_the_perfect_answer_is_the_solution() -> None:
    reward = CodeReward(**PATIENT)
    assert reward.perfect_answer(ADD) is None
    solved = {**ADD, "solution": "def add(a, b):\n    return a + b"}
    answer = reward.perfect_answer(solved)
    assert answer is not None and reward(Completion(text=answer), solved).value == 1.0
    fenced = {**ADD, "solution": "```python\ndef add(a, b):\n    return a + b\n```"}
    assert reward.perfect_answer(fenced) == fenced["solution"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"test_s": 0}, "test_s"),
        ({"deadline_s": float("nan")}, "deadline_s"),
        ({"memory_mb": 1}, "memory_mb"),
        ({"tolerance": -1}, "tolerance"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        CodeReward(**options)


@pytest.mark.parametrize(
    ("text", "program"),
    [
        ("```python\na\n```", "a\n"),
        ("```py\na\n```\n```\nb\n```", "b\n"),
        ("```python\na\n```\nwhich prints\n```text\n42\n```", "a\n"),
        ("```python\na\n```\n```bash\nls\n```", "a\n"),
        ("~~~python\na\n~~~", "a\n"),
        ("````python\n'''\n```\n'''\n````", "'''\n```\n'''\n"),
        ("<think>```python\na\n```</think>\n```python\nb\n```", "b\n"),
        ("<think>```python\na\n```", None),
        ("```python\na\n", None),
        ("a = 1", None),
        ("```python\n\n```", None),
        ("```python\n" + "a" * 200_000 + "\n```", None),
    ],
)
def test_the_last_program_is_taken(text: str, program: str | None) -> None:
    assert last_program(text) == program


@given(st.text(alphabet="`~python \na<>/think", max_size=200))
def test_looking_for_a_program_never_raises(text: str) -> None:
    last_program(text)


@pytest.mark.parametrize("piece", ["```\n", "`", "```python\na\n", "~~~", "\n ", "<think>"])
def test_looking_for_a_program_takes_little_time(piece: str) -> None:
    started = time.process_time()
    last_program(piece * (2**20 // len(piece)))
    assert time.process_time() - started < 20  # a quadratic scan takes hours


@pytest.mark.parametrize(
    ("output", "wanted", "tolerance", "same"),
    [
        ("1 2 \n3\n\n", "1 2\n3", 0.0, True),
        ("1  2", "1 2", 0.0, False),
        ("1  2", "1 2", 1e-6, True),
        ("0.3333333", "0.33333333", 1e-6, True),
        ("0.3333333", "0.33333333", 0.0, False),
        ("0.33", "0.33333333", 1e-6, False),
        ("nan", "1.0", 1e-6, False),
        ("yes", "no", 1e-6, False),
        ("", "", 0.0, True),
    ],
)
def test_outputs_are_compared(output: str, wanted: str, tolerance: float, same: bool) -> None:
    assert same_output(output, wanted, tolerance) is same


def test_an_invalid_text_is_a_wrong_answer() -> None:
    assert score("import sys\nsys.stdout.buffer.write(b'\\xff\\xfe')", DOUBLE).value == 0.0
    assert score("print('\ud800')", DOUBLE).value == 0.0
    assert score("print(\0)", DOUBLE).value == 0.0
