"""What the web process writes to its log: lines for people or for programs, each with the id of its request, and none
with what people wrote or who they are.

Exceptions are the way by which such text gets into logs: PostgreSQL quotes the row that it refused, Python the string
that is no number. Of an exception a log therefore has the types and the lines of code; its words only at level `debug`.
"""

from __future__ import annotations

import logging
import re
import sys
import traceback
import uuid
from contextvars import ContextVar
from types import TracebackType

import psycopg
from pythonjsonlogger.json import JsonFormatter
from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from app.config import Settings

HEADER = "x-request-id"
GIVEN_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")
request_id: ContextVar[str] = ContextVar("request_id", default="")
"""The request that is being answered; empty outside of requests."""

ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]


def configure(settings: Settings) -> None:
    """Have this process write its lines to stderr as the settings say."""
    handler = logging.StreamHandler(sys.stderr)
    as_json = settings.log_format == "json"
    handler.setFormatter(JsonLines(settings.log_level) if as_json else PlainLines(settings.log_level))
    handler.addFilter(with_request_id)
    handler.addFilter(without_reprs)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger("app").setLevel(settings.log_level.upper())


def with_request_id(record: logging.LogRecord) -> bool:
    """A filter that lets all through and notes the request."""
    record.request_id = request_id.get() or "-"
    return True


def without_reprs(record: logging.LogRecord) -> bool:
    """A filter that lets all through: below its first line, asyncio writes exceptions as they describe themselves."""
    if record.name == "asyncio":
        record.msg, record.args = record.getMessage().partition("\n")[0], ()
    return True


class PlainLines(logging.Formatter):
    """A line for people."""

    def __init__(self, level: str) -> None:
        super().__init__("%(asctime)s %(levelname)s %(name)s [%(request_id)s] %(message)s")
        self._has_words = level == "debug"

    def formatException(self, ei: ExceptionInfo) -> str:  # noqa: N802 (logging's name)
        """Types and lines of code."""
        return super().formatException(ei) if self._has_words else told(ei[1])


class JsonLines(JsonFormatter):
    """A line for programs: an object with `time`, `level`, `logger`, `message`, `request_id` and what the line adds."""

    def __init__(self, level: str) -> None:
        names = {"levelname": "level", "name": "logger", "exc_info": "exception", "timestamp": "time"}
        super().__init__("%(levelname)s %(name)s %(message)s %(request_id)s", rename_fields=names, timestamp=True)
        self._has_words = level == "debug"

    def formatException(self, ei: ExceptionInfo) -> str:  # noqa: N802 (logging's name)
        """Types and lines of code."""
        return str(super().formatException(ei)) if self._has_words else told(ei[1])


def told(error: BaseException | None) -> str:
    """The types of an exception and of what led to it, each with its lines of code, and none of their words."""
    parts: list[str] = []
    while error is not None:
        inner = error.exceptions if isinstance(error, BaseExceptionGroup) else ()
        parts = [*(told(one) for one in inner), *parts]
        parts.insert(0, "".join(traceback.format_tb(error.__traceback__)) + named(error))
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    return "\n\nled to\n\n".join(parts)


def named(error: BaseException) -> str:
    """The type of an exception, and what is certainly no person's text: a database's code and the rule's name."""
    name = f"{type(error).__module__}.{type(error).__qualname__}"
    if isinstance(error, psycopg.Error):
        facts = [error.sqlstate, error.diag.table_name, error.diag.constraint_name]
        return " ".join([name, *filter(None, facts)])
    return f"{name} {error.strerror}" if isinstance(error, OSError) and error.strerror else name


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
