"""Many annotators at once, with real commits: exact overlap, one ranking a lease, nothing lost, nobody starved."""

from __future__ import annotations

import asyncio
import random
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from functools import cached_property

import pytest
from sqlalchemy import text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine

from app.accounts.models import User
from app.db import SessionMaker, make_engine, make_late_sessionmaker, make_sessionmaker
from app.projects.models import Project
from app.rankings import service as rankings
from app.rankings.answers import RankingAnswer
from app.tasks import ahead, making
from app.tasks import service as tasks
from app.tasks.ahead import Desk
from app.tasks.models import Lease
from tests.factories import make_project, make_user

pytestmark = [pytest.mark.real_commits, pytest.mark.slow]

OVERLAP = 3
START = datetime(2026, 11, 21, tzinfo=UTC)

MANY_TASKS = """
    with new_prompts as (
        insert into prompts (project_id, messages, split, root_hash, content_hash)
        select :project, '[{"role": "user", "content": "Which is better?"}]', 'train', h, h
        from (select sha256(i::text::bytea) as h from generate_series(1, :num_tasks) i) hashes
        returning id
    ), new_completions as (
        insert into completions (prompt_id, text, content_hash)
        select p.id, 'Answer ' || i, sha256(i::text::bytea) from new_prompts p, generate_series(0, 2) i
        returning id, prompt_id, text
    ), new_tasks as (
        insert into tasks (project_id, prompt_id, overlap) select :project, id, :overlap from new_prompts
        returning id, prompt_id
    ), sorted as (
        select t.id as task_id, c.id as completion_id, right(c.text, 1)::int as position
        from new_tasks t join new_completions c using (prompt_id)
    )
    select task_id, completion_id, position from sorted
"""

# What rules 1 and 2 forbid. Each query names the rows that break one of them.
BROKEN = {
    "a task has more open and answered leases than places": """
        select t.id from tasks t join leases l on l.task_id = t.id and l.state in ('open', 'answered')
        where not t.is_gold group by t.id, t.overlap having count(*) > t.overlap""",
    "the counter is wrong": """
        select t.id from tasks t left join leases l on l.task_id = t.id and l.state in ('open', 'answered')
        group by t.id, t.num_taken having count(l.id) <> t.num_taken""",
    "a task has more current rankings than places": """
        select t.id from tasks t join rankings r on r.task_id = t.id and not r.is_surplus
        where not exists (select from rankings newer where newer.supersedes_id = r.id) and not t.is_gold
        group by t.id, t.overlap having count(*) > t.overlap""",
    "somebody ranked a task twice": """
        select task_id from rankings where supersedes_id is null group by task_id, annotator_id having count(*) > 1""",
    "somebody has more than one task in hand, more than one ahead, or these beside a pack": """
        select annotator_id from leases where state = 'open' group by annotator_id
        having count(*) filter (where kind = 'active') > 1 or count(*) filter (where kind = 'preloaded') > 1
        or count(*) filter (where kind = 'offline') not in (0, count(*)) or count(*) > 25
        or count(distinct pack_id) filter (where kind = 'offline') > 1""",
    "an answered lease has not exactly one first ranking": """
        select l.id from leases l left join rankings r on r.lease_id = l.id and r.supersedes_id is null
        where l.state = 'answered' group by l.id having count(r.id) <> 1""",
    "a ranking counts although its lease was not answered": """
        select r.id from rankings r join leases l on l.id = r.lease_id
        where not r.is_surplus and l.state <> 'answered'""",
    "a ranking has not a place for each answer": """
        select r.id from rankings r left join ranking_places p on p.ranking_id = r.id
        group by r.id having count(p.place) <> 3""",
}


@pytest.fixture
async def engine(fresh_database_url: str) -> AsyncIterator[AsyncEngine]:
    engine = make_engine(fresh_database_url, pool_size=24, max_overflow=0, pool_timeout=300)
    yield engine
    await engine.dispose()


@pytest.fixture
def sessions(engine: AsyncEngine) -> SessionMaker:
    return make_sessionmaker(engine)


