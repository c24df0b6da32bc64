"""What people said in a comparison so far: its figures, and what is left to rank."""

from __future__ import annotations

import uuid
from collections.abc import Sequence

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.loop.models import ComparedPrompt, Comparison
from app.loop.outcomes import Figures, Outcome, figures_of, outcome
from app.quality.reviews import is_rejected
from app.rankings.models import Ranking, RankingPlace
from app.rankings.service import is_current
from app.tasks.models import Task


async def measure(session: AsyncSession, comparison: Comparison) -> Figures:
    """The figures of the rankings so far, in the order in which they came; of a judge, what it said in the end."""
    if comparison.judge_version_id is not None:
        return Figures.of_json(comparison.figures) if comparison.figures else figures_of([], num_prompts=0)
    compared = (
        await session.scalars(select(ComparedPrompt).where(ComparedPrompt.comparison_id == comparison.id))
    ).all()
    by_task = {item.task_id: item for item in compared if item.task_id is not None}
    said: list[Outcome] = []
    for task_id, places in await rankings_of(session, list(by_task)):
        item = by_task[task_id]
        found = outcome(
            {place.completion_id: place.place for place in places},
            {place.completion_id: place.labels for place in places},
            of_version=item.of_version,
            of_against=item.of_against,
        )
        said += [found] if found else []
    return figures_of(said, num_prompts=len(compared), num_ties=len(compared) - len(by_task))


async def rankings_of(
    session: AsyncSession, task_ids: Sequence[uuid.UUID]
) -> list[tuple[uuid.UUID, list[RankingPlace]]]:
    """What counts of the rankings of these tasks, oldest first: (task, its places)."""
    query = select(Ranking.id, Ranking.task_id).where(Ranking.task_id.in_(task_ids), is_current(), ~is_rejected())
    found = (await session.execute(query.order_by(Ranking.number))).all()
    places: dict[uuid.UUID, list[RankingPlace]] = {row.id: [] for row in found}
    for place in await session.scalars(select(RankingPlace).where(RankingPlace.ranking_id.in_(places))):
        places[place.ranking_id].append(place)
    return [(row.task_id, places[row.id]) for row in found]


async def num_left(session: AsyncSession, comparison: Comparison) -> int:
    """How many of its tasks somebody may still rank."""
    counted = select(Ranking.id).where(Ranking.task_id == Task.id, is_current()).exists()
    query = (
        select(func.count())
        .select_from(ComparedPrompt)
        .join(Task, Task.id == ComparedPrompt.task_id)
        .where(ComparedPrompt.comparison_id == comparison.id, Task.withdrawn_at.is_(None), ~counted)
    )
    return await session.scalar(query) or 0
