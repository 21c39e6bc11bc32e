"""A server like that of `posttrain serve`, on a loopback port: samples that tests can foretell, faults by script."""

import json
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
from posttrain.model import ModelFacts
from safetensors.torch import load

from tests.posttrain.teachers.fake_server import FakeServer, Handler, Reply, _error, _Listener

WEIGHTS = "/v1/posttrain/weights"


class FakeVllm(FakeServer):
    """Its next requests for samples are answered by `faults`, one each; `log` has all that was asked, in order.

    label, process: as the server states them; `forget` makes it a new process with the weights it was started with.
    """

    def __init__(self, facts: ModelFacts) -> None:
        self.log: list[str] = []
        self.label, self.process = "default", "p0"
        self.logprobs_mode = "processed_logprobs"
        self.has_weights_endpoint = True
        self.is_healthy = True
        self.shared: Path | None = None
        self.uploaded: dict[str, bytes] = {}
        self.loaded: dict[str, Any] = {}
        """Tensors of the last update."""
        self.load_faults: list[tuple[int, str]] = []
        super().__init__(facts)

    def start(self) -> None:
        handler = type("BoundHandler", (_Handler,), {"fake": self})
        self._http = _Listener(("127.0.0.1", self._port), handler)
        self._port = self._http.server_address[1]
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def forget(self) -> None:
        self.label, self.process = "default", f"p{int(self.process[1:]) + 1}"

    def restart(self, *, after_s: float) -> None:
        def again() -> None:
            self.stop()
            self.forget()
            time.sleep(after_s)
            self.start()

        threading.Thread(target=again, daemon=True).start()

    def reply(self, path: str, body: Reply) -> tuple[int, Reply]:
        """A sample whose tokens are drawn by its seed, each with log-probability -1."""
        prompt, settings = self._expanded(body), body["sampling_params"]
        token_ids = said(settings["seed"], settings["max_tokens"])
        tops = [{"token_id": token, "logprob": -300.0} for token in settings["logprob_token_ids"] or ()]
        content = [{"token_id": token, "logprob": -1.0, "top_logprobs": tops} for token in token_ids]
        choice = {
            "index": 0,
            "token_ids": token_ids,
            "logprobs": {"content": content},
            "finish_reason": "length",
            "weight_versions": [{"version": self.label, "start": 0, "end": len(token_ids)}],
        }
        return 200, {"choices": [choice], "usage": {"prompt_tokens": len(prompt)}}

    def load(self, label: str, files: dict[str, int]) -> tuple[int, Reply]:
        if self.load_faults:
            status, message = self.load_faults.pop(0)
            return status, _error(message)
        found = {}
        for name, size in files.items():
            shared = self.shared / label / name if self.shared else None
            data = shared.read_bytes() if shared and shared.is_file() else self.uploaded.get(f"{label}/{name}")
            if data is None or len(data) != size:
                return 409, {"missing": [name]}
            found |= load(data)
        self.loaded, self.label = found, label
        return 200, {"label": label}


class _Handler(Handler):
    fake: FakeVllm

    def do_GET(self) -> None:
        if self.path == "/health":
            if self.fake.is_healthy:
                self.send(200, b"")
            else:
                time.sleep(3)
            return
        self.fake.log.append("look")
        if not self._admitted():
            return
        if not self.fake.has_weights_endpoint:
            self.send(404, {"detail": "Not Found"})
            return
        fake = self.fake
        status = {"label": fake.label, "process": fake.process, "model": "/m", "max_model_len": 200, "device": "cpu"}
        self.send(200, {**status, "logprobs_mode": fake.logprobs_mode})

    def do_PUT(self) -> None:
        data = self.rfile.read(int(self.headers["Content-Length"]))
        self.fake.log.append("upload")
        self.fake.uploaded[self.path.removeprefix(WEIGHTS + "/")] = data
        self.send(204, b"")

    def do_POST(self) -> None:
        if not self.path.startswith(WEIGHTS):
            self.fake.log.append("sample")
            super().do_POST()
            return
        self.fake.log.append("load")
        files = json.loads(self.rfile.read(int(self.headers["Content-Length"])))["files"]
        self.send(*self.fake.load(self.path.removeprefix(WEIGHTS + "/"), files))


def said(seed: int, length: int) -> list[int]:
    """What the fake says with a seed."""
    return np.random.default_rng(seed).integers(0, 200, length).tolist()
