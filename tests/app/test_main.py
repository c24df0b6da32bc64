"""What every request meets: a limit on bodies, and text that PostgreSQL can't keep."""

from __future__ import annotations

from pathlib import Path

import pytest
from httpx2 import ASGITransport, AsyncClient
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, Scope
from app.accounts.service import create_token
from app.config import Settings
from app.db import make_engine, make_sessionmaker
from tests.borrowed import borrowed_app
from tests.factories import make_user


@pytest.fixture
async def headers(session: AsyncSession) -> dict[str, str]:
    """An admin's token."""
    user = await make_user(session, role=Role.ADMIN)
    _, secret = await create_token(session, user_id=user.id, name="t", scopes=[Scope.ADMIN])
    await session.commit()
    return {"authorization": f"Bearer {secret}"}


async def test_text_that_the_database_cannot_keep_is_refused(client: AsyncClient, headers: dict[str, str]) -> None:
    project = {"name": "Nul", "model_alias": "pocket", "guidelines": "before\0after"}
    answer = await client.post("/api/v1/projects", json=project, headers=headers)
    assert answer.status_code == 422
    assert "NUL" in answer.json()["detail"]


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
