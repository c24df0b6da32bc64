"""Versions from before there were gates have none, and their pages open all the same."""

from __future__ import annotations

from httpx2 import AsyncClient
from sqlalchemy.ext.asyncio import AsyncSession

from app.registry.models import Version
from app.registry.service import get_version_by_number
from app.runs.models import RunKind
from tests.factories import add, make_project, make_run, sign_in


async def test_a_version_without_a_gate_is_shown(client: AsyncClient, session: AsyncSession) -> None:
    project = await make_project(session, slug="old")
    first = await get_version_by_number(session, project_id=project.id, number=1)
    run = await make_run(session, project, kind=RunKind.PPO)
    values = {"number": 2, "kind": "policy", "alias": "pocket", "parent_id": first.id, "run_id": run.id}
    await add(session, Version(project_id=project.id, **values))
    await sign_in(client, session)
    for page in ("rounds", "versions", "versions/2"):
        answer = await client.get(f"/projects/old/{page}")
        assert answer.status_code == 200, page
