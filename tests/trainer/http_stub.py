"""A real HTTP server on this machine that answers as a test tells it, badly where the test asks for it."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Self
from urllib.parse import parse_qs, urlsplit

from trainer.client import Claim

CLAIM: Claim = {
    "id": "run-1",
    "kind": "reward",
    "project_id": "project-1",
    "fence": 7,
    "attempt": 1,
    "lease_seconds": 45,
    "config": {},
}


@dataclass
class Answer:
    """What the server sends. With `cut`, it promises the whole body and hangs up after so many bytes."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    cut: int | None = None


@dataclass
class Received:
    """A request as it arrived."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


class Server:
    """Answers each request by `handle`, and remembers it."""

    def __init__(self) -> None:
        self.requests: list[Received] = []
        self.handle: Callable[[Received], Answer] = lambda _: Answer()
        outer = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def answer_it(self) -> None:
                parts = urlsplit(self.path)
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                query = {name: values[0] for name, values in parse_qs(parts.query).items()}
                request = Received(self.command, parts.path, query, dict(self.headers.items()), body)
                outer.requests.append(request)
                answer = outer.handle(request)
                self.send_response(answer.status)
                for name, value in answer.headers.items():
                    self.send_header(name, value)
                self.send_header("Content-Length", str(len(answer.body)))
                self.end_headers()
                self.wfile.write(answer.body[: answer.cut])
                if answer.cut is not None:
                    self.close_connection = True

            do_GET = do_POST = do_PUT = answer_it  # noqa: N815 - the names that http.server asks for

            def log_message(self, *_: object) -> None:
                return None

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._http.server_port}"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.01})

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._http.shutdown()
        self._thread.join()
        self._http.server_close()

    def replay(self, *answers: Answer) -> None:
        """One answer a request, the last one for all that follow."""
        waiting = list(answers)
        self.handle = lambda _: waiting.pop(0) if len(waiting) > 1 else waiting[0]


def problem(status: int, title: str, detail: str = "", errors: list[dict[str, str]] | None = None) -> Answer:
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail, "errors": errors or []}
    return Answer(status, json.dumps(body).encode(), {"Content-Type": "application/problem+json"})
