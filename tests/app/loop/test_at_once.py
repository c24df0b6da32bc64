"""Two who begin something at the same moment, with real commits: one begins it, the other is told so."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import SessionMaker, make_engine, make_sessionmaker
from app.loop import clock, comparisons, sampling, service, subscriptions, training
from app.projects.models import Project
from app.runs.models import Run
from tests.app.loop.conftest import Loop
from tests.app.loop.test_comparisons import make_policy
from tests.app.loop.test_superseded import is_waiting
from tests.app.loop.test_threshold import prepare, rank
from tests.factories import make_project, make_prompt, make_user

pytestmark = pytest.mark.real_commits


@pytest.fixture
async def sessions(fresh_database_url: str) -> AsyncIterator[SessionMaker]:
    subscriptions.subscribe()
    engine = make_engine(fresh_database_url, pool_size=4)
    yield make_sessionmaker(engine)
    await engine.dispose()


async def ranked_project(sessions: SessionMaker) -> Project:
    """A project with a ranking, and prompts that nobody has answered in this round."""
    project, people = await prepare(sessions, threshold=1)
    await rank(sessions, project, people[0])
    async with sessions.begin() as session:
        await make_prompt(session, project)
    return project


async def begin(session: AsyncSession, project: Project, deed: str) -> Run:
    here = await session.get_one(Project, project.id)
    start = sampling.start_sampling if deed == "sample" else training.start_training
    return await start(session, project=here)


async def test_of_two_who_sample_at_once_one_starts_a_run(sessions: SessionMaker) -> None:
    project = await ranked_project(sessions)

    async def again() -> None:
        async with sessions.begin() as session:
            await begin(session, project, "sample")

    async with sessions.begin() as first:
        await begin(first, project, "sample")
        second = asyncio.create_task(again())
        await is_waiting(sessions)
    with pytest.raises(sampling.SamplingUnderWay):
        await asyncio.wait_for(second, timeout=20)
    assert await count_runs(sessions) == 1


async def test_of_two_who_train_at_once_one_is_told_so_and_waits_for_no_freezing(sessions: SessionMaker) -> None:
    project = await ranked_project(sessions)
    async with sessions.begin() as first:
        await begin(first, project, "train")
        with pytest.raises(training.TrainingUnderWay):
            async with sessions.begin() as second, asyncio.timeout(20):
                await begin(second, project, "train")
    assert await count_runs(sessions) == 1


async def count_runs(sessions: SessionMaker) -> int | None:
    async with sessions() as session:
        return await session.scalar(select(func.count()).select_from(Run))


async def test_who_samples_while_a_round_ends_samples_for_the_next_one(sessions: SessionMaker) -> None:
    async with sessions.begin() as session:
        project = await make_project(session)
        await make_prompt(session, project)
        newer = await make_policy(Loop(session, project, await make_user(session), None))

    async def sample() -> Run:
        async with sessions.begin() as session:
            return await begin(session, project, "sample")

    async with sessions.begin() as promoting:
        await service.require_round_of(promoting, project=project, policy=newer)
        sampled = asyncio.create_task(sample())
        await is_waiting(sessions)
    run = await asyncio.wait_for(sampled, timeout=20)
    assert run.config["policy"]["version_id"] == str(newer.id)
    async with sessions() as session:
        now = await service.current_round(session, project)
        assert (now.number, now.sample_run_id) == (2, run.id)


async def test_of_two_who_make_a_policy_live_at_once_each_gets_a_round(sessions: SessionMaker) -> None:
    async with sessions.begin() as session:
        project = await make_project(session)
        loop = Loop(session, project, await make_user(session), None)
        policies = [await make_policy(loop), await make_policy(loop)]

    async def second() -> None:
        async with sessions.begin() as session:
            await service.require_round_of(session, project=project, policy=policies[1])

    async with sessions.begin() as session:
        await service.require_round_of(session, project=project, policy=policies[0])
        waiting = asyncio.create_task(second())
        await is_waiting(sessions)
    await asyncio.wait_for(waiting, timeout=20)
    async with sessions() as session:
        found = [item.policy_version_id for item in await service.list_rounds(session, project.id)]
        assert found[:2] == [policies[1].id, policies[0].id]


async def test_nobody_who_begins_a_training_waits_for_a_round_that_ends(sessions: SessionMaker) -> None:
    """Who freezes holds the project, and who ends a round asks for the project then, to begin a comparison."""
    project = await ranked_project(sessions)

    async def tick() -> bool:
        async with sessions.begin() as session, asyncio.timeout(20):
            return await clock.train_if_due(session, project.id, now=datetime.now(UTC))

    async with sessions.begin() as ending:
        await service.lock_round(ending, project)
        assert not await tick()
        with pytest.raises(service.RoundChanging):
            async with sessions.begin() as session:
                await begin(session, project, "train")
        await comparisons.next_number(ending, project)
    assert await tick()
