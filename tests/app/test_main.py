"""What every request meets: a limit on bodies, and text that PostgreSQL can't keep."""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from fastapi.dependencies.models import Dependant
from httpx2 import ASGITransport, AsyncClient
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, Scope
from app.accounts.tokens import create_token
from app.config import Settings
from app.db import make_engine, make_sessionmaker
from app.main import DOMAINS, PAGES
from tests.app.matrix import every_route
from tests.borrowed import borrowed_app
from tests.factories import make_user


@pytest.fixture
async def headers(session: AsyncSession) -> dict[str, str]:
    """An admin's token."""
    user = await make_user(session, role=Role.ADMIN)
    _, secret = await create_token(session, user_id=user.id, name="t", scopes=[Scope.ADMIN, Scope.READ])
    await session.commit()
    return {"authorization": f"Bearer {secret}"}


@pytest.mark.parametrize("text", [r"before\u0000after", r"\ud800", r"\udfff after"])
@pytest.mark.parametrize("field", ["name", "slug", "guidelines", "model_alias"])
async def test_text_that_the_database_cannot_keep_is_refused_by_its_field(
    client: AsyncClient, headers: dict[str, str], field: str, text: str
) -> None:
    project = {"name": "Nul", "model_alias": "pocket"} | {field: "hostile"}
    body = json.dumps(project).replace("hostile", text)
    answer = await client.post("/api/v1/projects", content=body, headers=headers | {"content-type": "application/json"})
    assert (answer.status_code, [error["field"] for error in answer.json()["errors"]]) == (422, [field])


@pytest.mark.parametrize("letters", ["%00", "a%00b", "%ed%a0%80", "%ff"])
@pytest.mark.parametrize(
    "path", ["/projects/{}", "/projects/{}/prompts", "/runs?project_id={}", "/prompts?project_id={}"]
)
async def test_an_address_that_the_database_cannot_look_for_is_refused(
    client: AsyncClient, headers: dict[str, str], path: str, letters: str
) -> None:
    answer = await client.get("/api/v1" + path.format(letters), headers=headers)
    assert answer.status_code in {404, 422}, answer.text


@pytest.mark.real_commits
async def test_who_gets_no_connection_is_told_to_try_again(fresh_database_url: str, tmp_path: Path) -> None:
    engine = make_engine(fresh_database_url, pool_size=1, max_overflow=0, pool_timeout=0.05)
    with borrowed_app(Settings(data_dir=tmp_path), make_sessionmaker(engine)) as app:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://127.0.0.1:8000") as client:
            client.headers["authorization"] = "Bearer rl_nobody"
            async with engine.connect():
                assert (await client.get("/api/v1/projects")).status_code == 503
            assert (await client.get("/api/v1/projects")).status_code == 401
    await engine.dispose()


def calls(dependant: Dependant) -> Iterator[Callable[..., object]]:
    """What is called to answer a route: its handler, and all that this depends on."""
    assert dependant.call
    yield dependant.call
    for needed in dependant.dependencies:
        yield from calls(needed)


def test_nothing_that_answers_waits_for_a_thread() -> None:
    """FastAPI runs what is no coroutine in a thread: two milliseconds of each request, where others want the core."""
    every = {
        call
        for route in every_route([module.router for module in (*PAGES, *DOMAINS)])
        for call in calls(route.dependant)
    }
    kinds = (inspect.iscoroutinefunction, inspect.isasyncgenfunction)
    assert {call for call in every if not any(kind(call) or kind(type(call).__call__) for kind in kinds)} == set()
