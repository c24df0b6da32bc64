"""Gold tasks: mixed in at their rate, for everybody, told by nothing, and learned from by nobody."""

from __future__ import annotations

import re
import uuid
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from httpx2 import AsyncClient
from sqlalchemy import insert, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import AuditEntry, Role, User
from app.datasets.models import DatasetRow
from app.datasets.service import freeze
from app.draws import draw
from app.errors import Invalid
from app.loop.models import Round
from app.loop.overview import num_ranked_places
from app.projects import tallies
from app.projects.models import Project
from app.quality import gold, reading, service
from app.rankings import service as rankings
from app.rankings.answers import RankingAnswer
from app.rankings.service import AnswerRefused
from app.tasks import ahead
from app.tasks import service as tasks
from app.tasks.models import GoldOrder, Lease, LeaseState, Purpose, Task
from tests.factories import (
    completion_ids_of,
    make_project,
    make_prompt,
    make_ranking,
    make_task,
    make_user,
    num_waiting,
    sign_in,
)

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    """Half of all tasks are to be gold; six wait that are not."""
    project = await make_project(session, gold_share=0.5)
    for _ in range(6):
        await make_task(session, await make_prompt(session, project), k=2)
    return project


async def make_gold(session: AsyncSession, project: Project, num: int = 1, k: int = 2) -> list[Task]:
    """Gold tasks whose answers are in their right order."""
    found = []
    for _ in range(num):
        task = await make_task(session, await make_prompt(session, project), k=k)
        session.add(GoldOrder(task_id=task.id, places=list(range(1, k + 1))))
        await session.flush()
        await session.refresh(task)
        found.append(task)
    return found


async def rank_all(session: AsyncSession, project: Project, person: User, now: datetime = NOW) -> list[Task]:
    """Rank until nothing waits, always in the order shown; the tasks in their order."""
    had = []
    while lease := await tasks.next_lease(session, project=project, annotator=person, now=now):
        places = {item: place for place, item in enumerate(lease.display_order, start=1)}
        await rankings.submit(session, lease_id=lease.id, annotator=person, answer=RankingAnswer(places), source="page")
        had.append(await session.get_one(Task, lease.task_id))
    return had


# Handing out


async def test_gold_comes_between_the_others_and_to_everybody(session: AsyncSession, project: Project) -> None:
    known = {task.id for task in await make_gold(session, project, 3)}
    await session.execute(text("update tasks set overlap = 4 where not is_gold"))
    # Whose turn it is follows from the project's seed and the person; others could by chance get too little gold.
    people = [await make_user(session, id=uuid.UUID(int=number)) for number in range(1, 5)]
    had = {person.id: [task.id for task in await rank_all(session, project, person)] for person in people}
    for mine in had.values():
        assert len(set(mine) - known) == 6, "every other task, as without gold"
        assert len(mine) == len(set(mine))
    assert sum(len(set(mine) & known) for mine in had.values()) > 6
    (counts,) = (await session.execute(text("select max(num_taken) from tasks where is_gold and overlap = 1"))).one()
    assert counts > 1


async def test_without_a_share_or_other_tasks_no_gold_is_handed_out(session: AsyncSession, project: Project) -> None:
    await make_gold(session, project, 3)
    project.gold_share = 0
    assert not any(task.is_gold for task in await rank_all(session, project, await make_user(session)))
    project.gold_share = 0.5
    assert await rank_all(session, project, await make_user(session)) == []


async def test_gold_comes_at_its_rate_and_asking_again_changes_nothing(session: AsyncSession) -> None:
    people = [uuid.UUID(int=number) for number in range(40)]
    told = [f"17|gold|{person}|{number}" for person in people for number in range(100)]
    query = text("select draw(told) from unnest(cast(:told as text[])) told")
    drawn = (await session.scalars(query, {"told": told})).all()
    assert sum(number < 0.2 for number in drawn) == pytest.approx(800, abs=102)
    assert drawn[:100] != drawn[100:200]
    assert drawn == (await session.scalars(query, {"told": told})).all()
    assert drawn == [draw(line) for line in told], "what Python draws of the same words"


