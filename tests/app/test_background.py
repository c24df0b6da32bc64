"""What goes wrong once is logged, and done again in its time."""

from __future__ import annotations

import asyncio
import logging

import anyio
import pytest

from app.background import Job, end, repeat


async def test_a_job_goes_on_after_whatever_failure(caplog: pytest.LogCaptureFixture) -> None:
    failures: list[Exception] = [ValueError("a bad row"), KeyError("x"), OSError("the database is away")]
    is_done = asyncio.Event()

    async def do() -> None:
        if failures:
            raise failures.pop()
        is_done.set()

    with caplog.at_level(logging.ERROR):
        async with asyncio.timeout(20):
            task = asyncio.create_task(repeat(Job("counting", 0.001, do)))
            await is_done.wait()
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
    assert [record.getMessage() for record in caplog.records] == ["counting failed; trying again in 0.001 s"] * 3
    assert all(record.exc_info for record in caplog.records)


async def test_what_is_ended_is_cancelled_once() -> None:
    """However often whoever waits for its end is cancelled: anyio does so at each turn of the loop."""
    told: list[str] = []

    async def work() -> None:
        try:
            await asyncio.Event().wait()
        finally:
            try:
                told.append("cancelled")
                for _ in range(5):
                    await asyncio.sleep(0)
                told.append("ended")
            except asyncio.CancelledError:
                told.append("cancelled again")

    async def host() -> None:
        task = asyncio.create_task(work())
        try:
            await asyncio.Event().wait()
        finally:
            await end(task)
            told.append("waited for")

    async with asyncio.timeout(20), anyio.create_task_group() as group:
        group.start_soon(host)
        for _ in range(3):
            await asyncio.sleep(0)
        group.cancel_scope.cancel()
    assert told == ["cancelled", "ended", "waited for"]
