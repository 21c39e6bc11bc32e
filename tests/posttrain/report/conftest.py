"""A small run's folder, as the trainer leaves it, and a real browser to open its page with."""

import base64
import io
import json
import os
import select
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

GROUND = {
    "step": 4,
    "example": "train.jsonl:17",
    "task": "ground",
    "messages": [{"role": "user", "text": "<image>Locate the red square.", "images": [0]}],
    "images": ["images/scene.png"],
    "completion": '[{"bbox_2d": [100, 200, 500, 600], "label": "red square"}]',
    "status": "finished",
    "reward": 0.75,
    "parts": {"iou": 0.75, "format": 1.0},
    "reason": "",
    "advantage": -0.5,
    "reference": {"bbox_2d": [110, 200, 520, 620]},
    "boxes": [
        {"bbox_2d": [100, 200, 500, 600], "label": "red square", "kind": "predicted", "image": 0},
        {"bbox_2d": [110, 200, 520, 620], "label": "", "kind": "reference", "image": 0},
    ],
    "tokens": [{"text": "[{", "logprob": -0.01, "gate": 1.0}, {"text": "100", "logprob": -2.5, "gate": 0.25}],
}


EPISODE = {
    "step": 4,
    "example": "fields.jsonl:3",
    "task": "zoom",
    "messages": [{"role": "user", "text": "<image>What does the sign say?", "images": [0]}],
    "images": ["images/scene.png", "images/crop.png"],
    "completion": "It says 7.",
    "status": "truncated",
    "error": "over 3 turns",
    "reward": None,
    "parts": {},
    "reason": "",
    "advantage": 0.0,
    "reference": {"answer": "7"},
    "boxes": [{"bbox_2d": [100, 200, 500, 600], "label": "sign", "kind": "crop", "image": 0, "made": 1}],
    "turns": [
        {
            "text": "I look closer.",
            "calls": [{"name": "image_zoom_in_tool", "arguments": {"bbox_2d": [100, 200, 500, 600]}, "error": ""}],
            "observation": [{"role": "tool", "text": "<image>", "images": [1]}],
            "seconds": 0.25,
            "tokens": [{"text": "I look", "logprob": -0.5, "gap": 0.2}, {"text": " closer.", "logprob": -0.1}],
        },
        {
            "text": "Again.",
            "calls": [{"name": "image_zoom", "arguments": {}, "error": "there is no tool 'image_zoom'"}],
            "observation": [{"role": "tool", "text": "Error: there is no tool 'image_zoom'", "images": []}],
            "seconds": 0.001,
            "tokens": [],
        },
        {"text": "It says 7.", "calls": [], "observation": [], "seconds": 0.0, "tokens": []},
    ],
}


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Two finished stages: sft without trajectories, rl with everything."""
    folder = tmp_path / "small"
    results = [
        {
            "name": "sft",
            "algorithm": "sft",
            "seconds": 30.0,
            "steps": 3,
            "before": {"ground/iou": 0.1, "text/loss": 2.0},
            "after": {"ground/iou": 0.4, "text/loss": 0.5},
        },
        {
            "name": "rl",
            "algorithm": "sapo",
            "seconds": 90.0,
            "steps": 4,
            "before": {"ground/iou": 0.4, "format": 1.0},
            "after": {"ground/iou": 0.71, "format": 0.5},
        },
    ]
    for result in results:
        stage = folder / "stages" / result["name"]
        write_lines(stage / "metrics.jsonl", [{"step": s, "loss": 1 / s} for s in range(1, result["steps"] + 1)])
        (stage / "result.json").write_text(json.dumps(result))
    rl = folder / "stages" / "rl"
    write_lines(
        rl / "metrics.jsonl",
        [
            {
                "step": s,
                "time": 20.0 * s,
                "loss": 0.01 * s,
                "reward": 0.2 * s,
                "gate/positive_mean": 1 - 0.01 * s,
                "x": s,
            }
            for s in range(1, 5)
        ],
    )
    histogram = {"name": "gate/positive", "edges": [0.0, 0.5, 1.0], "counts": [1, 99]}
    write_lines(rl / "histograms.jsonl", [{"step": 1, **histogram}, {"step": 4, **histogram}])
    write_lines(rl / "trajectories.jsonl", [GROUND])
    (rl / "images").mkdir()
    Image.new("RGB", (64, 64), "navy").save(rl / "images" / "scene.png")
    manifest = {
        "name": "small",
        "created": "2025-01-01T00:00:00+00:00",
        "versions": {"posttrain": "0.1.0"},
        "seed": 17,
        "command": "posttrain run small.yaml",
        "recipe": {"stages": {"sft": {"algorithm": "sft"}, "rl": {"algorithm": "sapo"}}},
    }
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "summary.json").write_text(json.dumps({"seconds": 125.0, "stages": results, "report": "report.html"}))
    return folder


_AS_3_AND_4 = """
import os, sys
copies = [os.dup(int(pipe)) for pipe in sys.argv[1:3]]  # first, since one of them may be 3 or 4 itself
while min(copies) < 5:
    copies = [os.dup(copy) for copy in copies]