async def test_gold_that_was_left_comes_back_and_its_late_ranking_is_taken(
    session: AsyncSession, project: Project
) -> None:
    (task,) = await make_gold(session, project)
    await make_ranking(session, task)
    ada = await make_user(session)
    lease = Lease(
        task_id=task.id, annotator_id=ada.id, state=LeaseState.EXPIRED, seed=1, expires_at=NOW,
        display_order=await completion_ids_of(session, task),
    )  # fmt: skip
    session.add(lease)
    await session.flush()
    again = await tasks.next_lease(session, project=project, annotator=ada, now=NOW)
    assert again is not None
    assert again.id == lease.id
    await tasks.expire_leases(session, now=NOW + timedelta(days=1))
    places = {item: place for place, item in enumerate(lease.display_order, start=1)}
    stored = await rankings.submit(
        session, lease_id=lease.id, annotator=ada, answer=RankingAnswer(places), source="page"
    )
    assert not stored.is_surplus


async def test_gold_is_fetched_ahead_and_kept_there(session: AsyncSession, project: Project) -> None:
    known = await make_gold(session, project, 6)
    project.gold_share = 0.5
    for task in known:
        await make_ranking(session, task)
    ada = await make_user(session, id=uuid.UUID(int=1))
    seen: list[uuid.UUID] = []
    for _ in range(6):
        lease = await tasks.next_lease(session, project=project, annotator=ada, now=NOW)
        assert lease is not None
        if seen:
            assert lease.id == seen[-1], "what was fetched ahead is the next one"
        desk = await ahead.preload(session, project=project, annotator=ada, now=NOW)
        assert desk.ahead is not None
        seen.append(desk.ahead.id)
        await tasks.release_lease(session, lease_id=lease.id, annotator=ada)
    assert await session.scalar(select(Lease.id).join(Task).where(Lease.id.in_(seen), Task.is_gold).limit(1)), (
        "one of them was gold"
    )


async def test_the_number_of_waiting_tasks_does_not_tell_gold(session: AsyncSession, project: Project) -> None:
    ada = await make_user(session)
    (task,) = await make_gold(session, project)

    assert await num_waiting(session, project, ada, NOW) == 6
    session.add(
        Lease(
            task_id=task.id, annotator_id=ada.id, seed=1, expires_at=NOW + timedelta(hours=1),
            display_order=await completion_ids_of(session, task),
        )
    )  # fmt: skip
    await session.flush()
    assert await num_waiting(session, project, ada, NOW) == 6
    await session.execute(text("update tasks set withdrawn_at = now() where not is_gold"))
    assert await num_waiting(session, project, ada, NOW) == 1, "what is in hand is to be seen"


# What counts


async def test_what_is_said_of_gold_counts_for_nothing_else(session: AsyncSession, project: Project) -> None:
    plain = await make_task(session, await make_prompt(session, project), k=2, overlap=2, round=1)
    (task,) = await make_gold(session, project)
    task.round = 1
    people = [await make_user(session) for _ in range(2)]
    for person in people:
        await make_ranking(session, plain, annotator=person)
        await make_ranking(session, task, annotator=person)
    assert await rankings.count_rankings(session, project.id) == 2
    assert (await tallies.read(session, project.id)).whole().num_learnable == 2
    assert {view.ranking.task_id for view in await rankings.follow_rankings(session, project_id=project.id)} == {
        plain.id
    }
    assert {row.task for row in await reading.overlapping(session, project.id)} == {plain.id}
    assert {row.task for row in await reading.newest(session, project.id)} == {plain.id}
    assert {row.task for row in await reading.newest(session, project.id, with_gold=True)} == {plain.id, task.id}
    assert await num_ranked_places(session, project, Round(number=1)) == (2, 2)


async def test_the_database_lets_no_gold_into_a_dataset(session: AsyncSession, project: Project) -> None:
    plain = await make_task(session, await make_prompt(session, project), k=2)
    (task,) = await make_gold(session, project)
    await make_ranking(session, plain)
    ranking = await make_ranking(session, task)
    dataset = await freeze(session, project=project)
    assert dataset.num_rows == 1
    row = {"dataset_id": dataset.id, "position": 1, "ranking_id": ranking.id}
    with pytest.raises(IntegrityError, match="may not go to a dataset"):
        await session.execute(insert(DatasetRow).values(**row))


