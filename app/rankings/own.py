"""What an annotator sees of their own work: the last rankings, how much was done, and whether one may be changed."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime

from sqlalchemy import exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.accounts.models import User
from app.rankings.answers import RankingAnswer
from app.rankings.models import Ranking
from app.rankings.service import RankingNotFound, RankingView, views_of
from app.tasks.models import Task


@dataclass(frozen=True)
class Work:
    """What was done in a stretch of time. Seconds are those at work, where pages told them."""

    num_rankings: int
    active_seconds: float | None
    median_seconds: float | None


async def work_since(session: AsyncSession, *, project_id: uuid.UUID, annotator_id: uuid.UUID, since: datetime) -> Work:
    """An annotator's work in a project since then; a change of mind is not counted again."""
    seconds = Ranking.active_seconds
    row = await session.execute(
        select(func.count(), func.sum(seconds), func.percentile_cont(0.5).within_group(seconds)).where(
            Ranking.project_id == project_id,
            Ranking.annotator_id == annotator_id,
            Ranking.supersedes_id.is_(None),
            Ranking.created_at >= since,
        )
    )
    return Work(*row.one())


async def list_own(
    session: AsyncSession, *, project_id: uuid.UUID, annotator: User, before: int | None = None, limit: int = 20
) -> Sequence[RankingView]:
    """An annotator's rankings in a project, one a task, newest first: those with a number below `before`."""
    newer = aliased(Ranking)
    query = select(Ranking).where(
        Ranking.project_id == project_id,
        Ranking.annotator_id == annotator.id,
        Ranking.lease_id.is_not(None),
        ~exists().where(newer.supersedes_id == Ranking.id),
    )
    if before is not None:
        query = query.where(Ranking.number < before)
    return await views_of(session, (await session.scalars(query.order_by(Ranking.number.desc()).limit(limit))).all())


async def reviewed_among(session: AsyncSession, views: Sequence[RankingView]) -> set[uuid.UUID]:
    """Which of these rankings stay as they are: a reviewer has decided about them, or a qualification has."""
    ids = [view.ranking.id for view in views]
    query = select(Ranking.id).join(Task, Task.id == Ranking.task_id)
    stays = or_(Ranking.number <= Task.settled_number, Task.is_qualifying)
    return set(await session.scalars(query.where(Ranking.id.in_(ids), stays)))


async def find_own(session: AsyncSession, *, ranking_id: uuid.UUID, annotator: User) -> RankingView:
    """One of an annotator's own rankings.

    Raises:
        RankingNotFound: there is none, or it is somebody else's.
    """
    ranking = await session.scalar(
        select(Ranking).where(
            Ranking.id == ranking_id, Ranking.annotator_id == annotator.id, Ranking.lease_id.is_not(None)
        )
    )
    if ranking is None:
        raise RankingNotFound
    return (await views_of(session, [ranking]))[0]


def answer_of(view: RankingView) -> RankingAnswer:
    """What was answered, to be changed."""
    places = view.places
    return RankingAnswer(
        places={key: place.place for key, place in places.items()},
        ratings={key: place.rating for key, place in places.items() if place.rating is not None},
        labels={key: place.labels for key, place in places.items()},
        denied={key: place.denied for key, place in places.items()},
        rationale=view.ranking.rationale,
        confidence=view.ranking.confidence,
        all_bad=view.ranking.all_bad,
        strength=view.ranking.strength,
    )
