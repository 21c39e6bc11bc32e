"""A judge on a loopback port: verdicts by script, and faults."""

import json
import re
import socket
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from tests.waiting import HANG_S

Body = dict[str, Any]
Fault = Callable[["Handler", Body], None]
"""Answers a request in its own way, given what would have been right."""


@dataclass(frozen=True)
class Asked:
    """One request as the judge sees it."""

    body: Body

    @property
    def system(self) -> str:
        return self.body["messages"][0]["content"]

    @property
    def text(self) -> str:
        content = self.body["messages"][1]["content"]
        return content if isinstance(content, str) else content[-1]["text"]

    @property
    def images(self) -> list[str]:
        content = self.body["messages"][1]["content"]
        return [part["image_url"]["url"] for part in content if part["type"] == "image_url"] if content else []

    @property
    def verdict_id(self) -> str:
        return re.findall(r'^\{"id": "([0-9a-f]{16})"', self.text, flags=re.M)[-1]

    @property
    def boundary(self) -> str:
        return re.findall(r"^\[begin [a-z ]+ ([0-9a-f]{16})\]$", self.text, flags=re.M)[0]

    def judged(self, what: str) -> str:
        """What stands between the marks."""
        begin, end = f"[begin {what} {self.boundary}]\n", f"\n[end {what} {self.boundary}]"
        assert self.text.count(begin) == self.text.count(end) == 1
        return self.text.partition(begin)[2].partition(end)[0]

    def verdict(self, **fields: Any) -> str:
        return json.dumps({"id": self.verdict_id, **fields})


def says(**fields: Any) -> Callable[[Asked], str]:
    """A judge that always gives this verdict."""
    return lambda asked: asked.verdict(**fields)


class JudgeServerFake:
    """Serves one model. `say` gives the reply; the next requests are answered by `faults`, one each.

    asked: every chat request. delay_s: of every reply. let_go: ends what `hanging` and `dripping` do, as `stop` does.
    """

    def __init__(self) -> None:
        self.say: Callable[[Asked], str] = says(correct=True)
        self.finish_reason = "stop"
        self.faults: list[Fault] = []
        self.asked: list[Asked] = []
        self.models = ["judge"]
        self.key = ""
        self.usage = True
        self.delay_s = 0.0
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
        """On the same port after every `stop`."""
        self.let_go.clear()
        self._http = _Listener(("127.0.0.1", self._port), type("BoundHandler", (Handler,), {"fake": self}))
        threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def stop(self) -> None:
        self._http.shutdown()
        self._http.server_close()
        self._http.drop_all()
        self.let_go.set()  # only now: what hung until then answers nobody

    def away(self, seconds: float) -> None:
        """Gone at once, and back after so long."""
        self.stop()
        threading.Timer(seconds, self.start).start()

    def enter(self, body: Body) -> Fault | None:
        with self._lock:
            self.asked.append(Asked(body))
            self._under_way += 1
            self.most_under_way = max(self.most_under_way, self._under_way)
            return self.faults.pop(0) if self.faults else None

    def leave(self) -> None:
        """Before an answer is sent: who has it may ask again at once."""
        with self._lock:
            self._under_way -= 1

    def reply(self, body: Body) -> Body:
        message = {"role": "assistant", "content": self.say(Asked(body))}
        answer: Body = {"choices": [{"index": 0, "message": message, "finish_reason": self.finish_reason}]}
        return answer | ({"usage": {"total_tokens": 100}} if self.usage else {})


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    fake: JudgeServerFake
    protocol_version = "HTTP/1.1"
    wbufsize = -1  # head and body in one packet: the second would wait 40 ms for the first to be acknowledged

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def do_GET(self) -> None:
        self.send(200, {"object": "list", "data": [{"id": name} for name in self.fake.models]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.fake.enter(body)
        try:
            time.sleep(self.fake.delay_s)
            reply = self.fake.reply(body)
        finally:
            self.fake.leave()
        given = self.headers.get("Authorization", "")
        if self.fake.key and given != f"Bearer {self.fake.key}":
            self.send(401, {"error": f"Unauthorized: {given}"})  # as unwise as some servers are
        elif fault is None:
            self.send(200, reply)
        else:
            fault(self, reply)

    def send(self, status: int, body: Body | bytes, **headers: str) -> None:
        data = body if isinstance(body, bytes) else json.dumps(body).encode()
        with suppress(ConnectionError):  # the client may have given up
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.end_headers()
            self.wfile.write(data)


def status(code: int, message: str = "what happened", **headers: str) -> Fault:
    return lambda handler, right: handler.send(code, {"error": {"message": message}}, **headers)


def hanging(handler: Handler, right: Body) -> None:
    """Silent until it is let go, then right."""
    handler.fake.let_go.wait(HANG_S)
    handler.send(200, right)


def dripping(handler: Handler, right: Body) -> None:
    """A byte every now and then, never silent for long, and not done before it is let go."""
    handler.send_response(200)
    handler.send_header("Content-Length", "1000000")
    handler.end_headers()
    with suppress(OSError):  # the client gives up, as it should
        ends = time.monotonic() + HANG_S
        while time.monotonic() < ends and not handler.fake.let_go.wait(0.05):
            handler.wfile.write(b" ")
            handler.wfile.flush()


def text(said: str) -> Fault:
    """A reply that says this."""

    def answer(handler: Handler, right: Body) -> None:
        right["choices"][0]["message"]["content"] = said
        handler.send(200, right)

    return answer


def half_json(handler: Handler, right: Body) -> None:
    data = json.dumps(right).encode()
    handler.send(200, data[: len(data) // 2])


def gone(handler: Handler, right: Body) -> None:
    """No answer at all."""
    handler.close_connection = True
    with suppress(OSError):
        handler.connection.shutdown(socket.SHUT_RDWR)


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
