"""A project with tasks, people with tokens, and a web process that serves them; it and its database can be killed."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import httpx2
from sqlalchemy import text

from app.accounts.models import User
from app.accounts.tokens import create_token
from app.db import SessionMaker, make_engine, make_sessionmaker
from app.embedded import EmbeddedPostgres, processes_working_in
from tests.app.rankings.test_races import prepare
from tests.faults.history import Facts, History, Person, read_facts
from tests.faults.web import Web


@dataclass(frozen=True)
class House:
    """All that a test of faults needs."""

    web: Web
    sessions: SessionMaker
    project_id: str
    people: list[Person]

    async def facts(self) -> Facts:
        """What the database says."""
        return await read_facts(self.sessions, self.project_id, len(self.people))


@asynccontextmanager
async def open_house(
    database_url: str,
    folder: Path,
    *,
    num_tasks: int,
    num_people: int,
    overlap: int,
    is_careless: bool = False,
    is_forgetful: bool = False,
    seed: int = 17,
) -> AsyncIterator[House]:
    """Build it, and let its web process answer. Planted: careless web processes, a forgetful database."""
    engine = make_engine(database_url, pool_size=2)
    sessions = make_sessionmaker(engine)
    project, users = await prepare(sessions, num_tasks=num_tasks, overlap=overlap, num_clients=num_people)
    web = Web(database_url, folder, is_careless=is_careless)
    try:
        async with let_in(sessions, users, web.url, History(overlap), seed=seed) as people:
            if is_forgetful:
                await acknowledge_before_it_is_written(sessions)
            web.start()
            yield House(web, sessions, str(project.id), people)
    finally:
        web.close()
        await engine.dispose()


@asynccontextmanager
async def let_in(
    sessions: SessionMaker, users: Sequence[User], url: str, history: History, *, seed: int
) -> AsyncIterator[list[Person]]:
    """Each of them with a token and a client."""
    async with AsyncExitStack() as stack:
        people = []
        for number, user in enumerate(users):
            async with sessions.begin() as session:
                _, secret = await create_token(session, user_id=user.id, name="faults", scopes=["annotate"])
            client = httpx2.AsyncClient(
                base_url=url, headers={"authorization": f"Bearer {secret}"}, timeout=httpx2.Timeout(60)
            )
            await stack.enter_async_context(client)
            people.append(Person(str(user.id), client, random.Random(f"{seed} {number}"), history))
        yield people


def kill(server: EmbeddedPostgres) -> None:
    """kill -9 of the server and of all that work for it, as when a machine dies; and up again."""
    for process in [server.process_id, *processes_working_in(server.home / "data")]:
        with suppress(ProcessLookupError):
            os.kill(process, signal.SIGKILL)
    while server.is_running:
        time.sleep(0.01)
    server.start()


async def acknowledge_before_it_is_written(sessions: SessionMaker) -> None:
    """The planted fault: from now on this database answers a commit seconds before it keeps it.

    What is there already is kept. Connections that are open keep their promise, so this comes before the web process.
    """
    async with sessions() as session:
        connection = await session.connection(execution_options={"isolation_level": "AUTOCOMMIT"})
        name = await session.scalar(text("select current_database()"))
        await connection.execute(text(f'alter database "{name}" set synchronous_commit = off'))
        await connection.execute(text("alter system set wal_writer_delay = '10s'"))
        await connection.execute(text("alter system set wal_writer_flush_after = '1GB'"))
        await connection.execute(text("select pg_reload_conf()"))
        await connection.execute(text("checkpoint"))
