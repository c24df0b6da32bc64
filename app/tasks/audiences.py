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

from sqlalchemy import ARRAY, ColumnElement, Text, and_, any_, bindparam, exists, func, literal, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import User
from app.projects.models import Project
from app.tasks.models import Audience, Lease, Task


def _fits(languages: ColumnElement[Any], skills: ColumnElement[Any]) -> ColumnElement[bool]:
    """Audiences of who reads these languages, all if none is named, and has these skills."""
    reads = or_(func.cardinality(languages) == 0, Audience.language == "", Audience.language == any_(languages))
    return and_(reads, Audience.skills.contained_by(skills))


# What every next task asks is put together once; `asked_of` has the values.
FITS = _fits(bindparam("languages", type_=ARRAY(Text)), bindparam("skills", type_=ARRAY(Text)))
IS_FOR_THEM = Task.audience_id.in_(select(Audience.id).where(FITS))
OF_PROJECT = select(Audience.id, FITS).where(Audience.project_id == bindparam("project_id"))


def asked_of(annotator: User) -> dict[str, Any]:
    """What `FITS` wants to know of somebody."""
    return {"languages": annotator.languages, "skills": annotator.skills}


def fits(annotator: User) -> ColumnElement[bool]:
    """Audiences that somebody belongs to."""
    return _fits(literal(annotator.languages, ARRAY(Text)), literal(annotator.skills, ARRAY(Text)))


def is_for(annotator: User) -> ColumnElement[bool]:
    """Tasks that somebody may get."""
    return Task.audience_id.in_(select(Audience.id).where(fits(annotator)))


def _had_by(annotator: User) -> ColumnElement[bool]:
    return exists().where(Lease.task_id == Task.id, Lease.annotator_id == annotator.id)


@dataclass(frozen=True)
class Elsewhere:
    """Tasks that wait for others: what they ask for, and how many there are."""

    language: str
    skills: Sequence[str]
    num: int


async def waiting_elsewhere(session: AsyncSession, project: Project, annotator: User) -> list[Elsewhere]:
    """What waits in this project and asks for a language or for skills that this person does not have."""
    num = func.count(Task.id)
    query = (
        select(Audience.language, Audience.skills, num)
        .join(Task, Task.audience_id == Audience.id)
        .where(Audience.project_id == project.id, ~fits(annotator), Task.num_taken < Task.overlap)
        .where(~Task.is_gold, Task.withdrawn_at.is_(None), ~_had_by(annotator))
        .group_by(Audience.id)
        .order_by(num.desc(), Audience.id)
    )
    return [Elsewhere(language, skills, count) for language, skills, count in await session.execute(query)]


async def of_task(session: AsyncSession, task_id: uuid.UUID) -> Audience | None:
    """Who may rank a task."""
    query = select(Audience).join(Task, Task.audience_id == Audience.id).where(Task.id == task_id)
    return await session.scalar(query)
