"""Lists in pages: whatever the size of a page, everything comes once and in one order, made in one moment or not."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from httpx2 import ASGITransport, AsyncClient
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, Scope
from app.accounts.tokens import create_token
from app.config import Settings
from app.datasets.service import freeze
from app.db import SessionMaker
from app.main import API
from app.projects.models import Project
from tests.borrowed import borrowed_app
from tests.factories import make_project, make_prompt, make_ranking, make_run, make_task, make_user

NUM = 7


async def fill(session: AsyncSession) -> Project:
    """Seven of everything, all made in one transaction and so at one moment, and as much in another project."""
    for project in (await make_project(session, slug="other"), await make_project(session, slug="paged")):
        for number in range(NUM):
            await make_run(session, project)
            user = await make_user(session)
            await make_ranking(session, await make_task(session, await make_prompt(session, project)), annotator=user)
            await freeze(session, project=project, name=str(number))
    return project


@pytest.fixture
async def client(sessionmaker: SessionMaker, tmp_path: Path) -> AsyncIterator[AsyncClient]:
    with borrowed_app(Settings(data_dir=tmp_path), sessionmaker) as app:
        async with AsyncClient(transport=ASGITransport(app), base_url=f"http://127.0.0.1:8000{API}") as client:
            async with sessionmaker.begin() as session:
                await fill(session)
                owner = await make_user(session, role=Role.ADMIN)
                _, token = await create_token(session, user_id=owner.id, name="t", scopes=[Scope.READ, Scope.ADMIN])
            client.headers["authorization"] = f"Bearer {token}"
            yield client


def paged(document: dict[str, Any]) -> dict[str, tuple[str, str]]:
    """Every list of the API in pages: its path, the name of its cursor and, if it needs one, of its project."""
    found = {}
    for path, operations in document["paths"].items():
        names = {parameter["name"] for parameter in operations.get("get", {}).get("parameters", [])}
        if "limit" in names:
            found[path] = (next(iter(names & {"cursor", "since"}), ""), "project_id" if "project_id" in names else "")
    return found


async def walk(client: AsyncClient, path: str, names: tuple[str, str], limit: int) -> list[Any]:
    """All items, page by page."""
    cursor, project = names
    items: list[Any] = []
    params: dict[str, Any] = {"limit": limit} | ({project: "paged"} if project else {})
    for _ in range(5 * NUM):
        page = (await client.get(path.format(project_id="paged"), params=params)).raise_for_status().json()
        items += page["items"]
        if not page["items"] or page["next_cursor"] is None:
            return items
        params[cursor] = page["next_cursor"]
    raise AssertionError("it has no end")


async def test_every_list_gives_everything_once(client: AsyncClient) -> None:
    lists = paged((await client.get("/openapi.json")).json())
    assert len(lists) >= 6
    for path, names in lists.items():
        whole = await walk(client, path.removeprefix(API), names, 200)
        assert len(whole) >= NUM, path
        for limit in (1, 2, 3, NUM, NUM + 1):
            assert await walk(client, path.removeprefix(API), names, limit) == whole, (path, limit)


async def test_a_run_of_another_project_is_no_cursor(client: AsyncClient) -> None:
    other = (await client.get("/runs", params={"project_id": "other"})).json()["items"][0]["id"]
    assert (await client.get("/runs", params={"project_id": "paged", "cursor": other})).status_code == 404
