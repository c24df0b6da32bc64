"""Reports of broken prompts: what annotators said when they skipped a task for it, until an admin has looked at it."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import ColumnElement, and_, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.audit import audit
from app.accounts.models import User
from app.prompts.models import Prompt
from app.tasks.making import withdraw_task
from app.tasks.models import Lease, SkipKind, Task

MAX_SHOWN = 200


@dataclass(frozen=True)
class Report:
    """What one annotator said of a prompt."""

    lease: Lease
    task: Task
    prompt: Prompt
    name: str | None


def _is_open() -> ColumnElement[bool]:
    return and_(Lease.skip_kind == SkipKind.BROKEN, Lease.report_closed_at.is_(None))


async def count_reports(session: AsyncSession, *, project_id: uuid.UUID) -> int:
    """How many reports of a project nobody has looked at."""
    query = select(func.count()).select_from(Lease).join(Task, Task.id == Lease.task_id)
    return await session.scalar(query.where(Task.project_id == project_id, _is_open())) or 0


async def list_reports(
    session: AsyncSession, *, project_id: uuid.UUID, prompt_id: uuid.UUID | None = None
) -> Sequence[Report]:
    """The open reports of a project, or of one of its prompts; newest first, at most 200."""
    query = (
        select(Lease, Task, Prompt, User.name)
        .join(Task, Task.id == Lease.task_id)
        .join(Prompt, Prompt.id == Task.prompt_id)
        .outerjoin(User, User.id == Lease.annotator_id)
        .where(Task.project_id == project_id, _is_open())
        .order_by(Lease.created_at.desc(), Lease.id)
        .limit(MAX_SHOWN)
    )
    if prompt_id is not None:
        query = query.where(Task.prompt_id == prompt_id)
    return [Report(*row) for row in await session.execute(query)]


async def settle_reports(
    session: AsyncSession,
    *,
    project_id: uuid.UUID,
    prompt_id: uuid.UUID,
    is_broken: bool,
    actor_id: uuid.UUID,
    now: datetime,
) -> None:
    """Close what was reported of a prompt; if it is broken, its tasks are handed out no more. Twice is harmless."""
    here = select(Task.id).where(Task.project_id == project_id, Task.prompt_id == prompt_id)
    await session.execute(
        update(Lease)
        .where(Lease.task_id.in_(here), _is_open())
        .values(report_closed_at=now)
        .execution_options(synchronize_session=False)
    )
    for task_id in (await session.scalars(here.order_by(Task.number))).all() if is_broken else ():
        await withdraw_task(session, project_id=project_id, task_id=task_id, actor_id=actor_id)
    await audit(session, actor_id=actor_id, action="prompt.report", subject=str(prompt_id), is_broken=is_broken)
