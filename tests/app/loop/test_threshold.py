"""Training that starts by itself, with real commits: once, at the threshold, and not while somebody waits for it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

import pytest
from sqlalchemy import func, select, update

from app.accounts.models import User
from app.db import SessionMaker, make_engine, make_sessionmaker
from app.loop import clock, subscriptions
from app.projects.models import Project
from app.rankings import service as rankings
from app.rankings.answers import RankingAnswer
from app.runs.models import Run, RunKind, RunState
from app.tasks import service as tasks
from app.tasks.models import Task
from tests.factories import make_project, make_prompt, make_task, make_user

pytestmark = pytest.mark.real_commits
NUM = 8


@pytest.fixture
async def sessions(fresh_database_url: str) -> AsyncIterator[SessionMaker]:
    subscriptions.subscribe()
    engine = make_engine(fresh_database_url, pool_size=NUM)
    yield make_sessionmaker(engine)
    await engine.dispose()


async def prepare(sessions: SessionMaker, *, threshold: int) -> tuple[Project, list[User]]:
    """A project with a task for each of `NUM` people."""
    async with sessions.begin() as session:
        project = await make_project(session, train_threshold=threshold)
        for _ in range(NUM):
            await make_task(session, await make_prompt(session, project), k=2)
        return project, [await make_user(session) for _ in range(NUM)]


async def rank(sessions: SessionMaker, project: Project, person: User, places: Sequence[int] = (1, 2)) -> None:
    async with sessions.begin() as session:
        lease = await tasks.next_lease(session, project=project, annotator=person, now=datetime.now(UTC))
    assert lease is not None
    answer = RankingAnswer(dict(zip(lease.display_order, places, strict=True)))
    async with sessions.begin() as session:
        await rankings.submit(session, lease_id=lease.id, annotator=person, answer=answer, source="api")


async def count_reward_runs(sessions: SessionMaker) -> int:
    async with sessions() as session:
        query = select(func.count()).select_from(Run).where(Run.kind == RunKind.REWARD)
        return await session.scalar(query) or 0


async def test_who_ranks_starts_nothing_and_of_many_processes_one_does(sessions: SessionMaker) -> None:
    project, people = await prepare(sessions, threshold=NUM)
    await asyncio.gather(*(rank(sessions, project, person) for person in people[1:]))
    assert await clock.look(sessions) == 0
    await rank(sessions, project, people[0])
    assert await count_reward_runs(sessions) == 0
    assert sum(await asyncio.gather(*(clock.look(sessions) for _ in range(3)))) == 1
    assert await count_reward_runs(sessions) == 1


async def test_what_was_learned_from_once_starts_no_other_training(sessions: SessionMaker) -> None:
    project, people = await prepare(sessions, threshold=2)
    await rank(sessions, project, people[0])
    await rank(sessions, project, people[1])
    assert await clock.look(sessions) == 1
    async with sessions.begin() as session:
        await session.execute(update(Run).values(state=RunState.CANCELLED))
        await session.execute(update(Task).values(withdrawn_at=datetime.now(UTC)))
    assert await clock.look(sessions) == 0
    async with sessions.begin() as session:
        await session.execute(update(Task).values(withdrawn_at=None))
    assert await clock.look(sessions) == 0
    for person in people[2:4]:
        await rank(sessions, project, person)
    assert await clock.look(sessions) == 1


async def test_nothing_begins_while_nothing_can_be_learned_from_it(sessions: SessionMaker) -> None:
    project, people = await prepare(sessions, threshold=1)
    await rank(sessions, project, people[0], places=(1, 1))
    assert await clock.look(sessions) == 0
    await rank(sessions, project, people[1])
    assert await clock.look(sessions) == 1


async def test_a_paused_or_archived_project_does_not_train_by_itself(sessions: SessionMaker) -> None:
    project, people = await prepare(sessions, threshold=1)
    await rank(sessions, project, people[0])
    for values in ({"is_paused": True}, {"is_paused": False, "archived_at": datetime.now(UTC)}):
        async with sessions.begin() as session:
            await session.execute(update(Project).values(values))
        assert await clock.look(sessions) == 0
    async with sessions.begin() as session:
        await session.execute(update(Project).values(archived_at=None))
    assert await clock.look(sessions) == 1
