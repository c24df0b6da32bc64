"""Clients that send a request slowly, or never end it: how long this app waits for them.

uvicorn waits without an end for a request's first line, its headers and its body, and takes headers of any length: a
thousand sockets that say nothing take all the files that a process may open, and nobody else gets in. A proxy keeps
them away; this holds without one.
"""

from __future__ import annotations

import asyncio
import resource
from contextlib import suppress
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES = 64 * 1024


class Impatient(HttpToolsProtocol):
    """uvicorn's HTTP, with an end to waiting. An answer takes as long as it takes, however slowly it is read."""

    head_seconds = 20.0
    """From the first moment of a connection, or of its next request, to the end of the headers."""
    body_seconds = 60.0
    """Between two pieces of a body."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._timer: asyncio.TimerHandle | None = None
        self._is_in_head = True
        self._is_in_body = False
        self._num_head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """A connection on which nothing was said yet."""
        super().connection_made(transport)
        self._wait(self.head_seconds)

    def connection_lost(self, exc: Exception | None) -> None:
        """Nothing to wait for any more."""
        self._stop_waiting()
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """A piece of a request. Requests that arrive whole, as nearly all do, need no timer."""
        super().data_received(data)
        if self._is_in_body:
            self._stop_waiting()
            self._wait(self.body_seconds)
        elif not self._is_in_head:
            self._stop_waiting()
            # An empty line after an answer begins no request, and has ended uvicorn's own waiting for one.
            if self.cycle.response_complete and self.timeout_keep_alive_task is None:
                self._wait(self.head_seconds)
        elif self._num_head_bytes + len(data) > HEAD_BYTES:
            self.send_400_response("The headers are too long.")
        else:
            self._num_head_bytes += len(data)
            self._wait(self.head_seconds)

    def on_message_begin(self) -> None:
        """The first byte of a request."""
        self._is_in_head, self._num_head_bytes = True, 0
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """The app begins to answer."""
        self._is_in_head, self._is_in_body = False, True
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """The request is there."""
        self._is_in_body = False
        super().on_message_complete()

    def _wait(self, seconds: float) -> None:
        """Unless it is waited for already."""
        if self._timer is None and not self.transport.is_closing():
            self._timer = self.loop.call_later(seconds, self._end)

    def _stop_waiting(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def _end(self) -> None:
        """It took too long, unless it is the app that has not read yet what came before."""
        self._timer = None
        if self._is_in_body and self.flow.read_paused:
            self._wait(self.body_seconds)
        else:
            self.transport.abort()


def allow_many_connections() -> None:
    """As many open files as this process may have: each connection is one, and the usual limit is about a thousand."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
