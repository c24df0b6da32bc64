"""What an annotator sees of their own work: the last rankings, how much was done, and whether one may be changed."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import and_, bindparam, exists, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.accounts.models import User
from app.projects.models import Project
from app.rankings.answers import RankingAnswer
from app.rankings.models import Ranking
from app.rankings.service import RankingNotFound, RankingView, views_of
from app.tasks.models import Task
from app.tasks.waiting import WAITING, count_waiting


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


# What every ranking page asks is put together once: building it takes longer than running it. Read from the newest
# backwards to the last one before `since`, however many there are before that.
_OWN = and_(Ranking.project_id == bindparam("project_id"), Ranking.annotator_id == bindparam("annotator_id"))
_BEFORE = select(Ranking.number).where(_OWN, Ranking.created_at < bindparam("since"))
_IS_LATER = Ranking.number > func.coalesce(_BEFORE.order_by(Ranking.number.desc()).limit(1).scalar_subquery(), 0)
_DONE = select(func.count()).select_from(Ranking).where(_OWN, _IS_LATER, Ranking.supersedes_id.is_(None))
PROGRESS = WAITING.add_columns(_DONE.scalar_subquery())


@dataclass(frozen=True)
class Progress:
    """How many tasks of a project wait for an annotator (`waiting.count_waiting`), and how many they ranked today; a
    change of mind is not counted again.
    """

    num_waiting: int
    num_done: int


async def progress_of(session: AsyncSession, *, project: Project, annotator: User, now: datetime) -> Progress:
    """What waits now, and what was done today."""
    values = {"project_id": project.id, "annotator_id": annotator.id, "since": start_of_day(now), "now": now}
    *waiting, num_done = (await session.execute(PROGRESS, values)).one()
    return Progress(count_waiting(*waiting), num_done)


def start_of_day(now: datetime) -> datetime:
    """Midnight before, UTC."""
    return now.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


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
