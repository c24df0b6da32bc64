"""Tallies say what a count of everything says, after whatever happens, and however many do it at once."""

from __future__ import annotations

import asyncio
import random
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import func, insert, select, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import User
from app.db import SessionMaker, make_engine, make_sessionmaker
from app.projects import tallies
from app.projects.models import Project
from app.projects.tallies import COUNTS, Tally
from app.prompts.models import Prompt
from app.quality.models import Rejection, Review, ReviewState
from app.rankings.models import Ranking
from app.tasks.models import GoldOrder, Lease, Purpose, Task
from tests.factories import add, make_project, make_prompt, make_ranking, make_task, make_user

WITH_COMMITS = pytest.mark.real_commits
NUM_STEPS = 100


async def counted(session: AsyncSession, project: Project) -> set[Tally]:
    """What a count of everything finds, by round and split; parts that hold nothing are left out."""
    sums = ", ".join(f"sum({name})" for name in COUNTS)
    query = f"""select round, split, {sums} from (
        select round, split, {", ".join(COUNTS)} from task_tallies where project_id = :project
        union all
        select null, split, 1, 0, 0, 0, 0, 0 from prompts where project_id = :project
    ) everything group by round, split"""
    rows = await session.execute(text(query), {"project": project.id})
    return {Tally(row[0], row[1], *map(int, row[2:])) for row in rows} - {Tally()}


async def tallied(session: AsyncSession, project: Project) -> set[Tally]:
    """What the tallies say."""
    empty = dict.fromkeys(COUNTS, 0)
    rows = (await tallies.read(session, project.id)).rows
    return {row for row in rows if any(getattr(row, name) != zero for name, zero in empty.items())}


class World:
    """A project to which anything happens."""

    def __init__(self, session: AsyncSession, project: Project, seed: int) -> None:
        self.session = session
        self.project = project
        self.random = random.Random(seed)
        self.people: list[User] = []

    async def any_of(self, what: Any, *conditions: Any) -> Any:
        """Some row of a table, or none."""
        query = select(what.id).where(what.project_id == self.project.id, *conditions).order_by(what.number)
        ids = (await self.session.scalars(query)).all()
        return self.random.choice(ids) if ids else None

    async def step(self) -> None:
        """Something happens."""
        names = ("prompt", "task", "task", "rank", "rank", "rank", "rank", "revise", "reject", "overlap", "turn")
        await getattr(self, self.random.choice((*names, "turn_prompt", "gold")))()

    async def prompt(self) -> None:
        await make_prompt(self.session, self.project, split=self.random.choice(["train", "validation", "test"]))

    async def task(self) -> None:
        prompt = await self.session.get(Prompt, await self.any_of(Prompt) or await self.made_prompt())
        purpose = self.random.choice([Purpose.LEARN, Purpose.LEARN, Purpose.COMPARE])
        round_number = self.random.choice([None, 1, 2])
        if purpose == Purpose.COMPARE or (prompt and prompt.split == "test"):
            purpose = Purpose.COMPARE if prompt and prompt.split != "train" else Purpose.LEARN
        await make_task(self.session, prompt, k=2, purpose=purpose, round=round_number, overlap=9)

    async def made_prompt(self) -> Any:
        return (await make_prompt(self.session, self.project)).id

    async def rank(self) -> None:
        task = await self.any_of(Task, Task.num_taken < Task.overlap)
        if task is not None:
            is_surplus = self.random.random() < 0.2
            await make_ranking(
                self.session, await self.session.get(Task, task, populate_existing=True), is_surplus=is_surplus
            )

    async def revise(self) -> None:
        newer = select(Ranking.supersedes_id).where(Ranking.supersedes_id.is_not(None))
        old = await self.any_of(Ranking, Ranking.id.not_in(newer))
        if old is not None:
            row = await self.session.get_one(Ranking, old)
            names = ("project_id", "task_id", "lease_id", "annotator_id", "source", "is_surplus", "body_hash")
            values = {name: getattr(row, name) for name in names}
            await self.session.execute(insert(Ranking).values(**values, supersedes_id=old))

    async def reject(self) -> None:
        rejected = select(Rejection.ranking_id)
        chosen = await self.any_of(Ranking, Ranking.id.not_in(rejected))
        if chosen is not None:
            task_id = (await self.session.get_one(Ranking, chosen)).task_id
            review = Review(
                project_id=self.project.id,
                task_id=task_id,
                state=ReviewState.REJECTED,
                disagreement=1,
                last_number=1,
                settled_at=datetime.now(UTC),
            )
            self.session.add(review)
            await self.session.flush()
            self.session.add(Rejection(ranking_id=chosen, review_id=review.id, reason="no"))
            await self.session.flush()

    async def overlap(self) -> None:
        values = {"overlap": self.random.randint(9, 20)}
        await self.session.execute(update(Task).where(Task.project_id == self.project.id).values(values))

    async def turn(self) -> None:
        await self._turn(Task)

    async def turn_prompt(self) -> None:
        await self._turn(Prompt)

    async def _turn(self, what: Any) -> None:
        """Withdrawn or back again; a task with another overlap in the same statement."""
        moment = self.random.choice([None, datetime.now(UTC)])
        more = {"overlap": what.overlap + 1} if what is Task else {}
        chosen = await self.any_of(what)
        await self.session.execute(update(what).where(what.id == chosen).values(withdrawn_at=moment, **more))

    async def gold(self) -> None:
        task = await self.any_of(Task, ~Task.is_gold, Task.purpose == Purpose.LEARN)
        if task is not None:
            self.session.add(GoldOrder(task_id=task, places=[1, 2]))
            await self.session.flush()


