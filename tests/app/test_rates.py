"""Rate limits: each token has its own, one address has a wider one, and a 429 says when to come back."""

from __future__ import annotations

from pathlib import Path

import pytest
from httpx2 import ASGITransport, AsyncClient, Response
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, Scope
from app.accounts.tokens import create_token
from app.config import Settings
from app.db import SessionMaker
from app.main import API, create_app
from app.rates import ADDRESS_FACTOR
from tests.factories import make_user

PER_MINUTE = 3


@pytest.fixture
async def client(sessionmaker: SessionMaker, tmp_path: Path) -> AsyncClient:
    app = create_app(Settings(data_dir=tmp_path, api_requests_per_minute=PER_MINUTE), sessionmaker)
    return AsyncClient(transport=ASGITransport(app), base_url="http://127.0.0.1:8000")


async def token(session: AsyncSession) -> dict[str, str]:
    user = await make_user(session, role=Role.ADMIN)
    _, secret = await create_token(session, user_id=user.id, name="t", scopes=[Scope.READ])
    await session.commit()
    return {"Authorization": f"Bearer {secret}"}


async def call(client: AsyncClient, headers: dict[str, str]) -> Response:
    return await client.get(f"{API}/projects", headers=headers)


async def test_what_is_left_is_told_and_then_refused(client: AsyncClient, session: AsyncSession) -> None:
    headers = await token(session)
    answers = [await call(client, headers) for _ in range(PER_MINUTE + 1)]
    assert [answer.status_code for answer in answers] == [200] * PER_MINUTE + [429]
    assert [answer.headers["ratelimit"].split(";")[1] for answer in answers] == ["r=2", "r=1", "r=0", "r=0"]
    assert answers[0].headers["ratelimit-policy"] == '"minute";q=3;w=60'
    refused = answers[-1]
    assert 0 < int(refused.headers["retry-after"]) <= 60
    assert (refused.headers["content-type"], refused.json()["title"]) == ("application/problem+json", "TooManyRequests")
    assert "content-security-policy" in refused.headers


async def test_one_token_does_not_use_up_anothers(client: AsyncClient, session: AsyncSession) -> None:
    first, second = await token(session), await token(session)
    for _ in range(PER_MINUTE + 1):
        await call(client, first)
    assert (await call(client, second)).status_code == 200


async def test_made_up_tokens_use_up_the_limit_of_their_address(client: AsyncClient) -> None:
    answers = [
        await call(client, {"Authorization": f"Bearer rl_{number}"})
        for number in range(PER_MINUTE * ADDRESS_FACTOR + 1)
    ]
    assert {answer.status_code for answer in answers[:-1]} == {401}
    assert answers[-1].status_code == 429


async def test_pages_have_no_limit(client: AsyncClient) -> None:
    answers = [await client.get("/sign-in") for _ in range(PER_MINUTE + 2)]
    assert {answer.status_code for answer in answers} == {200}
    assert "ratelimit" not in answers[-1].headers
