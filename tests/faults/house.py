"""A project with tasks, people with tokens, and a web process that serves them and can be killed."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2

from app.accounts.service import create_token
from app.db import SessionMaker, make_engine, make_sessionmaker
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
    seed: int = 17,
) -> AsyncIterator[House]:
    """Build it, and let its web process answer."""
    engine = make_engine(database_url, pool_size=2)
    sessions = make_sessionmaker(engine)
    project, users = await prepare(sessions, num_tasks=num_tasks, overlap=overlap, num_clients=num_people)
    web = Web(database_url, folder, is_careless=is_careless)
    history = History(overlap)
    try:
        async with AsyncExitStack() as stack:
            people = []
            for number, user in enumerate(users):
                async with sessions.begin() as session:
                    _, secret = await create_token(session, user_id=user.id, name="faults", scopes=["annotate"])
                client = httpx2.AsyncClient(
                    base_url=web.url, headers={"authorization": f"Bearer {secret}"}, timeout=httpx2.Timeout(60)
                )
                await stack.enter_async_context(client)
                people.append(Person(str(user.id), client, random.Random(f"{seed} {number}"), history))
            web.start()
            yield House(web, sessions, str(project.id), people)
    finally:
        web.close()
        await engine.dispose()
