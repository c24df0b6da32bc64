"""The feed of changes: all that happens to a ranking is in it, in order, and what commits late is not skipped."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import UTC, datetime

import pytest
from httpx2 import AsyncClient
from sqlalchemy import update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, Scope
from app.accounts.tokens import create_token
from app.db import SessionMaker, make_engine, make_sessionmaker
from app.projects.models import Project
from app.prompts.models import Prompt
from app.rankings import changes
from app.rankings.api import change_events
from app.rankings.models import RankingChange
from app.tasks.models import Task
from tests.factories import make_project, make_prompt, make_ranking, make_task, make_user

API = "/api/v1"


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    return await make_project(session, slug="feed")


async def new_task(session: AsyncSession, project: Project) -> Task:
    return await make_task(session, await make_prompt(session, project), k=2)


async def reader(session: AsyncSession) -> dict[str, str]:
    admin = await make_user(session, role=Role.ADMIN)
    _, secret = await create_token(session, user_id=admin.id, name="trainer", scopes=[Scope.READ])
    await session.commit()
    return {"Authorization": f"Bearer {secret}"}


async def kinds(session: AsyncSession, project: Project) -> list[str]:
    return [change.kind for change in await changes.list_changes(session, project_id=project.id)]


async def test_a_change_of_mind_is_told_with_what_it_replaces(session: AsyncSession, project: Project) -> None:
    task = await new_task(session, project)
    first = await make_ranking(session, task)
    second = await make_ranking(session, task, lease_id=first.lease_id, supersedes_id=first.id)
    found = await changes.list_changes(session, project_id=project.id)
    assert [(change.kind, change.view.ranking.id) for change in found] == [
        ("stored", first.id),
        ("superseded", first.id),
        ("stored", second.id),
    ]
    assert found[1].view.superseded_by == second.id


async def test_what_is_withdrawn_is_told_and_so_is_what_comes_back(session: AsyncSession, project: Project) -> None:
    task = await new_task(session, project)
    await make_ranking(session, task)
    await make_ranking(session, await new_task(session, project))
    for withdrawn_at in (datetime.now(UTC), datetime.now(UTC), None):
        await session.execute(update(Task).where(Task.id == task.id).values(withdrawn_at=withdrawn_at))
        await session.execute(update(Prompt).where(Prompt.id == task.prompt_id).values(withdrawn_at=withdrawn_at))
    assert await kinds(session, project) == ["stored", "stored", *["withdrawn"] * 2, *["restored"] * 2]


async def test_the_log_is_not_rewritten(session: AsyncSession, project: Project) -> None:
    await make_ranking(session, await new_task(session, project))
    with pytest.raises(IntegrityError):
        await session.execute(update(RankingChange).values(kind="rejected"))


async def test_other_projects_are_not_told_of(session: AsyncSession, project: Project) -> None:
    await make_ranking(session)
    assert await kinds(session, project) == []


async def test_pages_follow_each_other(client: AsyncClient, session: AsyncSession, project: Project) -> None:
    stored = [str((await make_ranking(session, await new_task(session, project))).id) for _ in range(3)]
    headers = await reader(session)
    seen: list[str] = []
    cursor: str | None = ""
    for _ in range(3):
        address = f"{API}/projects/feed/changes?limit=2&since={cursor}"
        page = (await client.get(address, headers=headers)).json()
        seen += [item["ranking"]["id"] for item in page["items"]]
        cursor = page["next_cursor"]
    assert seen == stored
    assert page["items"] == []


async def test_the_whole_comes_as_lines(client: AsyncClient, session: AsyncSession, project: Project) -> None:
    rankings = [await make_ranking(session, await new_task(session, project)) for _ in range(2)]
    headers = await reader(session) | {"Accept": "application/x-ndjson"}
    answer = await client.get(f"{API}/projects/feed/changes", headers=headers)
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [(line["change"], line["ranking"]["id"]) for line in lines] == [
        ("stored", str(ranking.id)) for ranking in rankings
    ]
    rest = await client.get(f"{API}/projects/feed/changes?since={lines[0]['cursor']}", headers=headers)
    assert rest.text.splitlines() == answer.text.splitlines()[1:]


# Between transactions


@pytest.fixture
async def committed(fresh_database_url: str) -> AsyncIterator[SessionMaker]:
    engine = make_engine(fresh_database_url, pool_size=6)
    yield make_sessionmaker(engine)
    await engine.dispose()


@pytest.mark.real_commits
async def test_what_commits_late_is_not_skipped(committed: SessionMaker) -> None:
    async with committed.begin() as session:
        project = await make_project(session, slug="late")
        tasks = [await new_task(session, project) for _ in range(3)]
    async with committed() as slow:
        early = await make_ranking(slow, tasks[0])
        async with committed.begin() as quick:
            late = await make_ranking(quick, tasks[1])
        async with committed() as session:
            held = await changes.list_changes(session, project_id=project.id)
        await slow.commit()
    assert held == [], "what is newer than an open transaction waits for it"
    async with committed() as session:
        found = await changes.list_changes(session, project_id=project.id)
    assert [change.view.ranking.id for change in found] == [early.id, late.id]


@pytest.mark.real_commits
async def test_who_follows_hears_of_what_happens_next(committed: SessionMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "LOOK_EVERY", 0.02)
    async with committed.begin() as session:
        project = await make_project(session, slug="live")
        tasks = [await new_task(session, project) for _ in range(2)]
        before = await make_ranking(session, tasks[0])
    events = change_events(changes.follow(committed, project.id, None))
    first = await anext(events)
    waiting = asyncio.ensure_future(anext(events))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    async with committed.begin() as session:
        after = await make_ranking(session, tasks[1])
    second = await asyncio.wait_for(waiting, 30)
    assert [event_of(first)["ranking"]["id"], event_of(second)["ranking"]["id"]] == [str(before.id), str(after.id)]
    assert first.startswith(b"event: stored\n")
    assert f"id: {event_of(first)['cursor']}".encode() in first


@pytest.mark.real_commits
async def test_silence_is_broken_by_a_comment(committed: SessionMaker, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(changes, "LOOK_EVERY", 0.01)
    monkeypatch.setattr(changes, "SAY_SOMETHING_EVERY", 0.03)
    async with committed.begin() as session:
        project = await make_project(session, slug="silent")
    events = change_events(changes.follow(committed, project.id, None))
    assert await asyncio.wait_for(anext(events), 30) == b": still here\n\n"


def event_of(raw: bytes) -> dict[str, dict[str, str]]:
    line = next(line for line in raw.decode().splitlines() if line.startswith("data: "))
    found: dict[str, dict[str, str]] = json.loads(line.removeprefix("data: "))
    return found
