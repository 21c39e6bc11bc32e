"""New weights for a vLLM server: uploaded as files, read from a shared folder, and broadcast from memory to memory.

A server of `posttrain serve` on this machine and a random Qwen3-VL of 0.2 G parameters, float32. The ways take turns;
the seconds are those of `update_weights`, from the call until the server may sample with the new weights: the server's
loading of what it was given, which all ways share, is in them.
"""

import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import torch
from _harness import arguments, finish, interleave, settle, show
from _problem import SIZE, load_subject
from posttrain.model import PackedPolicy

from posttrain.rollout.server_engine import VllmServerEngine

LARGE = replace(SIZE, hidden=1024, intermediate=3072, layers=12, heads=16, kv_heads=8, vocab=32_768)
_STARTS_WITHIN_S = 600


def main() -> None:
    options = arguments(__doc__ or "").parse_args()
    with tempfile.TemporaryDirectory() as folder:
        checkpoint, shared = Path(folder) / "model", Path(folder) / "shared"
        shared.mkdir()
        subject = load_subject(checkpoint, SIZE if options.quick else LARGE)
        policy = PackedPolicy(subject.model, subject.facts)
        with served(checkpoint, shared) as url:  # before this process is pinned to a core
            settle(options)
            ways = {
                "upload": {},
                "folder": {"weights_dir": shared},
                "broadcast": {"broadcast": "gloo"},
            }
            engine: VllmServerEngine | None = None

            def connect(way: str) -> None:
                """A server belongs to one run at a time, and each way is a run of its own."""
                nonlocal engine
                if engine is not None:
                    engine.close()
                engine = VllmServerEngine([url], subject.facts, **ways[way])

            def update() -> None:
                assert engine is not None
                engine.update_weights(policy, 1)

            times = interleave(dict.fromkeys(ways, update), options.repeats, before=connect)
            if engine is not None:
                engine.close()
    size = sum(weight.nbytes for weight in subject.model.parameters())
    cells = [
        {"way": way, "seconds": round(taken.median_s, 2), "MB/s": round(size / taken.median_s / 1e6)}
        for way, taken in times.items()
    ]
    show(
        f"{size / 1e6:.0f} MB of weights to a vLLM server on this machine",
        ["way", "s", "MB/s"],
        [[*c.values()] for c in cells],
    )
    upload, broadcast = times["upload"].rounds_s, times["broadcast"].rounds_s
    figures = {
        "megabytes": round(size / 1e6),
        **{f"{way}_s": round(taken.median_s, 2) for way, taken in times.items()},
        "time_ratio_upload": round(sorted(u / b for u, b in zip(upload, broadcast, strict=True))[len(upload) // 2], 2),
    }
    finish("server_weights", figures, cells, quick=options.quick)


@contextmanager
def served(checkpoint: Path, shared: Path) -> Iterator[str]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "posttrain", "serve", str(checkpoint), "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "512", "--weights-dir", str(shared)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        start_new_session=True,
    )
    url, until = f"http://127.0.0.1:{port}", time.monotonic() + _STARTS_WITHIN_S
    try:
        with httpx.Client(trust_env=False) as client:
            while True:
                if process.poll() is not None or time.monotonic() > until:
                    raise SystemExit("the server did not start")
                try:
                    if client.get(f"{url}/health").status_code == 200:
                        break
                except httpx.TransportError:
                    time.sleep(0.5)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()


if __name__ == "__main__":
    torch.manual_seed(0)
    main()
