"""Why a task is skipped; what is reported of a broken prompt, and what an admin makes of it."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from httpx2 import AsyncClient
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import Role, User
from app.errors import Invalid
from app.projects.models import Project
from app.tasks import reports, service
from app.tasks.models import Lease, LeaseState, SkipKind, Task
from tests.factories import make_project, make_prompt, make_task, make_user, sign_in

NOW = datetime(2026, 11, 21, 12, tzinfo=UTC)


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    return await make_project(session)


async def skip(session: AsyncSession, project: Project, kind: SkipKind | None, words: str = "") -> Lease:
    """Somebody new skips the first task that waits."""
    annotator = await make_user(session, name="Bo")
    lease = await service.next_lease(session, project=project, annotator=annotator, now=NOW)
    assert lease is not None
    return await service.release_lease(session, lease_id=lease.id, annotator=annotator, reason=words, kind=kind)


async def reported(session: AsyncSession, project: Project) -> list[Task]:
    """Two tasks of one prompt; the first is reported twice, and a third of another prompt is skipped."""
    prompt = await make_prompt(session, project)
    tasks = [await make_task(session, prompt, overlap=5) for _ in range(2)]
    for words in ("", "half of it is missing"):
        await skip(session, project, SkipKind.BROKEN, words)
    await skip(session, project, SkipKind.LANGUAGE)
    return tasks


async def test_a_task_is_skipped_with_a_reason_from_the_list(session: AsyncSession, project: Project) -> None:
    await make_task(session, await make_prompt(session, project), overlap=9)
    for kind, words in ((None, ""), (SkipKind.SAME, ""), (SkipKind.OTHER, "it is about my own town")):
        lease = await skip(session, project, kind, words)
        assert (lease.state, lease.skip_kind, lease.skip_reason) == (LeaseState.RELEASED, kind, words or None)
    with pytest.raises(Invalid, match="in your words"):
        await skip(session, project, SkipKind.OTHER, "  ")


@pytest.mark.parametrize("is_broken", [True, False])
async def test_an_admin_withdraws_the_tasks_of_a_broken_prompt_or_dismisses_the_reports(
    client: AsyncClient, session: AsyncSession, project: Project, is_broken: bool
) -> None:
    tasks = await reported(session, project)
    await sign_in(client, session, role=Role.ADMIN)
    base = f"/projects/{project.slug}"
    assert '<span class="tag stop">2</span>' in (await client.get(f"{base}/tasks")).text
    for address in (f"{base}/reports", f"{base}/prompts/{tasks[0].prompt_id}"):
        assert "half of it is missing" in (await client.get(address)).text
    answer = await client.post(f"{base}/reports/{tasks[0].prompt_id}", data={"is_broken": str(is_broken).lower()})
    assert answer.headers["location"] == f"{base}/reports"
    assert "half of it is missing" not in (await client.get(f"{base}/reports")).text
    for task in tasks:
        await session.refresh(task)
        assert (task.withdrawn_at is not None) == is_broken


async def test_a_report_stays_in_its_project(client: AsyncClient, session: AsyncSession, project: Project) -> None:
    (task, _) = await reported(session, project)
    other = await make_project(session)
    assert await reports.count_reports(session, project_id=project.id) == 2
    assert await reports.list_reports(session, project_id=other.id) == []
    await sign_in(client, session, role=Role.ADMIN)
    answer = await client.post(f"/projects/{other.slug}/reports/{task.prompt_id}", data={"is_broken": "true"})
    assert answer.status_code == 404
    assert await reports.count_reports(session, project_id=project.id) == 2


async def test_the_page_and_the_api_send_the_kind(client: AsyncClient, session: AsyncSession, project: Project) -> None:
    ada: User = await sign_in(client, session, role=Role.ANNOTATOR)
    await make_task(session, await make_prompt(session, project))
    lease = await service.next_lease(session, project=project, annotator=ada, now=datetime.now(UTC))
    assert lease is not None
    await session.commit()
    address = f"/leases/{lease.id}/skip"
    assert (await client.post(address, data={"kind": "rude"})).status_code == 422
    assert (await client.post(address, data={"kind": "other"})).status_code == 422
    assert (await client.post(address, data={"kind": "broken", "reason": "no question"})).status_code == 303
    await session.refresh(lease)
    assert (lease.skip_kind, lease.skip_reason) == ("broken", "no question")
