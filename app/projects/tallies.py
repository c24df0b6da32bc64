"""How much a project holds: prompts, tasks, rankings. Triggers count it as it comes in, so that no page counts a table.
One row an event, put together now and then; the sums are exact at every moment.
"""

from __future__ import annotations

import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from sqlalchemy import BigInteger, Column, Index, Integer, Table, Text, Uuid, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import Base, SessionMaker

COUNTS = ("num_prompts", "num_tasks", "num_places", "num_ranked", "num_rankings", "num_learnable")
EVERY_SECONDS = 15
FOLD_ABOVE = 500
"""A project's rows are put together when they are more than this: a page reads so many in a millisecond."""

tallies = Table(
    "tallies",
    Base.metadata,
    Column("project_id", Uuid, nullable=False),
    Column("round", Integer),
    Column("split", Text, nullable=False),
    *[Column(name, BigInteger, server_default="0", nullable=False) for name in COUNTS],
    Index("ix_tallies_project", "project_id"),
)


@dataclass(frozen=True)
class Tally:
    """What there is, of a project or of a part of it."""

    round: int | None = None
    split: str = ""
    num_prompts: int = 0
    num_tasks: int = 0
    num_places: int = 0
    """Rankings that the tasks want: the sum of their overlap. Gold and withdrawn tasks want none."""
    num_ranked: int = 0
    """Current rankings of the tasks that want some."""
    num_rankings: int = 0
    """Current rankings but those of gold tasks and of comparisons; of withdrawn tasks, too."""
    num_learnable: int = 0
    """Of these, what a dataset of everything would hold now."""


@dataclass(frozen=True)
class Tallies:
    """The parts of a project: a row a round and split."""

    rows: Sequence[Tally]

    def whole(self, chosen: Callable[[Tally], bool] = lambda _: True) -> Tally:
        """The sum of all parts, or of those chosen."""
        rows = [row for row in self.rows if chosen(row)]
        return Tally(**{name: sum(getattr(row, name) for row in rows) for name in COUNTS})

    def of_round(self, number: int) -> Tally:
        """What belongs to a round."""
        return self.whole(lambda row: row.round == number)

    def of_split(self, split: str) -> Tally:
        """What belongs to prompts of a split."""
        return self.whole(lambda row: row.split == split)


async def read(session: AsyncSession, project_id: uuid.UUID) -> Tallies:
    """What a project holds at this moment."""
    sums = [func.sum(tallies.c[name]).label(name) for name in COUNTS]
    query = select(tallies.c.round, tallies.c.split, *sums).where(tallies.c.project_id == project_id)
    rows = await session.execute(query.group_by(tallies.c.round, tallies.c.split))
    return Tallies([Tally(row.round, row.split, *map(int, row[2:])) for row in rows])


FOLD = text(f"""
    with gone as (
        delete from tallies where project_id in (
            select project_id from tallies group by project_id having count(*) > :above
        )
        returning *
    )
    insert into tallies (project_id, round, split, {", ".join(COUNTS)})
    select project_id, round, split, {", ".join(f"sum({name})" for name in COUNTS)}
    from gone group by project_id, round, split
    returning project_id""")  # noqa: S608 (names of columns)


async def fold(sessions: SessionMaker, *, above: int = FOLD_ABOVE) -> int:
    """Put the rows together of projects that have many; returns how many rows replaced them.

    Whoever reads meanwhile sees the old rows or the new ones. What is written meanwhile stays as it is for the next
    time; of two who do this at once, the second finds nothing.
    """
    async with sessions.begin() as session:
        return len((await session.scalars(FOLD, {"above": above})).all())
