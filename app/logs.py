"""What the web process writes to its log: lines as `rankloop/logs.py` writes them, each with the id of its request."""

from __future__ import annotations

import logging
import re
import uuid
from contextvars import ContextVar

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.config import Settings
from rankloop.logs import write_lines

HEADER = "x-request-id"
GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The request that is being answered; empty outside of requests."""


def configure(settings: Settings) -> None:
    """Have this process write its lines to stderr as the settings say."""
    write_lines("app", settings.log_format, settings.log_level, id_name="request_id", filters=[with_request_id])


def with_request_id(record: logging.LogRecord) -> bool:
    """A filter that lets all through and notes the request."""
    record.request_id = request_id.get() or "-"
    return True


class RequestIds:
    """Gives every request an id, a proxy's own or a new one; the answer bears it, and so does every line about it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer, with the id."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get(HEADER, "")
        # Each request is a task of its own, so the variable ends with it.
        request_id.set(given if GIVEN_ID.fullmatch(given) else uuid.uuid4().hex)

        async def send_with_id(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)[HEADER] = request_id.get()
            await send(message)

        await self.app(scope, receive, send_with_id)