async def test_a_known_order_has_a_place_for_every_answer(session: AsyncSession, project: Project) -> None:
    task = await make_task(session, await make_prompt(session, project), k=3)
    session.add(GoldOrder(task_id=task.id, places=[1, 2]))
    with pytest.raises(IntegrityError, match="a place for every answer"):
        await session.flush()


# How well people do


async def test_people_are_measured_against_known_orders(session: AsyncSession, project: Project) -> None:
    ada = await make_user(session)
    for number, task in enumerate(await make_gold(session, project, 7, k=3)):
        await make_ranking(session, task, annotator=ada, places=[1, 2, 3] if number < 5 else [3, 2, 1])
    known = await gold.known_orders(session, project)
    portrait = await service.person_view(session, project, ada, known)
    own = await gold.own_view(session, project, ada)
    assert portrait is not None
    assert portrait.gold is not None
    assert own is not None
    assert own.gold is not None
    assert portrait.gold.value == pytest.approx(5 / 7)
    # Their own page tells five of the seven: what the last two were, nobody learns from it.
    assert own.gold.value == 1
    assert own.num == portrait.num == 7


# Marking


async def test_an_admin_marks_a_task(session: AsyncSession, project: Project) -> None:
    admin = await make_user(session)
    task = await make_task(session, await make_prompt(session, project), k=3)
    one, two, three = await completion_ids_of(session, task)
    answer = RankingAnswer({one: 3, two: 1, three: 3})
    order = await gold.mark(session, project, task.id, answer=answer, why=" B says it all ", actor=admin)
    assert (order.places, order.why, task.is_gold) == ([2, 1, 2], "B says it all", True)
    entry = (await session.scalars(select(AuditEntry).where(AuditEntry.action == "task.gold"))).one()
    assert entry.subject == str(task.id)
    with pytest.raises(AnswerRefused):
        await gold.mark(session, project, task.id, answer=RankingAnswer({one: 1, two: 2}), why="", actor=admin)
    with pytest.raises(Invalid, match="all answers in one place"):
        await gold.mark(
            session, project, task.id, answer=RankingAnswer(dict.fromkeys([one, two, three], 1)), why="", actor=admin
        )


async def test_the_pages_of_gold(client: AsyncClient, session: AsyncSession, project: Project) -> None:
    task = await make_task(session, await make_prompt(session, project), k=2, overlap=2)
    ranking = await make_ranking(session, task, places=[2, 1])
    await sign_in(client, session)
    page = f"/projects/{project.slug}/tasks/{task.id}/gold"
    assert f"{page}?ranking={ranking.id}" in (await client.get(page.removesuffix("/gold"))).text
    assert "selected" not in (await client.get(page)).text.split("<main")[1]
    filled = (await client.get(f"{page}?ranking={ranking.id}")).text
    assert filled.index("<option selected>2") < filled.index("<option selected>1")
    one, two = await completion_ids_of(session, task)
    sent = await client.post(page, data={f"place_{one}": "1", f"place_{two}": "2", "why": "<b>A</b>"})
    assert sent.headers["location"] == f"/projects/{project.slug}/quality/gold"
    listed = (await client.get(sent.headers["location"])).text
    assert f"tasks/{task.id}/gold" in listed
    assert "0 %" in listed.replace("\u202f", " ").replace("\u00a0", " ").replace("0%", "0 %")
    assert "&lt;b&gt;A&lt;/b&gt;" in (await client.get(page)).text
    refused = await client.post(page, data={f"place_{one}": "1", "why": "<i>so</i>"})
    assert refused.status_code == 422
    assert f'href="#places.{two}"' in refused.text
    assert "<option selected>1</option>" in refused.text
    assert "&lt;i&gt;so&lt;/i&gt;" in refused.text


