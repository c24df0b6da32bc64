"""Tasks as admins and trainers list them: with their prompts, their answers and who had them."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import and_, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import User
from app.db import at_most
from app.projects import tallies
from app.prompts.models import Completion, Prompt
from app.registry.models import Version
from app.tasks.models import Lease, LeaseState, Task, TaskCompletion
from app.tasks.service import has_place

# No more are counted, as each of them is looked at.
MOST_WAITING = 10_000


async def list_completions(session: AsyncSession, task_id: uuid.UUID) -> Sequence[tuple[Completion, Version | None]]:
    """The completions of a task with the versions that wrote them, as the task was made. For admins only."""
    rows = await session.execute(
        select(Completion, Version)
        .join(TaskCompletion, TaskCompletion.completion_id == Completion.id)
        .outerjoin(Version, Version.id == Completion.version_id)
        .where(TaskCompletion.task_id == task_id)
        .order_by(TaskCompletion.position)
    )
    return [(completion, version) for completion, version in rows]


async def tasks_of_prompt(session: AsyncSession, prompt_id: uuid.UUID) -> Sequence[Task]:
    """The tasks that compare answers to a prompt, oldest first."""
    return (await session.scalars(select(Task).where(Task.prompt_id == prompt_id).order_by(Task.number))).all()


async def prompts_of_tasks(session: AsyncSession, task_ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, Prompt]:
    """The prompts of tasks, by task."""
    rows = await session.execute(
        select(Task.id, Prompt).join(Prompt, Prompt.id == Task.prompt_id).where(Task.id.in_(task_ids))
    )
    return {task_id: prompt for task_id, prompt in rows}


@dataclass(frozen=True)
class TaskRow:
    """A task in a list: with its prompt, its completions, and how many work on it."""

    task: Task
    prompt: Prompt
    completion_ids: Sequence[uuid.UUID]
    num_open: int
    num_answered: int


async def list_tasks(
    session: AsyncSession,
    *,
    project_id: uuid.UUID,
    after: int | None = None,
    limit: int = 50,
    is_waiting: bool | None = None,
) -> list[TaskRow]:
    """Tasks by number, those after `after`. `is_waiting`: only those with a free place (True), or without (False)."""
    query = select(Task, Prompt).join(Prompt, Prompt.id == Task.prompt_id).where(Task.project_id == project_id)
    if after is not None:
        query = query.where(Task.number > after)
    if is_waiting is not None:
        waiting = and_(has_place(), Task.withdrawn_at.is_(None))
        query = query.where(waiting if is_waiting else ~waiting)
    rows = (await session.execute(query.order_by(Task.number).limit(limit))).all()
    ids = [task.id for task, _ in rows]
    completions = await _completions_by_task(session, ids)
    leases = await _lease_counts(session, ids)
    return [
        TaskRow(
            task=task,
            prompt=prompt,
            completion_ids=completions.get(task.id, []),
            num_open=leases.get((task.id, LeaseState.OPEN), 0),
            num_answered=task.num_taken - leases.get((task.id, LeaseState.OPEN), 0),
        )
        for task, prompt in rows
    ]


async def _completions_by_task(session: AsyncSession, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, list[uuid.UUID]]:
    rows = await session.execute(
        select(TaskCompletion.task_id, TaskCompletion.completion_id)
        .where(TaskCompletion.task_id.in_(ids))
        .order_by(TaskCompletion.task_id, TaskCompletion.position)
    )
    found: dict[uuid.UUID, list[uuid.UUID]] = {}
    for task_id, completion_id in rows:
        found.setdefault(task_id, []).append(completion_id)
    return found


async def _lease_counts(session: AsyncSession, ids: Sequence[uuid.UUID]) -> dict[tuple[uuid.UUID, str], int]:
    rows = await session.execute(
        select(Lease.task_id, Lease.state, func.count())
        .where(Lease.task_id.in_(ids))
        .group_by(Lease.task_id, Lease.state)
    )
    return {(task_id, state): count for task_id, state, count in rows}


async def list_leases(session: AsyncSession, *, task_id: uuid.UUID) -> Sequence[tuple[Lease, str | None]]:
    """Who has or had a task, oldest first, with their names."""
    rows = await session.execute(
        select(Lease, User.name)
        .outerjoin(User, User.id == Lease.annotator_id)
        .where(Lease.task_id == task_id)
        .order_by(Lease.created_at, Lease.id)
    )
    return rows.all()


async def count_tasks(session: AsyncSession, *, project_id: uuid.UUID) -> tuple[int, int]:
    """How many tasks a project has, and how many of them still have a place: more than `MOST_WAITING` are
    not told apart."""
    waiting = select(Task.id).where(Task.project_id == project_id, has_place(), Task.withdrawn_at.is_(None))
    num_waiting = await session.scalar(
        select(func.count()).select_from(waiting.limit(at_most(MOST_WAITING + 1)).subquery())
    )
    return (await tallies.read(session, project_id)).whole().num_tasks, num_waiting or 0
