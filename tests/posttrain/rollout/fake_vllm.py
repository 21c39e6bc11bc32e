"""A server like that of `posttrain serve`, on a loopback port: samples that tests can foretell, faults by script."""

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import torch
from posttrain.model import ModelFacts
from safetensors.torch import load

from posttrain.serving.weight_broadcast import BroadcastFailed, Meeting, received
from tests.posttrain.teachers.fake_server import FakeServer, Handler, Reply, _error, _Listener
from tests.waiting import HANG_S

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
        self.num_workers: int | None = 1
        """None: a server that does not say, and knows of no broadcasts."""
        self.leaves_after: int | None = None
        """Tensors of the next broadcast, after which a worker has had enough."""
        super().__init__(facts)

    def start(self) -> None:
        self.let_go.clear()
        handler = type("BoundHandler", (_Handler,), {"fake": self})
        self._http = _Listener(("127.0.0.1", self._port), handler)
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

    def receive(self, label: str, meeting: dict[str, Any], first_rank: int) -> tuple[int, Reply]:
        """Joins a broadcast with all its workers; the weights that the last of them has are the fake's."""
        if self.load_faults:
            status, message = self.load_faults.pop(0)
            return status, _error(message)
        assert self.num_workers is not None
        with ThreadPoolExecutor(self.num_workers) as threads:
            ranks = range(first_rank, first_rank + self.num_workers)
            found = list(threads.map(lambda rank: self._received(Meeting(**meeting), rank), ranks))
        if isinstance(found[-1], str):
            return 500, _error(found[-1])
        self.loaded, self.label = found[-1], label
        return 200, {"label": label}

    def _received(self, meeting: Meeting, rank: int) -> dict[str, Any] | str:
        found = {}
        try:
            with closing(received(meeting, rank, torch.device("cpu"))) as weights:
                for name, weight in weights:
                    if len(found) == self.leaves_after:
                        self.leaves_after = None
                        return "ValueError: no room for more"
                    found[name] = weight
        except BroadcastFailed as failure:
            return f"BroadcastFailed: {failure}"
        return found


class _Handler(Handler):
    fake: FakeVllm

    def do_GET(self) -> None:
        if self.path == "/health":
            if self.fake.is_healthy:
                self.send(200, b"")
            else:
                self.fake.let_go.wait(HANG_S)
            return
        self.fake.log.append("look")
        if not self._admitted():
            return
        if not self.fake.has_weights_endpoint:
            self.send(404, {"detail": "Not Found"})
            return
        fake = self.fake
        status = {"label": fake.label, "process": fake.process, "model": "/m", "max_model_len": 200, "device": "cpu"}
        status |= {"workers": fake.num_workers} if fake.num_workers is not None else {}
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
        told, label = json.loads(self.rfile.read(int(self.headers["Content-Length"]))), self.path.split("/")[-1]
        self.fake.log.append("receive" if "meeting" in told else "load")
        self.send(*(self.fake.receive(label, **told) if "meeting" in told else self.fake.load(label, told["files"])))


def said(seed: int, length: int) -> list[int]:
    """What the fake says with a seed."""
    return np.random.default_rng(seed).integers(0, 200, length).tolist()
