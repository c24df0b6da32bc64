"""Requests that begin no transaction before they need one, with real commits."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import UTC, datetime
from pathlib import Path

import pytest
from httpx2 import ASGITransport, AsyncClient
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession

from app.accounts.models import Scope, User
from app.accounts.tokens import create_token
from app.config import Settings
from app.db import (
    CONNECTIONS,
    SessionMaker,
    begin,
    make_engine,
    make_late_engine,
    make_late_sessionmaker,
    make_sessionmaker,
)
from app.events import events
from app.main import API, create_app, lifespan
from app.projects.models import Project
from app.rankings import service
from app.rankings.answers import RankingAnswer
from app.rankings.service import RankingStored
from app.tasks import service as tasks
from app.tasks.models import Lease
from tests.factories import make_project, make_prompt, make_task, make_user

pytestmark = pytest.mark.real_commits


@pytest.fixture
async def engine(fresh_database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = make_engine(fresh_database_url, pool_size=4)
    yield engine
    await engine.dispose()


@pytest.fixture
async def late(fresh_database_url: str) -> AsyncIterator[SessionMaker]:
    engine = make_late_engine(fresh_database_url, pool_size=1)
    yield make_late_sessionmaker(engine)
    await engine.dispose()


async def make_world(engine: AsyncEngine) -> tuple[Project, User]:
    async with make_sessionmaker(engine).begin() as session:
        project = await make_project(session)
        await make_task(session, await make_prompt(session, project))
        return project, await make_user(session)


async def seen(engine: AsyncEngine, query: str) -> object:
    async with make_sessionmaker(engine)() as session:
        return await session.scalar(text(query))


async def test_what_comes_before_begin_stands_and_what_follows_stands_or_falls_together(
    engine: AsyncEngine, late: SessionMaker
) -> None:
    await make_world(engine)
    async with late() as session:
        await session.execute(text("update projects set k = 2"))
        assert await seen(engine, "select k from projects") == 2
        await begin(session)
        await session.execute(text("update projects set k = 3"))
        assert await seen(engine, "select k from projects") == 2
        await session.rollback()
    assert await seen(engine, "select k from projects") == 2
    async with late.begin() as session:
        await begin(session)
        await begin(session)
        await session.execute(text("update projects set k = 4"))
    assert await seen(engine, "select k from projects") == 4


async def test_a_connection_in_which_something_failed_serves_others_as_before(
    engine: AsyncEngine, late: SessionMaker
) -> None:
    await make_world(engine)
    async with late() as session:
        await begin(session)
        await session.execute(text("update projects set k = 9"))
    async with late() as session:
        await session.execute(text("update projects set name = 'kept'"))
    assert await seen(engine, "select k || name from projects") == "4kept"


async def take(late: SessionMaker, project: Project, person: User) -> Lease:
    async with late.begin() as session:
        lease = await tasks.next_lease(session, project=project, annotator=person, now=datetime.now(UTC))
    assert lease is not None
    return lease


async def submit(late: SessionMaker, lease: Lease, person: User) -> None:
    answer = RankingAnswer({item: place for place, item in enumerate(lease.display_order, start=1)})
    async with late.begin() as session:
        await service.submit(session, lease_id=lease.id, annotator=person, answer=answer, source="api")


async def test_a_claim_stands_by_itself_and_asking_again_gives_it(engine: AsyncEngine, late: SessionMaker) -> None:
    project, person = await make_world(engine)
    lease = await take(late, project, person)
    assert await seen(engine, "select state from leases") == "open"
    assert (await take(late, project, person)).id == lease.id


async def test_what_a_listener_refuses_undoes_the_ranking(engine: AsyncEngine, late: SessionMaker) -> None:
    project, person = await make_world(engine)
    lease = await take(late, project, person)

    async def refuse(session: AsyncSession, event: RankingStored) -> None:
        raise ZeroDivisionError

    events.subscribe(RankingStored, refuse)
    try:
        with pytest.raises(ZeroDivisionError):
            await submit(late, lease, person)
    finally:
        events.unsubscribe(RankingStored, refuse)
    assert await seen(engine, "select count(*) from rankings") == 0
    assert await seen(engine, "select state from leases") == "open"
    await submit(late, lease, person)
    assert await seen(engine, "select count(*) from rankings") == 1


async def test_who_ranks_does_not_wait_for_those_who_hold_all_other_connections(
    fresh_database_url: str, engine: AsyncEngine, tmp_path: Path
) -> None:
    project, person = await make_world(engine)
    async with make_sessionmaker(engine).begin() as session:
        _, secret = await create_token(session, user_id=person.id, name="t", scopes=[Scope.ANNOTATE])
    app = create_app(Settings(data_dir=tmp_path, database_url=fresh_database_url))
    async with lifespan(app), AsyncExitStack() as others:
        for _ in range(CONNECTIONS):
            await (await others.enter_async_context(app.state.sessionmaker())).connection()
        headers = {"Authorization": f"Bearer {secret}"}
        async with AsyncClient(transport=ASGITransport(app), base_url="http://rankloop", headers=headers) as client:
            task = await client.post(f"{API}/tasks:next", json={"project_id": str(project.id)})
    assert task.status_code == 200