os.dup2(copies[0], 3)
os.dup2(copies[1], 4)
os.execv(sys.argv[3], sys.argv[3:])
"""
"""Starts a program whose file descriptors 3 and 4 are the given pipes, as the protocol wants them."""


class Browser:
    """Headless Chromium, driven over a pipe in its DevTools protocol."""

    def __init__(self, program: str, profile: Path) -> None:
        their_input, self._out = os.pipe()
        self._in, their_output = os.pipe()
        options = (
            "--headless",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-quic",
            "--no-first-run",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--remote-debugging-pipe",
            f"--user-data-dir={profile}",
        )
        pipes = (str(their_input), str(their_output))
        self._process = subprocess.Popen(
            [sys.executable, "-c", _AS_3_AND_4, *pipes, program, *options, "about:blank"],
            pass_fds=(their_input, their_output),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(their_input)
        os.close(their_output)
        self._unread = b""
        self._count = 0
        self._session: str | None = None
        self._events: set[str] = set()
        self.messages: list[str] = []
        """What the open page wrote to the console, errors and violations of its policy among it."""

    def open(self, page: Path, *, width: int = 1280, height: int = 900, dark: bool = False) -> None:
        """Loads the page in a window of this size, and returns when its script has run."""
        self._session = None
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self._call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Runtime", "Log", "Page"):
            self._call(f"{domain}.enable")
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", features=[scheme])
        self._call("Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=False)
        self.messages.clear()
        self._events.clear()
        self._call("Page.navigate", url=page.resolve().as_uri())
        while "Page.loadEventFired" not in self._events:
            self._read()

    def run(self, script: str) -> Any:
        """The value of an expression in the page, as JSON knows it."""
        answer = self._call("Runtime.evaluate", expression=script, returnByValue=True)
        assert "exceptionDetails" not in answer, answer["exceptionDetails"]
        return answer["result"].get("value")

    def picture(self) -> Image.Image:
        """What is in the window now, RGB."""
        shot = self._call("Page.captureScreenshot", format="png")
        return Image.open(io.BytesIO(base64.b64decode(shot["data"]))).convert("RGB")

    def close(self) -> None:
        self._session = None
        self._call("Browser.close")
        self._process.wait(timeout=300)
        os.close(self._in)
        os.close(self._out)

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._count += 1
        sent = {"id": self._count, "method": method, "params": parameters}
        if self._session:
            sent["sessionId"] = self._session
        os.write(self._out, json.dumps(sent).encode() + b"\0")
        while True:
            received = self._read()
            if received.get("id") == self._count:
                assert "error" not in received, (method, received["error"])
                return received["result"]

    def _read(self) -> dict[str, Any]:
        deadline = time.monotonic() + 300
        while b"\0" not in self._unread:
            ready, _, _ = select.select([self._in], [], [], max(0.0, deadline - time.monotonic()))
            data = os.read(self._in, 1 << 20) if ready else b""
            assert data, "the browser said nothing for 300 s, or has ended"
            self._unread += data
        text, self._unread = self._unread.split(b"\0", 1)
        received = json.loads(text)
        method = received.get("method", "")
        self._events.add(method)
        if method in ("Runtime.consoleAPICalled", "Runtime.exceptionThrown", "Log.entryAdded"):
            self.messages.append(json.dumps(received["params"]))
        return received


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """Skips where no Chromium is installed."""
    names = ("chromium", "chromium-browser", "google-chrome", "chrome")
    program = next(filter(None, map(shutil.which, names)), None)
    if program is None:
        pytest.skip("no Chromium on this machine: the page was not opened")
    opened = Browser(program, tmp_path_factory.mktemp("profile"))
    yield opened
    opened.close()
