"""More readers that stand still in the middle of an export than the pool has connections, or senders in the middle of
an upload: nobody else notices.
"""

from __future__ import annotations

import asyncio
import socket
from contextlib import ExitStack
from pathlib import Path

import httpx2
import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, SignInMethod
from app.accounts.sessions import start_session
from app.accounts.tokens import create_token
from app.datasets.service import freeze
from app.db import SessionMaker, make_engine, make_sessionmaker
from tests.factories import make_project, make_prompt, make_ranking, make_task, make_user
from tests.faults.web import Web

NUM_READERS = 25
"""Five more than the connections that a web process has."""
NUM_RANKINGS = 30
LETTERS = 200_000
IDLE = "select count(*) from pg_stat_activity where datname = current_database() and state like 'idle in transaction%'"

pytestmark = [pytest.mark.real_commits, pytest.mark.slow]


async def make_large_dataset(session: AsyncSession) -> tuple[list[str], str]:
    """Six megabytes, more than sockets hold; the addresses where it is read, and who may read it."""
    project = await make_project(session)
    for number in range(NUM_RANKINGS):
        prompt = await make_prompt(
            session, project, messages=[{"role": "user", "content": f"{number} {'x' * LETTERS}"}]
        )
        await make_ranking(session, await make_task(session, prompt))
    owner = await make_user(session, role=Role.ADMIN)
    dataset = await freeze(session, project=project)
    _, secret = await create_token(session, user_id=owner.id, name="reader", scopes=["read"])
    return [f"/api/v1/datasets/{dataset.id}/export", f"/api/v1/completions?project_id={project.id}"], secret


async def begin_to_read(web: Web, address: str, secret: str) -> socket.socket:
    """Ask for the export, read its first bytes and no more."""
    said = f"GET {address} HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer {secret}\r\n\r\n"
    reader = await speak(web, said)
    assert (await asyncio.get_running_loop().sock_recv(reader, 100)).startswith(b"HTTP/1.1 200 ")
    return reader


async def speak(web: Web, said: str) -> socket.socket:
    """A connection on which this was said."""
    client = socket.socket()
    client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
    client.setblocking(False)
    loop = asyncio.get_running_loop()
    await loop.sock_connect(client, ("127.0.0.1", web.port))
    await loop.sock_sendall(client, said.encode())
    return client


async def none_is_held(sessions: SessionMaker) -> None:
    """A job of the web process may be between two statements at the moment of one look; who stalls stays there."""
    async with asyncio.timeout(60):
        while True:
            # A transaction of its own: within one, all looks see what the first one saw.
            async with sessions() as session:
                if await session.scalar(text(IDLE)) == 0:
                    return
            await asyncio.sleep(0.1)


async def test_stalled_exports_hold_no_connection(fresh_database_url: str, tmp_path: Path) -> None:
    engine = make_engine(fresh_database_url, pool_size=1)
    sessions = make_sessionmaker(engine)
    async with sessions.begin() as session:
        addresses, secret = await make_large_dataset(session)
    web, readers = Web(fresh_database_url, tmp_path), ExitStack()
    web.start()
    try:
        for address in addresses:
            # At once: each of them may hold a connection and wait for another.
            for reader in await asyncio.gather(*(begin_to_read(web, address, secret) for _ in range(NUM_READERS))):
                readers.enter_context(reader)
        async with httpx2.AsyncClient(base_url=web.url, timeout=60) as client:
            wrong = await client.post("/sign-in", data={"email": "ada@example.org", "password": "not hers"})
            assert wrong.status_code == 401
            assert (await client.get("/health")).status_code == 200
            for address in addresses:
                whole = await client.get(address, headers={"authorization": f"Bearer {secret}"})
                assert len(whole.content) > NUM_RANKINGS * LETTERS
        await none_is_held(sessions)
    finally:
        readers.close()
        web.close()
        await engine.dispose()


async def begin_to_send(web: Web, address: str, begun: str, headers: str) -> socket.socket:
    """Send the first bytes of a body and no more."""
    head = f"POST {address} HTTP/1.1\r\nHost: 127.0.0.1\r\n{headers}\r\nContent-Length: 100000\r\n\r\n"
    return await speak(web, head + begun)


async def test_stalled_uploads_hold_no_connection(fresh_database_url: str, tmp_path: Path) -> None:
    engine = make_engine(fresh_database_url, pool_size=1)
    sessions = make_sessionmaker(engine)
    async with sessions.begin() as session:
        owner, project = await make_user(session, role=Role.ADMIN), await make_project(session)
        _, secret = await create_token(session, user_id=owner.id, name="sender", scopes=["write"])
        cookie = await start_session(session, user_id=owner.id, method=SignInMethod.LINK)
    token = f"Authorization: Bearer {secret}"
    form = f"Cookie: rl_session={cookie}\r\nSec-Fetch-Site: same-origin\r\n"
    form += "Content-Type: application/x-www-form-urlencoded"
    web, senders = Web(fresh_database_url, tmp_path), ExitStack()
    web.start()
    try:
        async with httpx2.AsyncClient(base_url=web.url, timeout=60) as client:
            assert (await client.get("/health")).status_code == 200
            for _ in range(NUM_READERS):
                line = await begin_to_send(web, f"/api/v1/projects/{project.id}/prompts:import", '{"prompt"', token)
                typed = await begin_to_send(web, f"/projects/{project.slug}/prompts/import", "kind=p", form)
                senders.enter_context(line)
                senders.enter_context(typed)
            for _ in range(3):
                wrong = await client.post("/sign-in", data={"email": "ada@example.org", "password": "not hers"})
                assert wrong.status_code == 401
        await none_is_held(sessions)
    finally:
        senders.close()
        web.close()
        await engine.dispose()
