"""Training by the clock: a project may want a training every so many hours, where there is something new to learn."""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, select
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import SessionMaker
from app.errors import RankloopError
from app.loop import training
from app.projects.models import Project
from app.runs.models import Run, RunKind

log = logging.getLogger(__name__)
EVERY_SECONDS = 60


async def run(sessions: SessionMaker) -> None:
    """Look again and again, until cancelled. A database that is away for a while is no reason to stop."""
    while True:
        await asyncio.sleep(EVERY_SECONDS)
        try:
            await look(sessions)
        except SQLAlchemyError:
            log.exception("what is due could not be looked up; trying again in %s s", EVERY_SECONDS)


async def look(sessions: SessionMaker) -> int:
    """Start what is due in every project, each in a transaction of its own; returns how many trainings began."""
    wants = (Project.train_every_hours.is_not(None), Project.archived_at.is_(None), ~Project.is_paused)
    async with sessions() as session:
        ids = (await session.scalars(select(Project.id).where(*wants))).all()
    num_begun = 0
    for project_id in ids:
        async with sessions.begin() as session:
            # The project's lock: one web process of many begins a training.
            project = await session.get_one(Project, project_id, with_for_update={"key_share": True})
            num_begun += await train_if_due(session, project, now=datetime.now(UTC))
    return num_begun


async def train_if_due(session: AsyncSession, project: Project, *, now: datetime) -> bool:
    """Begin a training if the last one is long enough ago and rankings are new. What keeps it from starting is no
    error: it is looked at again in a minute.
    """
    if project.train_every_hours is None or await training.training_run(session, project.id) is not None:
        return False
    begun = select(func.max(Run.created_at)).where(Run.project_id == project.id, Run.kind == RunKind.REWARD)
    last = await session.scalar(begun) or project.created_at
    if last + timedelta(hours=project.train_every_hours) > now:
        return False
    if not await training.num_new_rankings(session, project.id):
        return False
    with suppress(RankloopError):
        async with session.begin_nested():
            await training.start_training(session, project=project, is_triggered=True)
            return True
    return False
