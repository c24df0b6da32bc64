"""*Try it*: the page of annotators for those who design the task, without a trace in any table."""

from __future__ import annotations

import re

from httpx2 import AsyncClient
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role
from tests.factories import make_project, make_prompt, make_task, sign_in

TABLES = ("leases", "rankings", "ranking_places", "tasks", "completions", "prompts")


async def sizes(session: AsyncSession) -> list[int]:
    return [await session.scalar(text(f"select count(*) from {name}")) or 0 for name in TABLES]


def cards_of(page: str) -> list[str]:
    return re.findall(r'data-id="([0-9a-f-]{36})"', page)


async def test_a_sample_is_tried_and_nothing_is_stored(client: AsyncClient, session: AsyncSession) -> None:
    await make_project(session, slug="tone", k=3, confidence="required")
    await sign_in(client, session)
    before = await sizes(session)
    page = (await client.get("/projects/tone/try")).text
    assert "nothing is stored" in page.lower()
    places = {f"place_{key}": str(place) for place, key in enumerate(cards_of(page), start=1)}
    assert len(places) == 3
    refused = await client.post("/projects/tone/try", data=places)
    assert (refused.status_code, "Say how sure you are" in refused.text) == (422, True)
    taken = await client.post("/projects/tone/try", data=places | {"confidence": "2"})
    assert (taken.status_code, "This would have been taken" in taken.text) == (200, True)
    assert re.findall(r'<span class="cell-letters">(.*?)</span>', taken.text) == ["A", "B", "C"]
    assert await sizes(session) == before


async def test_a_real_task_is_shown_where_there_is_one(client: AsyncClient, session: AsyncSession) -> None:
    project = await make_project(session, slug="tone", k=2)
    prompt = await make_prompt(session, project, messages=[{"role": "user", "content": "What is love?"}])
    await make_task(session, prompt, k=2)
    await make_task(session, await make_prompt(session, project), k=3)
    await sign_in(client, session)
    page = (await client.get("/projects/tone/try")).text
    assert "What is love?" in page
    assert len(cards_of(page)) == 2
    taken = await client.post("/projects/tone/try", data={"preference": "-2"})
    assert "This would have been taken" in taken.text


async def test_every_size_has_a_sample(client: AsyncClient, session: AsyncSession) -> None:
    await sign_in(client, session)
    for k in range(2, 10):
        await make_project(session, slug=f"size-{k}", k=k)
        await session.commit()
        assert len(cards_of((await client.get(f"/projects/size-{k}/try")).text)) == k


async def test_annotators_have_real_tasks_instead(client: AsyncClient, session: AsyncSession) -> None:
    await make_project(session, slug="tone")
    await sign_in(client, session, role=Role.ANNOTATOR)
    assert (await client.get("/projects/tone/try")).status_code == 403
