"""What a worker writes to its log: lines as `rankloop/logs.py` writes them, each with the run that is being done.

The trainer's own lines are made of what no person wrote. What libraries say, and Python's warnings, may quote a prompt
or an answer: of those a line has the place in the code; their words only at level `debug`. A run's own log
(`Reporter.log`) goes to its page.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import PurePath
from types import TracebackType
from typing import TYPE_CHECKING, Any, TextIO

from rankloop.logs import Filter, Level, write_lines
from trainer.transport import ApiError, ClientError, Unreachable

if TYPE_CHECKING:
    from trainer.client import Claim
    from trainer.settings import WorkerSettings

logger = logging.getLogger(__name__)
held: dict[str, Any] = {}
"""The run that is being done; empty between runs. Of the process, not of a thread: a run has several threads."""


def configure(settings: WorkerSettings) -> None:
    """Have this process write its lines to stderr as the settings say, whoever has something to say."""
    filters: list[Filter] = [Words(settings.log_level), with_run]
    write_lines("trainer", settings.log_format, settings.log_level, id_name="run_id", filters=filters)
    take_over_libraries()
    warnings.showwarning = log_warning
    sys.excepthook = log_uncaught
    threading.excepthook = lambda found: log_uncaught(found.exc_type, found.exc_value, found.exc_traceback)
    sys.unraisablehook = lambda found: log_uncaught(found.exc_type, found.exc_value, found.exc_traceback)


@contextmanager
def holding(claim: Claim) -> Iterator[None]:
    """Have every line bear this run."""
    held.update(run_id=claim["id"], attempt=claim["attempt"], fence=claim["fence"])
    try:
        yield
    finally:
        held.clear()


def with_run(record: logging.LogRecord) -> bool:
    """A filter that lets all through and notes the run."""
    record.__dict__.update(held)
    return True


class Words:
    """A filter that takes their words from libraries' lines, and drops those that are no warnings."""

    def __init__(self, level: Level) -> None:
        self._has_words = level == "debug"

    def __call__(self, record: logging.LogRecord) -> bool:
        """Whether the line is written."""
        if record.name.partition(".")[0] == "trainer":
            return True
        record.event = "library"
        if not self._has_words:
            record.msg, record.args, record.stack_info = place(record.pathname, record.lineno), (), None
        return record.levelno >= logging.WARNING


class OneLog(logging.Logger):
    """A logger that brings its lines to the process's one log, whatever handlers its library gives to it."""

    def callHandlers(self, record: logging.LogRecord) -> None:  # noqa: N802 (logging's name)
        """Hand the line to the root's handlers."""
        logging.getLogger().callHandlers(record)


def take_over_libraries() -> None:
    """Torch, transformers and their hub write to stderr by handlers of their own: those that are there already go, and
    those that are brought later, as a run loads its libraries, are not asked."""
    logging.setLoggerClass(OneLog)
    for found in logging.root.manager.loggerDict.values():
        if isinstance(found, logging.Logger) and any(type(each) is logging.StreamHandler for each in found.handlers):
            found.handlers.clear()
            found.propagate = True


def log_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: TextIO | None = None,
    line: str | None = None,
) -> None:
    """Python's warnings, in place of `warnings.showwarning`."""
    extra = {"event": "warning"}
    logger.warning("%s at %s", category.__name__, place(filename, lineno), extra=extra)
    logger.debug("%s", message, extra=extra)


def log_uncaught(
    kind: type[BaseException], error: BaseException | None, trace: TracebackType | None, *_: object
) -> None:
    """What nobody caught: in the main thread, in another one, in a destructor."""
    if error is None or issubclass(kind, KeyboardInterrupt | SystemExit):
        return
    logger.critical("an exception that nobody caught", exc_info=(kind, error, trace), extra={"event": "uncaught"})


def place(path: str, line: int) -> str:
    """A line of code by the last parts of its file's path: `transformers/utils/hub.py:81`."""
    return f"{'/'.join(PurePath(path).parts[-3:])}:{line}"


def why(error: ClientError) -> str:
    """Why Rankloop could not be asked, in words that are ours; of a refusal, whose words are the app's, the status."""
    if isinstance(error, Unreachable):
        return str(error)
    return f"{type(error).__name__} {error.status}" if isinstance(error, ApiError) else type(error).__name__
