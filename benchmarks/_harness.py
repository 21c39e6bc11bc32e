"""What every benchmark shares: one core, interleaved repeats, peak memory, the machine, the table and the results file.

A ratio is made of medians of repeats that take turns in one process: a machine that slows down slows both sides.
Peak memory is what a step adds to the process: VmHWM, reset before it, minus VmRSS. It holds activations and gradients,
and no weights; Linux only.
"""

import argparse
import ctypes
import gc
import json
import os
import platform
import shlex
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table

import posttrain as posttrain  # first of all: its guard lets torchvision, and with it transformers, import on a CPU

RESULTS = Path(__file__).resolve().parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """Seconds of one variant over its repeats, on the clock but for the last."""

    median_s: float
    min_s: float
    max_s: float
    cpu_s: float
    """Median of the processor time of all threads: unlike the others it leaves out waiting for a core."""
    rounds_s: tuple[float, ...]
    """Of each repeat, in order."""

    @classmethod
    def of(cls, seconds: Sequence[float], cpu_seconds: Sequence[float]) -> "Timing":
        return cls(
            median_s=statistics.median(seconds),
            min_s=min(seconds),
            max_s=max(seconds),
            cpu_s=statistics.median(cpu_seconds),
            rounds_s=tuple(seconds),
        )

    def __str__(self) -> str:
        return f"{self.median_s:.3f} ({self.min_s:.3f})"


def arguments(description: str) -> argparse.ArgumentParser:
    """The options that all benchmarks have; a benchmark may add its own."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--quick", action="store_true", help="a smaller problem and fewer repeats: a check, no figure")
    parser.add_argument("--repeats", type=int, help="timed repeats of each variant (default 5, quick 2)")
    parser.add_argument(
        "--threads", type=int, default=1, help="threads, and cores the process is pinned to (default 1)"
    )
    return parser


def settle(options: argparse.Namespace) -> None:
    """Threads, pinned cores (the last ones: the first serve interrupts) and the number of repeats."""
    torch.set_num_threads(options.threads)
    if sys.platform == "linux":
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[-options.threads :])
    if options.repeats is None:
        options.repeats = 2 if options.quick else 5


def interleave(
    variants: Mapping[str, Callable[[], object]], repeats: int, *, before: Callable[[str], object]
) -> dict[str, Timing]:
    """Times the variants in turns. `before(name)` runs untimed ahead of every call; memory is given back as well.

    Each variant has run once before: the caller compares their results first, which also warms them up.
    """
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    cpu_seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(repeats):
        for name, variant in variants.items():
            before(name)
            give_back_memory()
            start, cpu_start = time.perf_counter(), time.process_time()
            variant()
            seconds[name].append(time.perf_counter() - start)
            cpu_seconds[name].append(time.process_time() - cpu_start)
    return {name: Timing.of(seconds[name], cpu_seconds[name]) for name in variants}


def peak_mib(step: Callable[[], object]) -> float:
    """MiB that the process grew by, at most, while `step` ran."""
    give_back_memory()
    resting = _memory_mib("VmRSS")
    Path("/proc/self/clear_refs").write_text("5")  # 5 resets the high-water mark
    step()
    return _memory_mib("VmHWM") - resting


def give_back_memory() -> None:
    """Collects garbage and returns freed pages: what a variant left behind must not serve, or burden, the next."""
    gc.collect()
    if sys.platform == "linux":
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def _memory_mib(kind: str) -> float:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError(f"/proc/self/status names no {kind}; peak memory is measured on Linux only")


def gradients_of(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Copies of all gradients, by parameter; the model's own are dropped."""
    found = {name: p.grad.detach().clone() for name, p in model.named_parameters() if p.grad is not None}
    model.zero_grad(set_to_none=True)
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientError:
    """How far two sets of gradients are apart."""

    worst: float
    """Largest, over parameters, of max |difference| / max |reference|."""
    parameter: str
    """Where that is."""
    l2: float
    """|difference| / |reference| over all entries of all parameters."""


def gradient_error(found: Mapping[str, torch.Tensor], reference: Mapping[str, torch.Tensor]) -> GradientError:
    """Raises ValueError where the two sides gave gradients to different parameters."""
    if found.keys() != reference.keys():
        raise ValueError(f"only one side has gradients for {sorted(found.keys() ^ reference.keys())[:3]}")
    difference = {name: (found[name].double() - reference[name].double()) for name in reference}
    relative = {
        name: float(d.abs().max() / reference[name].double().abs().max().clamp(min=1e-30))
        for name, d in difference.items()
    }
    parameter = max(relative, key=lambda name: relative[name])
    squares = sum(float(d.pow(2).sum()) for d in difference.values())
    reference_squares = sum(float(g.double().pow(2).sum()) for g in reference.values())
    return GradientError(
        worst=relative[parameter], parameter=parameter, l2=(squares / max(reference_squares, 1e-300)) ** 0.5
    )


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a table for people; numbers are aligned to the right."""
    table = Table(title=title, title_justify="left")
    for place, column in enumerate(columns):
        table.add_column(column, justify="left" if place == 0 else "right")
    for row in rows:
        table.add_row(*(f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row))
    Console(width=None if sys.stdout.isatty() else 200).print(table)


def finish(name: str, figures: Mapping[str, object], cells: Sequence[Mapping[str, object]], *, quick: bool) -> None:
    """Prints the figures as the last line, one JSON object; writes results/NAME.json unless this is a quick check."""
    if not quick:
        RESULTS.mkdir(parents=True, exist_ok=True)
        kept = {
            "command": shlex.join(["python", f"benchmarks/{name}.py", *sys.argv[1:]]),
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            "machine": machine(),
            "figures": figures,
            "cells": cells,
        }
        (RESULTS / f"{name}.json").write_text(json.dumps(kept, indent=1) + "\n", encoding="utf-8")
    sys.stdout.flush()
    print(json.dumps(figures))


def machine() -> dict[str, object]:
    """What a figure depends on besides the code."""
    return {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 1) if sys.platform != "win32" else None,
        "python": platform.python_version(),
        **{package: version(package) for package in ("torch", "transformers", "trl")},
    }


def _cpu_model() -> str:
    info = Path("/proc/cpuinfo")
    if info.is_file():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