async def test_no_page_of_an_annotator_tells_gold(client: AsyncClient, session: AsyncSession, project: Project) -> None:
    """The same task before and after it was marked: nothing differs for who ranks it but the clock."""
    ada = await sign_in(client, session, role=Role.ANNOTATOR)
    task = await make_task(session, await make_prompt(session, project), k=2)
    order = await completion_ids_of(session, task)
    later = datetime.now(UTC) + timedelta(hours=1)
    lease = Lease(task_id=task.id, annotator_id=ada.id, seed=1, expires_at=later, display_order=order)
    session.add(lease)
    await session.commit()

    async def seen() -> tuple[str, ...]:
        pages = [await client.get(f"/projects/{project.slug}/rank"), await client.get("/")]
        return tuple(strip(page.text) for page in pages)

    before = await seen()
    session.add(GoldOrder(task_id=task.id, places=[1, 2]))
    await session.commit()
    assert len(before[0]) > 1000
    # One task fewer is wanted, and so the count is smaller; with another in its place, the pages are the same.
    await make_task(session, await make_prompt(session, project), k=2)
    await session.commit()
    assert await seen() == before


def strip(page: str) -> str:
    """A page without its clock."""
    return re.sub(r"expires[^,>]*|\d+ minutes?|data-seconds=\"[^\"]*\"", "", page)


# Taking over one's own orders


async def test_an_admin_makes_gold_of_what_they_ranked(client: AsyncClient, session: AsyncSession) -> None:
    project = await make_project(session, slug="own", ties_allowed=True, partial_allowed=True)
    admin = await sign_in(client, session)

    async def ranked(places: list[int | None], *, annotator: User = admin, **values: Any) -> Task:
        task = await make_task(session, await make_prompt(session, project), k=3, **values)
        await make_ranking(session, task, annotator=annotator, places=places)
        return task

    whole, tied = await ranked([2, 3, 1]), await ranked([1, 2, 1])
    left = [
        await ranked([1, None, 2]),
        await ranked([1, 1, 1]),
        await ranked([1, 2, 3], withdrawn_at=NOW),
        await ranked([1, 2, 3], annotator=await make_user(session)),
        await ranked([1, 2, 3], purpose=Purpose.COMPARE),
    ]
    other = await make_task(session, await make_prompt(session), k=3)
    await make_ranking(session, other, annotator=admin, places=[1, 2, 3])
    assert "You ranked 2 tasks yourself" in (await client.get("/projects/own/quality/gold")).text
    assert (await client.post("/projects/own/quality/gold")).status_code == 303
    assert await gold.known_orders(session, project) == {whole.id: [2, 3, 1], tied.id: [1, 2, 1]}
    assert not any([(await session.get_one(Task, task.id, populate_existing=True)).is_gold for task in [*left, other]])
    entry = await session.scalar(select(AuditEntry).where(AuditEntry.action == "gold.take_over"))
    assert entry is not None
    assert (entry.actor_id, entry.detail) == (admin.id, {"num": 2})
    assert await gold.take_over(session, project, actor=admin) == 0
    assert "yourself" not in (await client.get("/projects/own/quality/gold")).text


async def test_a_change_of_mind_is_what_is_taken_over(session: AsyncSession) -> None:
    project, admin = await make_project(session), await make_user(session, role=Role.ADMIN)
    task = await make_task(session, await make_prompt(session, project), k=2)
    first = await make_ranking(session, task, annotator=admin, places=[1, 2])
    same = {"annotator": admin, "lease_id": first.lease_id, "supersedes_id": first.id}
    await make_ranking(session, task, places=[2, 1], **same)
    assert await gold.take_over(session, project, actor=admin) == 1
    assert await gold.known_orders(session, project) == {task.id: [2, 1]}


async def test_an_order_does_not_agree_with_itself(session: AsyncSession, project: Project) -> None:
    """The admin whose ranking became the known order does not count in the list."""
    (task,) = await make_gold(session, project)
    admin, other = await make_user(session), await make_user(session)
    (await session.get_one(GoldOrder, task.id)).marked_by = admin.id
    await make_ranking(session, task, places=[1, 2], annotator=admin)
    await make_ranking(session, task, places=[2, 1], annotator=other)
    (row,) = await gold.list_gold(session, project)
    assert row.agreement is not None
    assert (row.num_rankings, row.agreement.value) == (1, 0.0)
