"""Training that starts by itself, with real commits: once, at the threshold, and never at an annotator's expense."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from datetime import UTC, datetime

import pytest
from sqlalchemy import func, select

from app.accounts.models import User
from app.db import SessionMaker, make_engine, make_sessionmaker
from app.loop import subscriptions
from app.projects.models import Project
from app.rankings import service as rankings
from app.rankings.answers import RankingAnswer
from app.rankings.models import Ranking
from app.runs.models import Run, RunKind
from app.tasks import service as tasks
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


async def test_rankings_that_reach_the_threshold_together_start_one_training(sessions: SessionMaker) -> None:
    project, people = await prepare(sessions, threshold=NUM)
    await asyncio.gather(*(rank(sessions, project, person) for person in people))
    assert await count_reward_runs(sessions) == 1


async def test_rankings_beyond_the_threshold_do_not_wait_for_each_other(sessions: SessionMaker) -> None:
    project, people = await prepare(sessions, threshold=2)
    await asyncio.gather(*(rank(sessions, project, person) for person in people))
    assert await count_reward_runs(sessions) == 1
    async with sessions() as session:
        assert await session.scalar(select(func.count()).select_from(Ranking)) == NUM


async def test_a_ranking_is_taken_even_when_nothing_can_be_learned_from_it(sessions: SessionMaker) -> None:
    project, people = await prepare(sessions, threshold=1)
    await rank(sessions, project, people[0], places=(1, 1))
    assert await count_reward_runs(sessions) == 0
    await rank(sessions, project, people[1])
    assert await count_reward_runs(sessions) == 1
