"""Training by itself: where enough rankings are new, and where the last training is so many hours ago.

Nobody who ranks waits for it: the clock looks every few seconds, and freezes and queues in a transaction of its own.
"""

from __future__ import annotations

import math
import uuid
from contextlib import suppress
from datetime import UTC, datetime, timedelta

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import SessionMaker
from app.errors import RankloopError
from app.loop import service, training
from app.loop.ending import OPEN_STATES
from app.loop.gates import GateState
from app.loop.models import Comparison, ComparisonState
from app.projects.models import Project
from app.registry.models import Version
from app.runs.models import Run, RunKind

EVERY_SECONDS = 5


async def look(sessions: SessionMaker) -> int:
    """Start what is due in every project, each in a transaction of its own; returns how many trainings began."""
    wants = or_(Project.train_every_hours.is_not(None), Project.train_threshold.is_not(None))
    async with sessions() as session:
        query = select(Project).where(wants, Project.archived_at.is_(None), ~Project.is_paused)
        due = [item.id for item in await session.scalars(query) if await is_due(session, item, now=datetime.now(UTC))]
    num_begun = 0
    for project_id in due:
        async with sessions.begin() as session:
            num_begun += await train_if_due(session, project_id, now=datetime.now(UTC))
    return num_begun


async def is_due(session: AsyncSession, project: Project, *, now: datetime) -> bool:
    """Whether a training is to begin: no other is under way, nobody decides about what the last one made, and rankings
    are new, enough of them or after so long.
    """
    num_new = await training.num_new_rankings(session, project.id)
    if not num_new or await training.training_run(session, project.id) is not None:
        return False
    if await is_being_decided(session, project):
        return False
    return num_new >= (project.train_threshold or math.inf) or await is_time(session, project, now=now)


async def is_being_decided(session: AsyncSession, project: Project) -> bool:
    """Whether people, or a judge, are asked at this moment about the policy of the current round, which waits at its
    gate: another training would take its place, and all that they say would be for nothing.

    Where what draws or judges the answers has failed, nothing decides any more, and the next training need not wait.
    """
    now = await service.current_round(session, project)
    query = (
        select(Comparison.state)
        .join(Version, Version.id == Comparison.version_id)
        .where(Version.run_id == now.policy_run_id, Version.gate["state"].as_string() == GateState.WAITING)
        .where(Comparison.state.in_(OPEN_STATES))
    )
    states = set(await session.scalars(query))
    if states == {ComparisonState.SAMPLING}:
        return await service.open_run(session, project.id, kinds=(RunKind.EVALUATE, RunKind.JUDGE)) is not None
    return bool(states)


async def is_time(session: AsyncSession, project: Project, *, now: datetime) -> bool:
    """Whether the last training, or the project's beginning, is as long ago as the project says."""
    if project.train_every_hours is None:
        return False
    begun = select(func.max(Run.created_at)).where(Run.project_id == project.id, Run.kind == RunKind.REWARD)
    last = await session.scalar(begun) or project.created_at
    return last + timedelta(hours=project.train_every_hours) <= now


async def train_if_due(session: AsyncSession, project_id: uuid.UUID, *, now: datetime) -> bool:
    """Begin a training if one is due. What keeps it from starting is no error: it is looked at again in its time."""
    # One web process of many begins a training: `start_training` refuses the others.
    project = await session.get_one(Project, project_id)
    if not await is_due(session, project, now=now):
        return False
    with suppress(RankloopError):
        async with session.begin_nested():
            await training.start_training(session, project=project, is_triggered=True)
            return True
    return False
