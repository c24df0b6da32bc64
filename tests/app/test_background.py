"""What goes wrong once is logged, and done again in its time."""

from __future__ import annotations

import asyncio
import logging

import pytest

from app.background import Job, repeat


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
