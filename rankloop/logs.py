"""How the lines of a log are written, by the web processes and by the workers: for people or for programs, and without
what people wrote or who they are.

Exceptions are the way by which such text gets into logs: PostgreSQL quotes the row that it refused, Python the string
that is no number. Of an exception a log therefore has the types and the lines of code; its words only at level `debug`.
"""

from __future__ import annotations

import logging
import sys
import traceback
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import Literal

from pythonjsonlogger.json import JsonFormatter

ExceptionInfo = tuple[type[BaseException], BaseException, TracebackType | None] | tuple[None, None, None]
Format = Literal["text", "json"]
Level = Literal["debug", "info", "warning", "error"]
Filter = Callable[[logging.LogRecord], bool]


def write_lines(package: str, log_format: Format, level: Level, *, id_name: str, filters: Iterable[Filter]) -> None:
    """Have this process write its lines to stderr: those of the package from this level on, of libraries what is amiss.

    `id_name` is the attribute of a record that stands before the message of a line for people.
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines(level) if log_format == "json" else PlainLines(level, id_name))
    for each in (*filters, without_reprs):
        handler.addFilter(each)
    logging.basicConfig(level=logging.WARNING, handlers=[handler], force=True)
    logging.getLogger(package).setLevel(level.upper())


def without_reprs(record: logging.LogRecord) -> bool:
    """A filter that lets all through: below its first line, asyncio writes exceptions as they describe themselves."""
    if record.name == "asyncio":
        record.msg, record.args = record.getMessage().partition("\n")[0], ()
    return True


class PlainLines(logging.Formatter):
    """A line for people."""

    def __init__(self, level: Level, id_name: str) -> None:
        super().__init__(f"%(asctime)s %(levelname)s %(name)s [%({id_name})s] %(message)s", defaults={id_name: "-"})
        self._has_words = level == "debug"

    def formatException(self, ei: ExceptionInfo) -> str:  # noqa: N802 (logging's name)
        """Types and lines of code."""
        return super().formatException(ei) if self._has_words else told(ei[1])


class JsonLines(JsonFormatter):
    """A line for programs: an object with `time`, `level`, `logger`, `message` and what the line adds."""

    def __init__(self, level: Level) -> None:
        names = {"levelname": "level", "name": "logger", "exc_info": "exception", "timestamp": "time"}
        super().__init__("%(levelname)s %(name)s %(message)s", rename_fields=names, timestamp=True)
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
    # psycopg's errors, by what they bear: a worker has no psycopg.
    diagnosis = getattr(error, "diag", None)
    if diagnosis is not None and hasattr(error, "sqlstate"):
        facts = [error.sqlstate, diagnosis.table_name, diagnosis.constraint_name]
        return " ".join([name, *filter(None, facts)])
    return f"{name} {error.strerror}" if isinstance(error, OSError) and error.strerror else name