@pytest.mark.parametrize("seed", range(2))
async def test_tallies_equal_a_count_after_whatever_happened(sessionmaker: SessionMaker, seed: int) -> None:
    async with sessionmaker() as session:
        project = await make_project(session)
        other = await make_project(session)
        await make_ranking(session, await make_task(session, await make_prompt(session, other)))
        world = World(session, project, seed)
        most = dict.fromkeys(COUNTS, 0)
        for step in range(NUM_STEPS):
            await world.step()
            kept = await tallied(session, project)
            assert kept == await counted(session, project), step
            most = {name: max([most[name], *(getattr(row, name) for row in kept)]) for name in COUNTS}
        assert all(most.values())
        await session.commit()
    assert await tallies.fold(sessionmaker, above=20) == len(kept)
    async with sessionmaker() as session:
        assert await tallied(session, project) == kept
        assert await tallied(session, other) == await counted(session, other) != set()
        rows = select(func.count()).select_from(tallies.tallies).where(tallies.tallies.c.project_id == project.id)
        assert await session.scalar(rows) == len(kept)


@pytest.fixture
async def sessions(fresh_database_url: str) -> AsyncIterator[SessionMaker]:
    engine = make_engine(fresh_database_url, pool_size=4)
    yield make_sessionmaker(engine)
    await engine.dispose()


async def prepare(sessions: SessionMaker) -> Task:
    """A task for many."""
    async with sessions.begin() as session:
        return await make_task(session, await make_prompt(session, await make_project(session)), k=2, overlap=9)


async def require_exact(sessions: SessionMaker, task: Task) -> None:
    async with sessions() as session:
        project = await session.get_one(Project, task.project_id)
        assert await tallied(session, project) == await counted(session, project)


@WITH_COMMITS
@pytest.mark.parametrize("what", [Task, Prompt])
@pytest.mark.parametrize("is_first", [True, False])
async def test_a_ranking_is_stored_while_its_task_is_withdrawn(
    sessions: SessionMaker, what: Any, is_first: bool
) -> None:
    task = await prepare(sessions)
    async with sessions.begin() as session:
        values = {"annotator_id": (await make_user(session)).id, "expires_at": datetime.now(UTC), "display_order": []}
        lease = await add(session, Lease(task_id=task.id, seed=1, **values))

    async def rank(session: AsyncSession) -> None:
        await make_ranking(session, await session.get(Task, task.id), lease_id=lease.id)

    async def withdraw(session: AsyncSession) -> None:
        chosen = task.id if what is Task else task.prompt_id
        await session.execute(update(what).where(what.id == chosen).values(withdrawn_at=datetime.now(UTC)))

    first, second = (rank, withdraw) if is_first else (withdraw, rank)
    async with sessions.begin() as one:
        await first(one)
        async with sessions.begin() as two:
            waiting = asyncio.create_task(second(two))
            await until_one_waits(sessions)
            await one.commit()
            await waiting
    async with sessions() as session:
        assert await session.scalar(select(func.count()).select_from(Ranking)) == 1
    await require_exact(sessions, task)


async def until_one_waits(sessions: SessionMaker) -> None:
    """Until a statement waits for a lock. Each look is a transaction of its own: in one, all see what the first saw."""
    query = text(
        "select count(*) from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    )
    async with asyncio.timeout(30), sessions() as session:
        while not await session.scalar(query):
            await session.rollback()
            await asyncio.sleep(0.02)


@WITH_COMMITS
async def test_nothing_is_lost_when_two_put_rows_together_while_others_write(sessions: SessionMaker) -> None:
    task = await prepare(sessions)

    async def rank() -> None:
        for _ in range(2):
            async with sessions.begin() as session:
                await make_ranking(session, await session.get(Task, task.id), annotator=await make_user(session))

    async def put_together() -> None:
        for _ in range(5):
            await tallies.fold(sessions, above=0)

    await asyncio.gather(rank(), put_together(), rank(), put_together())
    await require_exact(sessions, task)
    async with sessions() as session:
        held = await tallies.read(session, task.project_id)
        assert (held.whole().num_rankings, held.whole().num_places, held.of_split("test").num_prompts) == (4, 9, 0)
