"""Runs benchmarks one after the other and keeps the figures that each ends with.

`python tools/run_benchmarks.py [NAME ...]`; without names, every `benchmarks/*.py` that does not begin with an
underscore. A benchmark's last line is one JSON object. It is appended to `benchmarks/results/NAME.jsonl` with when, on
what, and at which commit it was measured.
"""

import json
import os
import platform
import subprocess
import sys
import time
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
BENCHMARKS = ROOT / "benchmarks"
RESULTS = BENCHMARKS / "results"


def find_benchmarks(names: list[str]) -> list[Path]:
    """The scripts with these names, in order; all of them where none is named. Raises ValueError at an unknown name."""
    known = {path.stem: path for path in sorted(BENCHMARKS.glob("*.py")) if not path.name.startswith("_")}
    unknown = [name for name in names if name not in known]
    if unknown:
        raise ValueError(f"no benchmark is called {', '.join(unknown)}; there are: {', '.join(known) or 'none'}")
    return [known[name] for name in names or known]


def figures_of(output: str) -> dict[str, object]:
    """The JSON object on the last line that is not empty. Raises ValueError where there is none."""
    lines = [line for line in output.splitlines() if line.strip()]
    try:
        figures = json.loads(lines[-1]) if lines else None
    except json.JSONDecodeError:
        figures = None
    if not isinstance(figures, dict):
        raise ValueError(f"its last line is not a JSON object: {lines[-1] if lines else 'it printed nothing'}")
    return figures


def run(script: Path) -> dict[str, object]:
    """Runs one benchmark with its output shown as it comes. Raises ValueError where it fails or gives no figures."""
    command = [sys.executable, str(script)]
    lines: list[str] = []
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        for line in process.stdout:
            lines.append(line)
            print(line, end="", flush=True)
    if process.returncode != 0:
        raise ValueError(f"it ended with status {process.returncode}")
    return figures_of("".join(lines))


def conditions() -> dict[str, object]:
    """What a figure depends on besides the code: time, commit, processor, versions."""
    git = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--abbrev=12"], cwd=ROOT, capture_output=True, text=True
    )
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "commit": git.stdout.strip() or None,
        "machine": f"{platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "trl")},
    }


def main(names: list[str]) -> int:
    try:
        scripts = find_benchmarks(names)
    except ValueError as error:
        print(f"bench: {error}", file=sys.stderr)
        return 2
    RESULTS.mkdir(parents=True, exist_ok=True)
    failed = []
    for script in scripts:
        print(f"== {script.stem}", flush=True)
        start = time.monotonic()
        try:
            figures = run(script)
        except ValueError as error:
            print(f"bench: {script.stem}: {error}", file=sys.stderr)
            failed.append(script.stem)
            continue
        line = conditions() | {"seconds": round(time.monotonic() - start, 1), "figures": figures}
        with (RESULTS / f"{script.stem}.jsonl").open("a", encoding="utf-8") as results:
            results.write(json.dumps(line) + "\n")
    print(
        f"{len(scripts) - len(failed)} of {len(scripts)} benchmarks ran"
        + (f"; failed: {', '.join(failed)}" if failed else "")
    )
    return 1 if failed or not scripts else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
