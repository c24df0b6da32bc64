"""What happened to rankings, in an order that can be followed: stored, superseded, withdrawn with their task or prompt,
back again. Triggers write the rows, so that no code can forget one.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Literal, cast

from sqlalchemy import select, tuple_
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import SessionMaker
from app.rankings import service
from app.rankings.models import Ranking, RankingChange
from app.rankings.service import RankingView

PAGE = 500
# While nothing happens, look again after so many seconds; a proxy keeps a silent connection for longer than the other.
LOOK_EVERY = 1.0
SAY_SOMETHING_EVERY = 15.0

Kind = Literal["stored", "superseded", "withdrawn", "restored", "rejected", "approved"]
Cursor = tuple[int, int]


@dataclass(frozen=True)
class Change:
    """One thing that happened to a ranking, and the ranking as it is now."""

    kind: Kind
    transaction_id: int
    number: int
    at: datetime
    view: RankingView

    @property
    def cursor(self) -> str:
        """Where this change stands: what is sent to get those after it."""
        return f"{self.transaction_id}.{self.number}"


async def list_changes(
    session: AsyncSession, *, project_id: uuid.UUID, after: Cursor | None = None, limit: int = PAGE
) -> list[Change]:
    """What happened after the cursor `(transaction, number)`, oldest first; from the beginning without one."""
    place = tuple_(RankingChange.transaction_id, RankingChange.number)
    query = select(RankingChange).where(
        RankingChange.project_id == project_id, service.is_settled(RankingChange.transaction_id)
    )
    if after is not None:
        query = query.where(place > tuple_(*after))
    rows = (
        await session.scalars(query.order_by(RankingChange.transaction_id, RankingChange.number).limit(limit))
    ).all()
    views = await _views_by_id(session, {row.ranking_id for row in rows})
    return [
        Change(cast("Kind", row.kind), row.transaction_id, row.number, row.at, views[row.ranking_id]) for row in rows
    ]


async def _views_by_id(session: AsyncSession, ids: set[uuid.UUID]) -> dict[uuid.UUID, RankingView]:
    rankings = (await session.scalars(select(Ranking).where(Ranking.id.in_(ids)))).all()
    return {view.ranking.id: view for view in await service.views_of(session, rankings)}


async def all_changes(
    sessionmaker: SessionMaker, project_id: uuid.UUID, after: Cursor | None
) -> AsyncIterator[Sequence[Change]]:
    """Everything up to now, page by page: a slow reader holds no transaction open."""
    while True:
        async with sessionmaker() as session:
            changes = await list_changes(session, project_id=project_id, after=after)
        if changes:
            yield changes
        if len(changes) < PAGE:
            return
        after = (changes[-1].transaction_id, changes[-1].number)


async def follow(
    sessionmaker: SessionMaker, project_id: uuid.UUID, after: Cursor | None
) -> AsyncIterator[Sequence[Change]]:
    """Everything up to now, then what happens from now on, for as long as the reader stays.

    An empty page means that nothing happened for a while.
    """
    silent = 0.0
    while True:
        async for changes in all_changes(sessionmaker, project_id, after):
            after = (changes[-1].transaction_id, changes[-1].number)
            silent = 0.0
            yield changes
        await asyncio.sleep(LOOK_EVERY)
        silent += LOOK_EVERY
        if silent >= SAY_SOMETHING_EVERY:
            silent = 0.0
            yield ()
