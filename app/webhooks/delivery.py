"""The postman: a task of each web process that sends what is due. Any number of processes share the queue."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

import httpcore2

from app.db import SessionMaker
from app.webhooks import guarded, service
from app.webhooks.service import Parcel

EVERY_SECONDS = 2.0
AT_ONCE = 8
KEEP = timedelta(days=30)


async def deliver_due(sessionmaker: SessionMaker, *, allowed_hosts: Sequence[str] = ()) -> int:
    """Queue the milestones that were reached, then send all that is due; returns how many were sent."""
    async with sessionmaker.begin() as session:
        await service.queue_milestones(session)
        await service.forget_deliveries(session, before=datetime.now(UTC) - KEEP)
        # Nearly never; and to ask AT_ONCE times is as much work for the database as four tasks to rank.
        is_due = await service.is_due(session, datetime.now(UTC))
    num_sent = 0
    while is_due and (
        sent := sum(await asyncio.gather(*(deliver_one(sessionmaker, allowed_hosts) for _ in range(AT_ONCE))))
    ):
        num_sent += sent
    return num_sent


async def deliver_one(sessionmaker: SessionMaker, allowed_hosts: Sequence[str]) -> int:
    """Send one delivery, outside of any transaction; 0 when nothing is due."""
    async with sessionmaker.begin() as session:
        parcel = await service.take_parcel(session, datetime.now(UTC))
    if parcel is None:
        return 0
    status, error = await send(parcel, allowed_hosts)
    async with sessionmaker.begin() as session:
        await service.record(session, parcel.delivery_id, status=status, error=error, now=datetime.now(UTC))
    return 1


async def send(parcel: Parcel, allowed_hosts: Sequence[str]) -> tuple[int | None, str | None]:
    """One try: the status that came back, or why none did."""
    headers = service.headers_of(parcel, datetime.now(UTC))
    try:
        async with asyncio.timeout(2 * guarded.SECONDS):
            return await guarded.post(parcel.url, parcel.body, headers, allowed_hosts=allowed_hosts), None
    except (httpcore2.NetworkError, httpcore2.TimeoutException, httpcore2.ProtocolError, OSError, ValueError) as error:
        return None, f"{type(error).__name__}: {error}"[:500]
