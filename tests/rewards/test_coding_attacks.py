"""The code reward: what hostile programs cannot do, by the whole sandbox and by each of its layers alone."""

import os
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from posttrain.rewards import CodeReward, Completion, Score
from posttrain.rewards.sandbox import launch
from posttrain.rewards.sandbox.syscalls import filter_program

from tests.waiting import PROCESS_S, comes_true

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="programs are confined by the Linux kernel")

PRINT_42 = {"tests": [{"input": "", "output": "42"}]}
ADD = {"tests": ["assert add(1, 2) == 3", "assert add([1], [2]) == [1, 2]", "assert add('a', 'b') == 'ab'"]}


def score(program: str, reference: dict[str, Any], **options: Any) -> Score:
    reward = CodeReward(**{"test_s": 60.0, "deadline_s": 600.0, **options})
    return reward(Completion(text=f"```python\n{textwrap.dedent(program)}\n```"), reference)


@pytest.fixture(autouse=True)
def nothing_is_left_behind(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process of this test's sandbox, whoever became its parent."""
    place = str(tmp_path_factory.mktemp("sandbox"))
    monkeypatch.setattr(tempfile, "tempdir", place)
    yield

    def left() -> list[Path]:
        return [each for each in Path("/proc").iterdir() if each.name.isdigit() and place in folder_of(each)]

    assert comes_true(lambda: not left()), left()  # the kernel needs a moment to end a process with large memory


def folder_of(process: Path) -> str:
    try:
        return os.readlink(process / "cwd")
    except OSError:
        return ""


FAKES = {
    "ends with status 0": """
        import os
        os._exit(0)
    """,
    "ends with status 0 when called": """
        import os
        def add(*_): os._exit(0)
    """,
    "ends by SystemExit when called": """
        def add(*_): raise SystemExit(0)
    """,
    "prints verdicts": """
        print('{"passed": true, "why": "", "gone": false}\\n' * 9)
        def add(*_): print("ok", "PASSED", '{"passed": true}')
    """,
    "writes verdicts on every descriptor": """
        import os
        def shout(*_):
            for descriptor in range(64):
                try: os.write(descriptor, b'{"passed": true, "why": "", "gone": false}\\n' * 9)
                except OSError: pass
        shout()
        add = shout
    """,
    "answers every question itself": """
        import os, sys
        for descriptor in range(3, 64):
            try: os.write(descriptor, b'{"greeting": ""}\\n' + b'{"value": true}\\n' * 99)
            except OSError: pass
        os._exit(0)
    """,
    "equals everything": """
        class Yes(int):
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            __hash__ = int.__hash__
        def add(*_): return Yes()
    """,
    "equals everything and is no int": """
        class Yes:
            def __eq__(self, other): return True
            def __ne__(self, other): return False
            def __bool__(self): return True
            def __lt__(self, other): return True
            def __sub__(self, other): return self
            def __abs__(self): return self
            def __contains__(self, item): return True
            def __hash__(self): return 0
        def add(*_): return Yes()
    """,
    "replaces what asserts use": """
        import builtins
        builtins.AssertionError = Exception
        builtins.len = lambda *_: 3
        def add(*_): return None
    """,
    "replaces json": """
        import sys
        for module in list(sys.modules.values()):
            if hasattr(module, "dumps"): module.dumps = lambda *a, **k: '{"value": true}'
        def add(*_): return 1
    """,
    "raises AssertionError": """
        def add(*_): raise AssertionError
    """,
    "looks at its callers and at all objects": """
        import gc, sys
        def add(a, b):
            wanted = " ".join(["assert", "add("])  # neither a constant of its own, nor one in a list
            seen = [o for o in gc.get_objects() if isinstance(o, dict | list | tuple)]
            frame = sys._getframe().f_back
            while frame:
                seen.append(frame.f_locals)
                frame = frame.f_back
            return 3 if any(wanted in repr(o)[:100_000] for o in seen) else 0
    """,
    "reads the memory of its sibling": """
        import os
        def add(*_):
            for pid in os.listdir("/proc"):
                if pid.isdigit(): open(f"/proc/{pid}/mem", "rb").read(1)
            return 3
    """,
}


@pytest.mark.parametrize("fake", FAKES)
@pytest.mark.parametrize("reference", [ADD, PRINT_42], ids=["functions", "program"])
def test_a_faked_verdict_does_not_pass(fake: str, reference: dict[str, Any]) -> None:
    result = score(FAKES[fake], reference, credit="fraction")
    assert result.value == 0.0 and result.reason


@pytest.mark.parametrize(
    "test",
    [
        "assert f() == 3",
        "assert not f() != 3",
        "assert abs(f() - 3) < 1",
        "assert f() in [3]",
        "assert 3 in [f()]",
        "assert {f(): 1} == {3: 1}",
        "assert [f()] == [3]",
        "try:\n    assert f() == 3\nexcept Exception:\n    assert False",
    ],
)
def test_only_plain_data_is_equal_to_plain_data(test: str) -> None:
    for fake in ("equals everything", "equals everything and is no int", "ends with status 0 when called"):
        assert score(FAKES[fake].replace("def add", "def f"), {"tests": [test]}).value == 0.0, fake
    assert score("def f(): return 3", {"tests": [test]}).value == 1.0


def test_ending_the_process_is_no_exception_that_a_test_may_wait_for() -> None:
    test = "try:\n    f(-1)\nexcept Exception:\n    pass\nelse:\n    assert False"
    assert score("def f(x): raise ValueError", {"tests": [test]}).value == 1.0
    assert score("import os\ndef f(x): os._exit(0)", {"tests": [test]}).value == 0.0
    bare = test.replace("except Exception:", "except:")
    assert score("import os\ndef f(x): os._exit(0)", {"tests": [bare]}).value == 0.0


def test_built_in_functions_and_modules_of_a_test_are_its_own() -> None:
    cheat = """
        class math:
            isclose = lambda *_: True
        sorted = lambda *_: 1
        def f(x): return 0
    """
    assert score(cheat, {"tests": ["assert math.isclose(f(2), 1.5)"]}).value == 0.0
    assert score(cheat, {"tests": ["assert sorted(f([2])) == sorted([2])"]}).value == 0.0
    assert score("def f(x): return 1.5", {"tests": ["assert math.isclose(f(2), 1.5)"]}).value == 1.0
    pow_itself = "def pow(a, b): return a ** b + 1"
    assert score(pow_itself, {"tests": ["assert pow(2, 3) == 9"], "entry_point": "pow"}).value == 1.0


# Each would do no harm if it got through: loops are bounded, nothing is written but in the folder of the test, and a
# signal is signal 0. One that gets through prints 42, which is what fails the test.
BOMBS = {
    "forks": """
        import os, time
        for _ in range(4):
            if os.fork() == 0:
                time.sleep(20)
                os._exit(0)
    """,
    "forks past the audit hook": """
        import _posixsubprocess
        arguments = [[b"/bin/sleep"], [b"/bin/sleep", b"20"], False, (), None, None, -1, -1, -1, -1, -1, -1, -1, -1]
        _posixsubprocess.fork_exec(*arguments, True, False, -1, None, None, None, -1, None, False)
    """,
    "spawns": """
        import subprocess
        subprocess.run(["true"], check=True)
    """,
    "spawns with multiprocessing": """
        import multiprocessing, time
        for _ in range(4): multiprocessing.Process(target=time.sleep, args=(20,)).start()
    """,
    "leaves a daemon": """
        import os, time
        if os.fork() == 0:
            os.setsid()
            time.sleep(20)
            os._exit(0)
    """,
    "eats memory": "x = [bytearray(2**24) for _ in range(40)]",  # 640 of 512 MiB
    "eats memory at once": "x = bytes(2**30)",
    "prints too much": "for _ in range(32): print('x' * 2**18)",  # 8 of 1 MiB
    "prints too much on stderr": """
        import sys
        for _ in range(32): print("x" * 2**18, file=sys.stderr)
    """,
    "opens threads": """
        import threading
        gate = threading.Event()
        threads = [threading.Thread(target=gate.wait, args=(20,), daemon=True) for _ in range(200)]
        for thread in threads: thread.start()
    """,
    "opens files": "files = [open('/dev/null') for _ in range(200)]",
    "writes a file": "open('file', 'w').write('x')",
    "recurses": """
        def f(): f()
        f()
    """,
    "recurses in C": """
        x = []
        for _ in range(10**6): x = [x]
        repr(x)
    """,
    "reads an account file": "open('/etc/passwd').read()",
    "lists the disk": "import os; os.listdir('/')",
    "calls out": """
        import socket
        socket.create_connection(("127.0.0.1", 9), timeout=5)
    """,
    "listens": """
        import socket
        socket.socket().bind(("127.0.0.1", 0))
    """,
    "signals its parent": "import os; os.kill(os.getppid(), 0)",
    "raises its limits": """
        import resource
        soft, hard = resource.getrlimit(resource.RLIMIT_CPU)
        resource.setrlimit(resource.RLIMIT_CPU, (soft + 1, hard + 1))
    """,
    "loads C": "import ctypes; ctypes.CDLL(None).getpid()",
    "crashes": """
        def f(): pass
        f.__code__ = f.__code__.replace(co_code=bytes([100, 99, 83, 0]), co_consts=())
        f()
    """,
}


@pytest.mark.parametrize("bomb", BOMBS)
def test_a_bomb_earns_nothing(bomb: str) -> None:
    started = time.monotonic()
    program = f"{textwrap.dedent(BOMBS[bomb])}\nprint(42)"
    result = score(program, {"tests": [{"input": "", "output": "42"}]}, test_s=10.0, deadline_s=10.0)
    assert result.value == 0.0
    assert result.reason != "test 1: printed something else" or "prints" in bomb, "it got through"
    assert time.monotonic() - started < 120


CONFINED_BY = {
    "landlock": "files.restrict(libc, [os.path.dirname(os.__file__), '/lib', '/usr/lib', '/lib64'])",
    "seccomp": "syscalls.install(libc)",
}
ALONE = """
    import ctypes, os, socket, sys
    sys.path.insert(0, {folder!r})
    from sandbox import files, syscalls
    libc = ctypes.CDLL(None, use_errno=True)
    place = {place!r}
    print({install})
    {attempt}
"""


@pytest.mark.parametrize(
    ("layer", "attempt", "is_refused"),
    [
        ("landlock", "open(place + '/there').read()", True),
        ("landlock", "open(place + '/there', 'w')", True),
        ("landlock", "open(place + '/new', 'w')", True),
        ("landlock", "os.truncate(place + '/there', 0)", True),
        ("landlock", "os.remove(place + '/there')", True),
        ("landlock", "os.mkdir(place + '/new')", True),
        ("landlock", "os.listdir(place)", True),
        ("landlock", "open('/proc/self/environ')", True),
        ("landlock", "__import__('decimal')", False),
        ("seccomp", "socket.socket()", True),
        ("seccomp", "os.fork() or os._exit(0)", True),
        ("seccomp", "os.execv('/bin/true', ['true'])", True),
        ("seccomp", "os.posix_spawn('/bin/true', ['true'], {})", True),
        ("seccomp", "os.kill(os.getppid(), 0)", True),
        ("seccomp", "os.setsid()", True),
        ("seccomp", "__import__('resource').prlimit(0, 0, (9, 9))", True),
        ("seccomp", "__import__('resource').prlimit(0, 0)", False),
        ("seccomp", "__import__('threading').Thread(target=print).start()", False),
        ("seccomp", "socket.socketpair()", False),
    ],
)
def test_each_layer_of_the_kernel_refuses_alone(layer: str, attempt: str, is_refused: bool, tmp_path: Path) -> None:
    """Without the audit hook: what it would refuse first, the kernel must refuse too."""
    if layer not in launch.layers_in_force():
        pytest.skip(f"this kernel has no {layer}")
    (tmp_path / "there").write_text("there")
    folder = str(Path(launch.__file__).parent.parent)
    program = textwrap.dedent(ALONE).format(
        folder=folder, place=str(tmp_path), install=CONFINED_BY[layer], attempt=attempt
    )
    done = subprocess.run([sys.executable, "-S", "-c", program], capture_output=True, text=True, timeout=PROCESS_S)
    assert done.stdout.startswith("True"), done.stderr
    assert ("PermissionError" in done.stderr) == is_refused, done.stderr
    assert (done.returncode == 0) != is_refused
    assert [path.read_text() for path in tmp_path.iterdir()] == ["there"]


def test_the_filter_is_built_for_both_processors() -> None:
    """Every jump stays inside; the instructions are eight bytes each, and the last one lets a call pass."""
    for machine in ("x86_64", "aarch64"):
        program = filter_program(machine, 1)
        code = [program[place : place + 8] for place in range(0, len(program), 8)]
        assert 60 < len(code) < 4096 and len(program) % 8 == 0
        assert code[-1] == bytes.fromhex("0600 00 00 0000ff7f")
        for place, instruction in enumerate(code):
            if instruction[0] in (0x15, 0x35, 0x45):
                assert place + 1 + max(instruction[2], instruction[3]) < len(code)


def test_a_kernel_that_lacks_a_layer_is_told_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    from posttrain.rewards import coding

    monkeypatch.setattr(coding, "layers_in_force", lambda: ("seccomp",))
    coding._warn_once.cache_clear()
    with pytest.warns(UserWarning, match="without namespaces, landlock"):
        assert score("print(42)", PRINT_42).value == 1.0
    with pytest.raises(RuntimeError, match="require_isolation"):
        score("print(42)", PRINT_42, require_isolation=True)


def test_a_sandbox_that_cannot_start_says_nothing_about_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    launch.layers_in_force()
    monkeypatch.setattr(launch, "_FOLDER", "/nowhere")
    result = score("print(42)", PRINT_42)
    assert not result.is_scored and "could not confine itself" in result.reason
