"""Work that every web process does beside its requests, again and again: deliveries, measuring, what the clock asks."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from dataclasses import dataclass

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
