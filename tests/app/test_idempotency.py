"""`Idempotency-Key`: sent twice, done once, with the same answer; and every route that creates takes one."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import pytest
from httpx2 import ASGITransport, AsyncClient, Response
from sqlalchemy import func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, Scope
from app.accounts.tokens import create_token
from app.config import Settings
from app.db import make_engine, make_sessionmaker
from app.idempotency import KEPT_FOR, IdempotentAnswer
from app.main import API, create_app
from app.projects.models import Project
from tests.factories import make_user

# Their lease, or the ranking that is revised, is the key (design, rule 2).
KEYED_OTHERWISE = {"/leases/{lease_id}/ranking", "/rankings/{ranking_id}:revise"}
PROJECT = {"name": "Once", "slug": "once", "model_alias": "tiny"}


@pytest.fixture
async def admin(client: AsyncClient, session: AsyncSession) -> AsyncClient:
    """A client with an admin's token."""
    client.headers.update(await authorization(session))
    return client


async def authorization(session: AsyncSession) -> dict[str, str]:
    user = await make_user(session, role=Role.ADMIN)
    _, secret = await create_token(session, user_id=user.id, name="test", scopes=list(Scope))
    await session.commit()
    return {"Authorization": f"Bearer {secret}"}


async def create(client: AsyncClient, key: str | None = "one", **changes: Any) -> Response:
    headers = {} if key is None else {"Idempotency-Key": key}
    return await client.post(f"{API}/projects", json=PROJECT | changes, headers=headers)


async def count_projects(session: AsyncSession) -> int | None:
    return await session.scalar(select(func.count()).select_from(Project))


async def test_the_same_again_is_the_same_answer_and_one_row(admin: AsyncClient, session: AsyncSession) -> None:
    first, second = await create(admin), await create(admin)
    assert (first.status_code, second.status_code) == (201, 201)
    assert first.content == second.content
    assert first.json()["slug"] == "once"
    assert "Idempotency-Replayed" not in first.headers
    assert second.headers["Idempotency-Replayed"] == "true"
    assert await count_projects(session) == 1


async def test_another_body_under_the_same_key_is_refused(admin: AsyncClient, session: AsyncSession) -> None:
    await create(admin)
    other = await create(admin, name="Twice", slug="twice")
    assert (other.status_code, other.json()["title"]) == (409, "KeyUsedOtherwise")
    assert await count_projects(session) == 1


async def test_another_address_under_the_same_key_is_refused(admin: AsyncClient) -> None:
    await create(admin)
    other = await admin.post(
        f"{API}/datasets", json=PROJECT | {"project_id": "once"}, headers={"Idempotency-Key": "one"}
    )
    assert other.status_code in {409, 422}
    token = await admin.post(
        f"{API}/tokens", json={"name": "x", "scopes": ["read"]}, headers={"Idempotency-Key": "one"}
    )
    assert (token.status_code, token.json()["title"]) == (409, "KeyUsedOtherwise")


async def test_a_refusal_may_be_sent_again_when_its_cause_is_mended(admin: AsyncClient, session: AsyncSession) -> None:
    headers = {"Idempotency-Key": "freeze"}
    assert (await create(admin, key=None)).status_code == 201
    refused = [await admin.post(f"{API}/datasets", json={"project_id": "once"}, headers=headers) for _ in range(2)]
    assert [answer.json()["title"] for answer in refused] == ["NothingToFreeze", "NothingToFreeze"]
    assert await session.scalar(select(func.count()).select_from(IdempotentAnswer)) == 0


async def test_one_persons_key_is_not_anothers(admin: AsyncClient, session: AsyncSession) -> None:
    await create(admin)
    admin.headers.update(await authorization(session))
    assert (await create(admin, slug="hers")).status_code == 201
    assert await count_projects(session) == 2


async def test_a_secret_is_not_kept(admin: AsyncClient, session: AsyncSession) -> None:
    async def make_token() -> Response:
        body = {"name": "ci", "scopes": ["read"]}
        return await admin.post(f"{API}/tokens", json=body, headers={"Idempotency-Key": "token"})

    first, second = await make_token(), await make_token()
    assert (first.status_code, second.status_code) == (201, 409)
    assert second.json()["title"] == "SecretWasShown"
    assert await session.scalar(select(IdempotentAnswer.body)) is None


async def test_a_key_is_forgotten_after_a_day(admin: AsyncClient, session: AsyncSession) -> None:
    await create(admin)
    aged = IdempotentAnswer.created_at - KEPT_FOR - KEPT_FOR / 100
    await session.execute(update(IdempotentAnswer).values(created_at=aged))
    await session.commit()
    assert (await create(admin, name="Later", slug="later")).status_code == 201


@pytest.mark.parametrize("key", ["", "x" * 256])
async def test_a_key_has_a_length(admin: AsyncClient, key: str) -> None:
    refused = await create(admin, key=key)
    assert refused.status_code == 422
    assert refused.json()["errors"][0]["field"] == "Idempotency-Key"


@pytest.mark.real_commits
async def test_at_the_same_moment_one_of_many_is_done(fresh_database_url: str, tmp_path: Path) -> None:
    engine = make_engine(fresh_database_url, pool_size=10)
    sessionmaker = make_sessionmaker(engine)
    async with sessionmaker() as session:
        headers = await authorization(session)
    app = create_app(Settings(data_dir=tmp_path), sessionmaker)
    async with AsyncClient(transport=ASGITransport(app), base_url="http://test", headers=headers) as client:
        answers = await asyncio.gather(*(create(client) for _ in range(8)))
    async with sessionmaker() as session:
        assert await count_projects(session) == 1
    await engine.dispose()
    assert {answer.status_code for answer in answers} == {201}
    assert len({answer.content for answer in answers}) == 1
    assert sum("Idempotency-Replayed" not in answer.headers for answer in answers) == 1


def test_every_route_that_creates_takes_a_key(tmp_path: Path) -> None:
    paths = create_app(Settings(data_dir=tmp_path)).openapi()["paths"]
    creating = {
        path: item["post"] for path, item in paths.items() if "201" in item.get("post", {}).get("responses", {})
    }
    named = {
        path.removeprefix(API)
        for path, operation in creating.items()
        if not any(item["name"] == "Idempotency-Key" for item in operation.get("parameters", ()))
    }
    assert len(creating) > 8
    assert {re.sub(r":int", "", path) for path in named} == KEYED_OTHERWISE
