"""Quality without anybody looking: once a minute people with new rankings are measured, and disagreements queued."""

from __future__ import annotations

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import SessionMaker
from app.projects import tallies
from app.projects.models import Project
from app.quality import gold, reviews, service

EVERY_SECONDS = 60
SMALL = 1000
"""A project with so many rankings is measured within a tenth of a second."""
LOCK = 0x9A1177
"""Of PostgreSQL's advisory locks: one web process of many looks at a project."""


async def look(sessions: SessionMaker) -> int:
    """Measure what is new in every project, each in a transaction of its own; returns how many people were measured."""
    async with sessions() as session:
        projects = (await session.scalars(select(Project).where(Project.archived_at.is_(None)))).all()
    num_measured = 0
    for project in projects:
        async with sessions.begin() as session:
            num_measured += await look_at(session, project)
    return num_measured


async def look_on_the_way(session: AsyncSession, project: Project) -> None:
    """Measure a small project before somebody reads what was measured; in others the last minute's figures will do."""
    if (await tallies.read(session, project.id)).whole().num_rankings <= SMALL:
        await look_at(session, project)
        await reviews.fill_queue(session, project)


async def look_at(session: AsyncSession, project: Project) -> int:
    """Measure one project, unless another process is at it. Where nobody ranked, nothing is read."""
    lock = func.pg_try_advisory_xact_lock(LOCK, func.hashtext(str(project.id)))
    if not await session.scalar(select(lock)):
        return 0
    known = await gold.known_orders(session, project)
    num_measured = await service.measure_people(session, project, gold=known)
    if num_measured:
        await reviews.fill_queue(session, project)
    return num_measured