async def broken_rules(sessions: SessionMaker) -> list[str]:
    async with sessions() as session:
        return [rule for rule, query in BROKEN.items() if (await session.execute(text(query))).first() is not None]


async def prepare(
    sessions: SessionMaker, *, num_tasks: int, overlap: int, num_clients: int, lease_minutes: int = 10
) -> tuple[Project, list[User]]:
    async with sessions.begin() as session:
        project = await make_project(session, overlap=overlap, lease_minutes=lease_minutes)
        people = [await make_user(session, name=f"annotator {number}") for number in range(num_clients)]
        values = {"project": project.id, "num_tasks": num_tasks, "overlap": overlap}
        rows = (await session.execute(text(MANY_TASKS), values)).mappings().all()
        insert = (
            "insert into task_completions (task_id, completion_id, position) values "
            "(:task_id, :completion_id, :position)"
        )
        await session.execute(text(insert), [dict(row) for row in rows])
    return project, people


@dataclass
class Crowd:
    """Annotators who share a clock. Every operation moves it, so that leases run out while others work."""

    sessions: SessionMaker
    project: Project
    now: datetime = START
    tally: Counter[str] = field(default_factory=Counter)

    @cached_property
    def late(self) -> SessionMaker:
        """As the app takes and answers tasks."""
        return make_late_sessionmaker(self.sessions.kw["bind"].execution_options(isolation_level="AUTOCOMMIT"))

    async def next_lease(self, annotator: User) -> Lease | None:
        async with self.late.begin() as session:
            return await tasks.next_lease(session, project=self.project, annotator=annotator, now=self.now)

    async def submit(self, annotator: User, lease: Lease, places: Sequence[int] = (1, 2, 2)) -> None:
        answer = RankingAnswer(dict(zip(lease.display_order, places, strict=True)))
        async with self.late.begin() as session:
            ranking = await rankings.submit(
                session, lease_id=lease.id, annotator=annotator, answer=answer, source="api"
            )
        self.tally["surplus" if ranking.is_surplus else "ranked"] += 1

    async def submit_twice(self, annotator: User, lease: Lease) -> None:
        await asyncio.gather(self.submit(annotator, lease), self.submit(annotator, lease))
        self.tally["twice"] += 1

    async def preload(self, annotator: User) -> Desk:
        async with self.sessions.begin() as session:
            return await ahead.preload(session, project=self.project, annotator=annotator, now=self.now)

    async def take_pack(self, annotator: User, pack_id: uuid.UUID, num: int = 5) -> list[Lease]:
        async with self.sessions.begin() as session:
            return await ahead.take_pack(
                session, project=self.project, annotator=annotator, num=num, now=self.now, pack_id=pack_id
            )

    async def skip(self, annotator: User, lease: Lease) -> None:
        async with self.sessions.begin() as session:
            await tasks.release_lease(session, lease_id=lease.id, annotator=annotator, reason="race")
        self.tally["skipped"] += 1

    async def work(self, annotator: User, seed: int, num_operations: int) -> None:
        """Take a task; then rank it, rank it twice at once, skip it, let it lie, or come back to it too late."""
        draw = random.Random(seed)
        late: Lease | None = None
        for _ in range(num_operations // 2):
            self.now += timedelta(seconds=draw.randint(0, 4))
            lease = await self.next_lease(annotator)
            if late is not None and (lease is None or late.id != lease.id):
                await self.submit(annotator, late)
            late = None
            if lease is None:
                self.tally["nothing waits"] += 1
                continue
            chance = draw.random()
            if chance < 0.6:
                await self.submit(annotator, lease)
            elif chance < 0.75:
                await self.submit_twice(annotator, lease)
            elif chance < 0.8:
                await asyncio.gather(self.skip(annotator, lease), self.preload(annotator))
            elif chance < 0.85:
                await asyncio.gather(self.submit(annotator, lease), self.preload(annotator), self.preload(annotator))
                self.tally["preloaded"] += 1
            elif chance < 0.9:
                self.now += timedelta(seconds=30)
                late = lease
            else:
                self.now += timedelta(seconds=30)
                self.tally["left"] += 1


@pytest.mark.parametrize(
    # Everybody moves the clock: among fewer people shorter leases run out as often.
    ("num_clients", "num_tasks", "num_operations", "lease_minutes"),
    [(16, 60, 50, 1), pytest.param(64, 400, 150, 10, marks=pytest.mark.soak)],
)
async def test_many_annotators_keep_every_rule(
    sessions: SessionMaker, num_clients: int, num_tasks: int, num_operations: int, lease_minutes: int
) -> None:
    project, people = await prepare(
        sessions, num_tasks=num_tasks, overlap=OVERLAP, num_clients=num_clients, lease_minutes=lease_minutes
    )
    crowd = Crowd(sessions, project)
    async with asyncio.TaskGroup() as group:
        for seed, person in enumerate(people):
            group.create_task(crowd.work(person, seed, num_operations))
    assert await broken_rules(sessions) == []
    assert min(crowd.tally[name] for name in ("ranked", "twice", "skipped", "left", "surplus", "preloaded")) > 0, (
        crowd.tally
    )

    # Nobody is starved: whoever still finds a task ranks it, and then every place of every task is filled.
    crowd.now += timedelta(days=1)
    for person in people:
        while (lease := await crowd.next_lease(person)) is not None:
            await crowd.submit(person, lease)
    assert await broken_rules(sessions) == []
    async with sessions() as session:
        waiting = text("select count(*) from tasks where num_taken < overlap")
        assert await session.scalar(waiting) == 0


async def test_gold_between_breaks_no_rule_and_nobody_waits_in_a_circle(sessions: SessionMaker) -> None:
    project, people = await prepare(sessions, num_tasks=40, overlap=3, num_clients=16)
    async with sessions.begin() as session:
        marked = "insert into gold_orders (task_id, places) select id, '{1,2,3}' from tasks order by number limit 8"
        await session.execute(text(marked))
        await session.execute(text("update projects set gold_share = 0.5"))
    project.gold_share = 0.5
    crowd = Crowd(sessions, project)
    packs = await asyncio.gather(*(crowd.take_pack(person, uuid.uuid4()) for person in people))
    for person, pack in zip(people, packs, strict=True):
        for lease in pack:
            await crowd.submit(person, lease)
    async with asyncio.TaskGroup() as group:
        for seed, person in enumerate(people):
            group.create_task(crowd.work(person, seed, 10))
    assert await broken_rules(sessions) == []
    async with sessions() as session:
        assert await session.scalar(text("select max(num_taken - overlap) from tasks where is_gold")) > 0


async def test_two_people_at_the_last_place_get_one_lease(sessions: SessionMaker) -> None:
    project, people = await prepare(sessions, num_tasks=1, overlap=1, num_clients=8)
    crowd = Crowd(sessions, project)
    leases = await asyncio.gather(*(crowd.next_lease(person) for person in people))
    assert sum(lease is not None for lease in leases) == 1


async def test_nobody_is_told_that_nothing_waits_while_tasks_do(sessions: SessionMaker) -> None:
    """Whoever holds the last task's lock lets it go again: the one who asks waits a little instead of going home."""
    project, (ada,) = await prepare(sessions, num_tasks=1, overlap=1, num_clients=1)
    crowd = Crowd(sessions, project)
    async with sessions() as holder:
        await holder.execute(text("select from tasks for update"))
        asking = asyncio.create_task(crowd.next_lease(ada))
        await asyncio.sleep(0.3)
        assert not asking.done()
        await holder.rollback()
    assert await asking is not None


async def test_who_waited_in_vain_is_told_to_try_again(sessions: SessionMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tasks, "RETRY_PAUSES", (0.01,))
    project, (ada,) = await prepare(sessions, num_tasks=1, overlap=1, num_clients=1)
    async with sessions() as holder:
        await holder.execute(text("select from tasks for update"))
        with pytest.raises(tasks.TasksContended):
            await Crowd(sessions, project).next_lease(ada)


async def test_as_many_people_as_tasks_get_one_each(sessions: SessionMaker) -> None:
    project, people = await prepare(sessions, num_tasks=16, overlap=1, num_clients=16)
    crowd = Crowd(sessions, project)
    leases = await asyncio.gather(*(crowd.next_lease(person) for person in people))
    assert len({lease.task_id for lease in leases if lease}) == 16


async def test_many_tabs_of_one_person_share_one_lease(sessions: SessionMaker) -> None:
    project, people = await prepare(sessions, num_tasks=8, overlap=1, num_clients=1)
    crowd = Crowd(sessions, project)
    leases = await asyncio.gather(*(crowd.next_lease(people[0]) for _ in range(12)))
    assert len({lease.id for lease in leases if lease}) == 1


async def test_many_tabs_of_one_person_fetch_one_task_ahead(sessions: SessionMaker) -> None:
    project, (ada,) = await prepare(sessions, num_tasks=8, overlap=1, num_clients=1)
    crowd = Crowd(sessions, project)
    in_hand = await crowd.next_lease(ada)
    assert in_hand is not None
    desks = await asyncio.gather(*(crowd.preload(ada) for _ in range(12)))
    assert {desk.in_hand.id for desk in desks if desk.in_hand} == {in_hand.id}
    assert len({desk.ahead.id for desk in desks if desk.ahead}) == 1
    assert await broken_rules(sessions) == []


async def test_two_devices_take_one_pack(sessions: SessionMaker) -> None:
    """Each asks for a pack of its own at once, and tabs ask for tasks meanwhile: one gets all, the others none."""
    project, (ada,) = await prepare(sessions, num_tasks=12, overlap=1, num_clients=1)
    crowd = Crowd(sessions, project)
    packs = [crowd.take_pack(ada, uuid.UUID(int=number)) for number in (1, 2, 1, 2)]
    tabs = [crowd.next_lease(ada) for _ in range(4)]
    outcomes = await asyncio.gather(*packs, *tabs, return_exceptions=True)
    taken = [{lease.id for lease in outcome} for outcome in outcomes[:4] if isinstance(outcome, list)]
    refused = [outcome for outcome in outcomes if isinstance(outcome, BaseException)]
    assert len(taken) == 2
    assert taken[0] == taken[1]
    assert {type(outcome) for outcome in refused} == {tasks.TasksPacked}
    assert await broken_rules(sessions) == []


async def test_two_transactions_that_forget_to_take_turns_cannot_hold_a_pack_and_a_task(sessions: SessionMaker) -> None:
    """The trigger locks the person by itself: the second insert waits for the first, sees it, and is refused."""
    _, (ada,) = await prepare(sessions, num_tasks=2, overlap=1, num_clients=1)
    insert = text(
        "insert into leases (task_id, annotator_id, display_order, seed, expires_at, kind, pack_id)"
        " select id, :person, '{}', 0, now(), :kind, case when :kind = 'offline' then :person end"
        " from tasks order by number offset :n limit 1"
    )
    async with sessions() as first, sessions() as second:
        await first.execute(insert, {"person": ada.id, "kind": "active", "n": 0})
        waiting = asyncio.create_task(second.execute(insert, {"person": ada.id, "kind": "offline", "n": 1}))
        await asyncio.sleep(0.2)
        assert not waiting.done()
        await first.commit()
        with pytest.raises(IntegrityError, match="holds tasks in a pack"):
            await waiting


async def test_many_submits_at_once_store_one_ranking(sessions: SessionMaker) -> None:
    project, people = await prepare(sessions, num_tasks=1, overlap=1, num_clients=1)
    crowd = Crowd(sessions, project)
    lease = await crowd.next_lease(people[0])
    assert lease is not None
    await asyncio.gather(*(crowd.submit(people[0], lease) for _ in range(12)))
    async with sessions() as session:
        assert await session.scalar(text("select count(*) from rankings")) == 1


async def test_different_submits_at_once_store_one_ranking(sessions: SessionMaker) -> None:
    project, people = await prepare(sessions, num_tasks=1, overlap=1, num_clients=1)
    crowd = Crowd(sessions, project)
    lease = await crowd.next_lease(people[0])
    assert lease is not None
    answers = [(1, 2, 3), (1, 3, 2), (2, 1, 3), (3, 2, 1)]
    outcomes = await asyncio.gather(
        *(crowd.submit(people[0], lease, places) for places in answers), return_exceptions=True
    )
    assert Counter(type(outcome) for outcome in outcomes) == {rankings.AlreadyAnswered: 3, type(None): 1}


async def test_late_rankings_race_for_the_last_place(sessions: SessionMaker) -> None:
    """Four people had the task and let it expire; all send their ranking at once. One place: one counts."""
    project, people = await prepare(sessions, num_tasks=1, overlap=1, num_clients=4)
    crowd = Crowd(sessions, project)
    leases = []
    for person in people:
        leases.append(await crowd.next_lease(person))
        crowd.now += timedelta(hours=1)
    async with sessions.begin() as session:
        await tasks.expire_leases(session, now=crowd.now)
    await asyncio.gather(*(crowd.submit(person, lease) for person, lease in zip(people, leases, strict=True) if lease))
    assert (crowd.tally["ranked"], crowd.tally["surplus"]) == (1, 3)
    assert await broken_rules(sessions) == []


async def test_withdrawing_while_people_work_breaks_nothing(sessions: SessionMaker) -> None:
    project, people = await prepare(sessions, num_tasks=6, overlap=2, num_clients=12)
    crowd = Crowd(sessions, project)

    async def work(person: User) -> None:
        lease = await crowd.next_lease(person)
        if lease is not None:
            await crowd.submit(person, lease)

    async def withdraw() -> None:
        async with sessions() as session:
            ids = (await session.scalars(text("select id from tasks order by number"))).all()
        for task_id in ids:
            async with sessions.begin() as session:
                await making.withdraw_task(session, project_id=project.id, task_id=task_id)

    await asyncio.gather(*(work(person) for person in people), withdraw())
    assert await broken_rules(sessions) == []
    async with sessions() as session:
        stored = await session.scalar(text("select count(*) from rankings"))
    assert stored == crowd.tally["ranked"] + crowd.tally["surplus"], "a running answer was lost"


async def test_a_reader_misses_nothing_that_is_committed_late(sessions: SessionMaker) -> None:
    """Ada's transaction begins first and commits last. Whoever reads in between must still get her ranking later."""
    project, (ada, bo) = await prepare(sessions, num_tasks=2, overlap=1, num_clients=2)
    crowd = Crowd(sessions, project)
    leases = [await crowd.next_lease(person) for person in (ada, bo)]
    assert leases[0] is not None
    assert leases[1] is not None
    async with sessions.begin() as late:
        answer = RankingAnswer(dict(zip(leases[0].display_order, (1, 2, 3), strict=True)))
        await rankings.submit(late, lease_id=leases[0].id, annotator=ada, answer=answer, source="api")
        await crowd.submit(bo, leases[1])
        first = await follow(sessions, project, None)
    after = (first[-1].ranking.transaction_id, first[-1].ranking.number) if first else None
    second = await follow(sessions, project, after)
    assert {view.ranking.annotator_id for view in [*first, *second]} == {ada.id, bo.id}
    assert len(first) + len(second) == 2


async def follow(sessions: SessionMaker, project: Project, after: tuple[int, int] | None) -> list[rankings.RankingView]:
    async with sessions() as session:
        return await rankings.follow_rankings(session, project_id=project.id, after=after)


async def test_the_checker_sees_a_broken_rule(sessions: SessionMaker) -> None:
    """Without the triggers a lease too many goes in, and the checker says so: it is not blind."""
    project, people = await prepare(sessions, num_tasks=1, overlap=1, num_clients=2)
    crowd = Crowd(sessions, project)
    lease = await crowd.next_lease(people[0])
    assert lease is not None
    async with sessions.begin() as session:
        await session.execute(text("alter table leases disable trigger leases_count_places"))
        await session.execute(
            text(
                "insert into leases (task_id, annotator_id, display_order, seed, expires_at)"
                " values (:task, :annotator, '{}', 0, now())"
            ),
            {"task": lease.task_id, "annotator": people[1].id},
        )
    assert len(await broken_rules(sessions)) == 2
