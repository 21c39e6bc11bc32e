"""A teacher's server on a loopback port: vLLM's answers from a distribution that tests know, and faults by script."""

import base64
import io
import json
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import numpy as np
from PIL import Image
from posttrain.model import ModelFacts

from tests.waiting import HANG_S, PATIENCE_S

Reply = dict[str, Any]
Fault = Callable[["Handler", Reply], None]
"""Answers a request in its own way, given what would have been right."""


def logprobs_TV(token_ids: list[int], vocab_size: int) -> np.ndarray:
    """[T, V] float32: row t speaks of token t, and depends on the token before it and on t."""
    rows = []
    for place, before in enumerate([0, *token_ids[:-1]]):
        logits = np.random.default_rng([place, before]).normal(0, 3, vocab_size)
        rows.append(logits - np.logaddexp.reduce(logits))
    return np.array(rows, dtype=np.float32)


class FakeServer:
    """Serves one model, on the same port after every `start`.

    faults: the next requests but those for the list of models are answered by these, one each, the later ones rightly.
    let_go: ends what `hanging` and `dripping` do, as `stop` does.
    asked: (path, body) of every such request. say: the choices of chat answers. tokenizer: for /tokenize.
    """

    def __init__(self, facts: ModelFacts) -> None:
        self.facts = facts
        self.models: list[Reply] = [
            {"id": "big", "owned_by": "vllm", "root": "/models/big", "parent": None, "max_model_len": 200}
        ]
        self.max_logprobs = 64
        self.takes_tokens = True
        self.key: str | None = None
        self.tokenizer: Any = None
        self.reads_thinking = True
        self.say: Callable[[Reply], list[Reply]] = lambda body: [
            {"index": i, "message": {"content": f"answer {i}"}, "finish_reason": "stop"} for i in range(body["n"])
        ]
        self.faults: list[Fault] = []
        self.asked: list[tuple[str, Reply]] = []
        self.most_under_way = 0
        self._under_way = 0
        self._lock = threading.Lock()
        self._place = socket.socket()  # keeps the port from others while nobody listens there
        self._place.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        self._place.bind(("127.0.0.1", 0))
        self._port: int = self._place.getsockname()[1]
        self.let_go = threading.Event()
        self.start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._port}"

    def start(self) -> None:
        self.let_go.clear()
        handler = type("BoundHandler", (Handler,), {"fake": self})
        self._http = _Listener(("127.0.0.1", self._port), handler)
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        """Ends open connections too, as a process that dies does."""
        self._http.shutdown()
        self._http.server_close()
        self._http.drop_all()
        self.let_go.set()  # only now: what hung until then answers nobody

    def restart(self, *, after_s: float) -> None:
        """In the background, so that a request that is being answered can ask for it."""

        def again() -> None:
            self.stop()
            time.sleep(after_s)
            self.start()

        threading.Thread(target=again, daemon=True).start()

    def paths(self) -> list[str]:
        return [path for path, _ in self.asked]

    def enter(self, path: str, body: Reply) -> Fault | None:
        with self._lock:
            self.asked.append((path, body))
            self._under_way += 1
            self.most_under_way = max(self.most_under_way, self._under_way)
            return self.faults.pop(0) if self.faults else None

    def leave(self) -> None:
        """Before an answer is sent: who has it may ask again at once."""
        with self._lock:
            self._under_way -= 1

    def reply(self, path: str, body: Reply) -> tuple[int, Reply]:
        if body.get("model") not in [model["id"] for model in self.models]:
            return 404, _error(f"The model `{body.get('model')}` does not exist. Valid aliases: big.")
        if path == "/v1/chat/completions":
            return 200, {"choices": self.say(body)}
        if path == "/tokenize":
            return 200, self._tokenized(body)
        if path == "/inference/v1/generate" and not self.takes_tokens:
            return 403, _error("Scale-out endpoints are disabled. Restart vllm serve with --enable-scale-out.")
        if path == "/inference/v1/generate":
            token_ids, num = self._expanded(body), body["sampling_params"]["prompt_logprobs"]
        elif path == "/v1/completions":
            token_ids, num = body["prompt"], body["prompt_logprobs"]
        else:
            return 404, {"detail": "Not Found"}
        if num > self.max_logprobs:
            return 400, _error(
                f"Requested prompt logprobs of {num}, which is greater than max allowed: {self.max_logprobs} "
                f"(parameter=prompt_logprobs, value={num})"
            )
        scored = {"prompt_token_ids": token_ids, "prompt_logprobs": self._prompt_logprobs(token_ids, num)}
        return 200, scored if path == "/inference/v1/generate" else {"choices": [{"index": 0, **scored}]}

    def _prompt_logprobs(self, token_ids: list[int], num: int) -> list[Any]:
        entries: list[Any] = [None]
        for token, row in zip(token_ids[1:], logprobs_TV(token_ids, self.facts.vocab_size)[1:], strict=True):
            order = np.argsort(-row, kind="stable")
            ranks = {int(order[r]): r + 1 for r in range(num)}
            ranks = {token: int((row >= row[token]).sum()), **{i: r for i, r in ranks.items() if i != token}}
            entries.append({str(i): {"logprob": float(row[i]), "rank": r} for i, r in ranks.items()})
        return entries

    def _expanded(self, body: Reply) -> list[int]:
        side = self.facts.patch_size * self.facts.merge_size
        sizes = [picture_in(part["url"]).size for part in body.get("content_parts", [])]
        expanded: list[int] = []
        for token in body["token_ids"]:
            if token == self.facts.image_token_id:
                width, height = sizes.pop(0)
                expanded += [token] * (width * height // side**2)
            else:
                expanded.append(token)
        return expanded

    def _tokenized(self, body: Reply) -> Reply:
        if "messages" in body:
            return {"tokens": [1, 2, 3 + (body["chat_template_kwargs"]["enable_thinking"] and self.reads_thinking)]}
        tokens = self.tokenizer.encode(body["prompt"], add_special_tokens=False)
        return {"tokens": tokens, "token_strs": self.tokenizer.convert_ids_to_tokens(tokens)}


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    fake: FakeServer
    protocol_version = "HTTP/1.1"
    _is_under_way = False

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        if self._admitted():
            self.send(200, {"object": "list", "data": self.fake.models})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        path = urlsplit(self.path).path
        fault = self.fake.enter(path, body)
        self._is_under_way = True
        try:
            if not self._admitted():
                return
            status, right = self.fake.reply(path, body)
            if fault is None:
                self.send(status, right)
            else:
                fault(self, right)
        finally:
            self._leave()

    def _leave(self) -> None:
        if self._is_under_way:
            self._is_under_way = False
            self.fake.leave()

    def send(self, status: int, body: Reply | bytes, *, length: int | None = None) -> None:
        self._leave()
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        with suppress(ConnectionError):  # the client may have given up
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(data) if length is None else length))
            self.end_headers()
            self.wfile.write(data)
            self.wfile.flush()

    def hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _admitted(self) -> bool:
        given = self.headers.get("Authorization", "")
        if self.fake.key is None or given == f"Bearer {self.fake.key}":
            return True
        self.send(401, {"error": f"Unauthorized: {given}"})  # as unwise as some servers are
        return False


