"""Who may rank which task: languages that people read, and skills that prompts ask for.

Every task has an audience, of which a project has a few. Mostly somebody belongs to all of them, and nothing is asked
of the tasks; else each audience has its own order of waiting tasks in an index, so that a million tasks in another
language are not walked past.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import BigInteger, ColumnElement, Select, bindparam, exists, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import AnyUser
from app.projects.models import AnyProject
from app.tasks.models import Audience, Lease, Task


def _audiences_of(project_id: Any, annotator_id: Any) -> Select[int]:
    """The audiences of a project to which somebody belongs, by the rule that `claim_task` asks, too."""
    return select(func.audiences_of(project_id, annotator_id, type_=BigInteger).column_valued("audience_id"))


def is_for(project_id: Any, annotator_id: Any) -> ColumnElement[bool]:
    """Tasks of a project that somebody may get."""
    return Task.audience_id.in_(_audiences_of(project_id, annotator_id))


# What every next task asks is put together once.
IS_FOR_THEM = is_for(bindparam("project_id"), bindparam("annotator_id"))


def _had_by(annotator: AnyUser) -> ColumnElement[bool]:
    return exists().where(Lease.task_id == Task.id, Lease.annotator_id == annotator.id)


@dataclass(frozen=True)
class Elsewhere:
    """Tasks that wait for others: what they ask for, and how many there are."""

    language: str
    skills: Sequence[str]
    num: int


async def waiting_elsewhere(session: AsyncSession, project: AnyProject, annotator: AnyUser) -> list[Elsewhere]:
    """What waits in this project and asks for a language or for skills that this person does not have."""
    num = func.count(Task.id)
    query = (
        select(Audience.language, Audience.skills, num)
        .join(Task, Task.audience_id == Audience.id)
        .where(Audience.project_id == project.id, Audience.id.not_in(_audiences_of(project.id, annotator.id)))
        .where(Task.num_taken < Task.overlap, ~Task.is_gold, Task.withdrawn_at.is_(None), ~_had_by(annotator))
        .group_by(Audience.id)
        .order_by(num.desc(), Audience.id)
    )
    return [Elsewhere(language, skills, count) for language, skills, count in await session.execute(query)]


# Tasks wait, and of all who have a role here nobody belongs to their audience. The limit has one task of each audience
# looked up: as a mere condition, PostgreSQL may first put together the audiences of all tasks that wait.
FOR_NOBODY = text(
    """
    select a.* from audiences a, lateral (
        select from tasks t
        where t.audience_id = a.id and t.num_taken < t.overlap and t.withdrawn_at is null and not t.is_gold limit 1
    ) waiting
    where a.project_id = :project_id and not exists (
        select from users u left join memberships m on m.user_id = u.id and m.project_id = a.project_id
        where u.disabled_at is null and coalesce(m.role, u.role) is not null and is_in_audience(a, u, m)
    ) order by a.language, a.skills
    """
)


async def for_nobody(session: AsyncSession, project: AnyProject) -> Sequence[Audience]:
    """What waits for somebody whom the project does not have: a language, or skills."""
    query = select(Audience).from_statement(FOR_NOBODY)
    return (await session.scalars(query, {"project_id": project.id})).all()


async def of_task(session: AsyncSession, task_id: uuid.UUID) -> Audience | None:
    """Who may rank a task."""
    query = select(Audience).join(Task, Task.audience_id == Audience.id).where(Task.id == task_id)
    return await session.scalar(query)
