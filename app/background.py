"""Work that every web process does beside its requests, again and again: deliveries, measuring, what the clock asks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from anyio import CancelScope

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Job:
    """Something to do every so many seconds. `name` says what in the log."""

    name: str
    every: float
    do: Callable[[], Awaitable[object]]


async def repeat(job: Job) -> None:
    """Do it until cancelled. A failure is logged, and it is tried again in its time.

    Whatever went wrong: a database that is away comes back, and one bad row must not end what others wait for.
    """
    while True:
        await asyncio.sleep(job.every)
        try:
            await job.do()
        except Exception:
            log.exception("%s failed; trying again in %s s", job.name, job.every)


async def end(task: asyncio.Task[Any]) -> None:
    """Cancel it once, and wait until it is over.

    Where a reader went away, anyio cancels whoever waits here again and again, and `gather` would pass that on: a task
    that is cancelled while it takes back a question to the database has psycopg drop the connection.
    """
    task.cancel()
    with CancelScope(shield=True):
        await asyncio.wait([task])
    # Looked at, so that nobody logs it: who went away does not ask what became of it.
    _ = task.cancelled() or task.exception()
