"""More readers that stand still in the middle of an export than the pool has connections: nobody else notices."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role
from app.accounts.service import create_token
from app.datasets.service import freeze
from app.db import make_engine, make_sessionmaker
from tests.factories import make_project, make_prompt, make_ranking, make_task, make_user
from tests.faults.web import Web

NUM_READERS = 25
"""Five more than the connections that a web process has."""
NUM_RANKINGS = 30
LETTERS = 200_000
IDLE = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'"

pytestmark = [pytest.mark.real_commits, pytest.mark.slow]


async def make_large_dataset(session: AsyncSession) -> tuple[str, str]:
    """Six megabytes, more than sockets hold; the address of its export, and who may read it."""
    project = await make_project(session)
    for number in range(NUM_RANKINGS):
        prompt = await make_prompt(
            session, project, messages=[{"role": "user", "content": f"{number} {'x' * LETTERS}"}]
        )
        await make_ranking(session, await make_task(session, prompt))
    owner = await make_user(session, role=Role.ADMIN)
    dataset = await freeze(session, project=project)
    _, secret = await create_token(session, user_id=owner.id, name="reader", scopes=["read"])
    return f"/api/v1/datasets/{dataset.id}/export", secret


async def begin_to_read(web: Web, address: str, secret: str) -> socket.socket:
    """Ask for the export, read its first bytes and no more."""
    reader = socket.socket()
    reader.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    reader.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(reader, ("127.0.0.1", web.port))
    head = f"GET {address} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {secret}\r\n\r\n"
    await loop.sock_sendall(reader, head.encode())
    assert (await loop.sock_recv(reader, 100)).startswith(b"HTTP/1.1 200 ")
    return reader


async def test_stalled_exports_hold_no_connection(fresh_database_url: str, tmp_path: Path) -> None:
    engine = make_engine(fresh_database_url, pool_size=1)
    sessions = make_sessionmaker(engine)
    async with sessions.begin() as session:
        address, secret = await make_large_dataset(session)
    web = Web(fresh_database_url, tmp_path)
    web.start()
    try:
        readers = [await begin_to_read(web, address, secret) for _ in range(NUM_READERS)]
        async with httpx2.AsyncClient(base_url=web.url, timeout=60) as client:
            wrong = await client.post("/sign-in", data={"email": "ada@example.org", "password": "not hers"})
            assert wrong.status_code == 401
            assert (await client.get("/health")).status_code == 200
            whole = await client.get(address, headers={"authorization": f"Bearer {secret}"})
            assert len(whole.content) > NUM_RANKINGS * LETTERS
        async with sessions() as session:
            assert await session.scalar(text(IDLE)) == 0
        for reader in readers:
            reader.close()
    finally:
        web.close()
        await engine.dispose()
