"""An annotator's own work: the last rankings, a change of mind with its history, the break and what was done today."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Any

import pytest
from httpx2 import AsyncClient
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, User
from app.projects.models import Project
from app.rankings import own
from app.rankings.models import Ranking
from app.tasks.models import Lease, LeaseState, Task
from tests.factories import make_project, make_prompt, make_ranking, make_task, make_user, sign_in

PAGE = {"Accept": "text/html"}
SCRIPT = {"Accept": "application/json"}
START_OF_TIME = datetime(2000, 1, 1, tzinfo=UTC)


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    return await make_project(session, labels=[{"key": "rude", "en": "Rude", "zh": "粗鲁"}])


@pytest.fixture
async def ada(session: AsyncSession, client: AsyncClient) -> User:
    return await sign_in(client, session, role=Role.ANNOTATOR)


@pytest.fixture
async def ranking(session: AsyncSession, project: Project, ada: User) -> Ranking:
    """Two answers, the one shown second is the better one."""
    task = await make_task(session, await make_prompt(session, project), k=3)
    row = await make_ranking(session, task, annotator=ada, rationale="B is kind.", active_seconds=30)
    await session.commit()
    return row


async def fields_of(session: AsyncSession, ranking: Ranking, places: str) -> dict[str, str]:
    lease = await session.get_one(Lease, ranking.lease_id)
    return {f"place_{key}": place for key, place in zip(lease.display_order, places, strict=False)}


async def change(client: AsyncClient, session: AsyncSession, ranking: Ranking, places: str, **headers: str) -> Any:
    fields = await fields_of(session, ranking, places)
    return await client.post(f"/rankings/{ranking.id}/change", data=fields, headers=PAGE | headers)


async def stored(session: AsyncSession) -> list[Ranking]:
    return list(await session.scalars(select(Ranking).order_by(Ranking.number)))


async def test_a_ranking_opens_as_it_was_given(client: AsyncClient, ranking: Ranking) -> None:
    page = await client.get(f"/rankings/{ranking.id}/change", headers=PAGE)
    assert page.status_code == 200
    assert "B is kind." in page.text
    assert page.text.count(" checked") >= 3
    assert f'action="/rankings/{ranking.id}/change"' in page.text
    assert "/skip" not in page.text
    assert "data-ahead-url" not in page.text


async def test_a_change_supersedes_and_keeps_the_history(
    client: AsyncClient, session: AsyncSession, project: Project, ranking: Ranking
) -> None:
    answer = await change(client, session, ranking, "321")
    assert answer.headers["location"] == f"/projects/{project.slug}/mine"
    assert (await change(client, session, ranking, "321")).status_code == 303
    old, new = await stored(session)
    assert (old.id, new.supersedes_id, new.lease_id) == (ranking.id, ranking.id, ranking.lease_id)
    listed = await client.get(answer.headers["location"])
    assert f"/rankings/{new.id}/change" in listed.text
    assert f"/rankings/{old.id}/change" not in listed.text


async def test_what_a_reviewer_settled_is_changed_no_more(
    client: AsyncClient, session: AsyncSession, project: Project, ranking: Ranking
) -> None:
    task = await session.get_one(Task, ranking.task_id)
    task.settled_number = ranking.number
    await session.commit()
    for answer in (
        await change(client, session, ranking, "321"),
        await client.get(f"/rankings/{ranking.id}/change", headers=PAGE),
    ):
        assert answer.status_code == 409
        assert "A reviewer has decided about this task" in answer.text
    listed = await client.get(f"/projects/{project.slug}/mine", headers=PAGE)
    assert "reviewed" in listed.text
    assert f"/rankings/{ranking.id}/change" not in listed.text


async def test_a_second_change_of_the_old_one_leads_to_the_list(
    client: AsyncClient, session: AsyncSession, project: Project, ranking: Ranking
) -> None:
    await change(client, session, ranking, "321")
    for answer in (
        await change(client, session, ranking, "123"),
        await client.get(f"/rankings/{ranking.id}/change", headers=PAGE),
    ):
        assert answer.status_code == 409
        assert f'href="/projects/{project.slug}/mine"' in answer.text


async def test_a_change_that_breaks_a_rule_comes_back(
    client: AsyncClient, session: AsyncSession, ranking: Ranking
) -> None:
    page = await change(client, session, ranking, "1")
    assert (page.status_code, "no place yet" in page.text) == (422, True)
    problem = await change(client, session, ranking, "1", **SCRIPT)
    assert (problem.status_code, problem.json()["title"]) == (422, "AnswerRefused")


@pytest.mark.parametrize("changes", [{"is_paused": True}, {"archived_at": START_OF_TIME}])
async def test_nothing_is_changed_in_a_pause(
    client: AsyncClient, session: AsyncSession, project: Project, ranking: Ranking, changes: dict[str, Any]
) -> None:
    for name, value in changes.items():
        setattr(project, name, value)
    await session.commit()
    assert (await change(client, session, ranking, "321")).status_code == 409
    assert (await client.get(f"/rankings/{ranking.id}/change", headers=PAGE)).status_code == 409
    assert f"/rankings/{ranking.id}/change" not in (await client.get(f"/projects/{project.slug}/mine")).text
    assert len(await stored(session)) == 1


async def test_somebody_elses_ranking_is_404(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User
) -> None:
    task = await make_task(session, await make_prompt(session, project), k=3)
    other = await make_ranking(session, task, annotator=await make_user(session))
    await session.commit()
    assert (await client.get(f"/rankings/{other.id}/change", headers=PAGE)).status_code == 404
    assert (await change(client, session, other, "321")).status_code == 404
    assert str(other.id) not in (await client.get(f"/projects/{project.slug}/mine")).text


async def test_a_break_gives_the_next_task_back_and_says_what_was_done(
    client: AsyncClient, session: AsyncSession, project: Project, ada: User, ranking: Ranking
) -> None:
    for _ in range(2):
        await make_task(session, await make_prompt(session, project))
    await session.commit()
    await client.get(f"/projects/{project.slug}/rank", headers=PAGE)
    following = (await client.post(f"/projects/{project.slug}/rank/ahead", headers=SCRIPT)).json()["ahead"]["lease_id"]
    answer = await client.post(f"/projects/{project.slug}/rank/pause", headers=PAGE)
    lease = await session.get_one(Lease, uuid.UUID(following), populate_existing=True)
    assert lease.state == LeaseState.EXPIRED
    page = await client.get(answer.headers["location"])
    assert "Ranked today" in page.text
    assert page.text.count("30 s") == 2


async def test_work_is_summed_up_without_counting_a_change_twice(
    session: AsyncSession, project: Project, ada: User
) -> None:
    for seconds in (10, 30, 100, None):
        task = await make_task(session, await make_prompt(session, project), k=2)
        first = await make_ranking(session, task, annotator=ada, active_seconds=seconds)
    await make_ranking(
        session, task, annotator=ada, active_seconds=500, lease_id=first.lease_id, supersedes_id=first.id
    )
    work = await own.work_since(session, project_id=project.id, annotator_id=ada.id, since=START_OF_TIME)
    assert work == own.Work(num_rankings=4, active_seconds=140, median_seconds=30)
