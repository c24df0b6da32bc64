"""Health, readiness and metrics: what each asks, and who may know."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from httpx2 import ASGITransport, AsyncClient
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from app.config import Settings
from app.db import SessionMaker, make_engine, make_sessionmaker
from app.main import create_app
from app.migrate import revisions

CANARY = "Zebedee-Quillfeather"


def client_of(settings: Settings, sessions: SessionMaker, *, address: str = "127.0.0.1") -> AsyncClient:
    transport = ASGITransport(create_app(settings, sessions), client=(address, 1))
    return AsyncClient(transport=transport, base_url="http://127.0.0.1:8000")


async def test_health_needs_no_database_and_readiness_does(tmp_path: Path) -> None:
    engine = make_engine("postgresql://rankloop@127.0.0.1:1/rankloop")
    async with client_of(Settings(data_dir=tmp_path), make_sessionmaker(engine)) as client:
        assert (await client.get("/health")).status_code == 200
        answer = await client.get("/ready")
        assert (answer.status_code, answer.json()) == (503, {"status": "the database does not answer"})
        metrics = await client.get("/metrics")
    await engine.dispose()
    assert metrics.status_code == 200
    assert "rankloop_database_up 0.0" in metrics.text


@pytest.mark.parametrize(("revision", "status"), [(revisions()[0], 200), ("9999", 200), (revisions()[1], 503)])
async def test_a_process_is_ready_for_tables_of_its_version_or_newer(
    client: AsyncClient, session: AsyncSession, revision: str, status: int
) -> None:
    await session.execute(text("update alembic_version set version_num = :revision"), {"revision": revision})
    await session.commit()
    assert (await client.get("/ready")).status_code == status


async def refused_projects(client: AsyncClient) -> int:
    """How often strangers asked for a project's page, as the metrics tell."""
    line = r'rankloop_http_requests_total\{method="GET",route="/projects/\{slug\}",status="401"\} (\d+)'
    found = re.search(line, (await client.get("/metrics")).text)
    return int(found[1]) if found else 0


async def test_metrics_count_patterns_and_hold_nothing_that_a_visitor_sends(client: AsyncClient) -> None:
    num_before = await refused_projects(client)
    for path in (f"/projects/{CANARY}", f"/{CANARY}", f"/sign-in?next=/{CANARY}", f"/api/v1/projects/{CANARY}"):
        await client.get(path, headers={"user-agent": CANARY, "x-request-id": CANARY})
    await client.request(CANARY, "/sign-in")
    answer = (await client.get("/metrics")).text
    assert await refused_projects(client) == num_before + 1
    assert 'route="/api/v1/projects/{project_id}"' in answer
    assert 'rankloop_http_requests_total{method="other"' in answer
    assert "rankloop_runs_queued 0.0" in answer
    assert CANARY not in answer
    assert set(re.findall(r"\{(\w+)=", answer)) <= {"method", "route", "le"}


@pytest.mark.parametrize(
    ("values", "address", "authorization", "status"),
    [
        ({}, "127.0.0.1", "", 200),
        ({}, "192.0.2.1", "", 404),
        ({"public_url": "https://rank.example.org"}, "127.0.0.1", "", 404),
        ({"metrics_token": "s3cret"}, "127.0.0.1", "", 401),
        ({"metrics_token": "s3cret"}, "127.0.0.1", "Bearer s3cre", 401),
        ({"metrics_token": "s3cret"}, "192.0.2.1", "Bearer s3cret", 200),
    ],
)
async def test_metrics_are_for_who_may_know(
    sessionmaker: SessionMaker,
    tmp_path: Path,
    values: dict[str, str],
    address: str,
    authorization: str,
    status: int,
) -> None:
    settings = Settings.model_validate({"data_dir": tmp_path, **values})
    async with client_of(settings, sessionmaker, address=address) as client:
        answer = await client.get("/metrics", headers={"authorization": authorization})
    assert answer.status_code == status