def status(code: int, message: str = "what happened") -> Fault:
    return lambda handler, right: handler.send(code, _error(message))


def slow(seconds: float) -> Fault:
    """Silent for so long, then right."""

    def answer(handler: Handler, right: Reply) -> None:
        time.sleep(seconds)
        handler.send(200, right)

    return answer


def hanging(handler: Handler, right: Reply) -> None:
    """Silent until it is let go, then right."""
    handler.fake.let_go.wait(HANG_S)
    handler.send(200, right)


def dripping(handler: Handler, right: Reply) -> None:
    """A byte every now and then, never silent for long, and not done before it is let go."""
    with suppress(OSError):
        handler.send(200, b"", length=1_000_000)
        ends = time.monotonic() + HANG_S
        while time.monotonic() < ends and not handler.fake.let_go.wait(0.05):
            handler.wfile.write(b" ")
            handler.wfile.flush()


def meeting(num: int) -> Fault:
    """Right once so many requests are under way."""
    barrier = threading.Barrier(num, timeout=PATIENCE_S)

    def answer(handler: Handler, right: Reply) -> None:
        barrier.wait()
        handler.send(200, right)

    return answer


def cut(handler: Handler, right: Reply) -> None:
    """Half of the body, then the connection ends."""
    data = json.dumps(right).encode()
    handler.send(200, data[: len(data) // 2], length=len(data))
    handler.hang_up()


def gone(handler: Handler, right: Reply) -> None:
    """No answer at all."""
    handler.hang_up()


def half_json(handler: Handler, right: Reply) -> None:
    """Half of the body, as if it were the whole."""
    data = json.dumps(right).encode()
    handler.send(200, data[: len(data) // 2])


def edited(change: Callable[[Reply], Any]) -> Fault:
    """The right answer, changed in place."""

    def answer(handler: Handler, right: Reply) -> None:
        change(right)
        handler.send(200, right)

    return answer


def picture_in(url: str) -> Image.Image:
    head, _, data = url.partition(",")
    assert head == "data:image/png;base64"
    return Image.open(io.BytesIO(base64.b64decode(data)))


class _Listener(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 64

    def __init__(self, address: tuple[str, int], handler: type[Handler]) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(address, handler)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Connections that a client has dropped are what is tested here."""

    def drop_all(self) -> None:
        for connection in list(self._open):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


def _error(message: str) -> Reply:
    return {"error": {"message": message, "type": "SomeError", "code": 0}}
