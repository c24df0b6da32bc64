"""A version goes live by a person's hand only for a reason, which stays."""

from __future__ import annotations

from typing import Any

import pytest
from httpx2 import AsyncClient
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import AuditEntry
from app.registry.models import Version
from app.registry.service import get_version_by_number
from app.runs.models import RunKind
from tests.factories import add, make_project, make_run, sign_in


async def refused_version(session: AsyncSession) -> Version:
    """A policy that its gate kept back."""
    project = await make_project(session, slug="careful")
    first = await get_version_by_number(session, project_id=project.id, number=1)
    run = await make_run(session, project, kind=RunKind.PPO)
    values = {"number": 2, "kind": "policy", "alias": "pocket", "parent_id": first.id, "run_id": run.id}
    gate: dict[str, Any] = {"state": "refused", "reason": "undecided", "differences": [], "newest": None}
    return await add(session, Version(project_id=project.id, gate=gate, **values))


@pytest.mark.parametrize("typed", [{}, {"reason": " \n"}])
async def test_no_version_goes_live_without_a_reason(
    client: AsyncClient, session: AsyncSession, typed: dict[str, str]
) -> None:
    version = await refused_version(session)
    await sign_in(client, session)
    answer = await client.post("/projects/careful/versions/2/promote", data=typed)
    assert answer.status_code == 422
    assert "Say why this version goes live" in answer.text
    assert 'aria-invalid="true"' in answer.text, "at its field"
    await session.refresh(version)
    assert (version.is_live, version.gate["state"]) == (False, "refused")


async def test_the_reason_stays_in_the_log(client: AsyncClient, session: AsyncSession) -> None:
    version = await refused_version(session)
    await sign_in(client, session)
    answer = await client.post("/projects/careful/versions/2/promote", data={"reason": " I read them. "})
    assert answer.status_code == 303
    await session.refresh(version)
    assert (version.is_live, version.gate["state"]) == (True, "forced")
    entry = (await session.scalars(select(AuditEntry).where(AuditEntry.action == "version.promote"))).one()
    assert "I read them." in str(entry.detail)
