"""How much of a dataset one person may be: of whoever ranked more, so many rankings stay, and which.

A share below 1/k can't be met by k people at all, and 1/k itself only where everybody is cut to what the idlest one
has. So 2/k is always allowed: nobody is cut who ranked at most twice the mean of what stays, and teams of one or two
never are.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Mapping
from fractions import Fraction

from sqlalchemy import ColumnElement, FromClause, and_, false, func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession


def share_in_force(max_share: float, num_people: int) -> Fraction:
    """The share that no one of so many people exceeds; exact, as the decimal number that was written."""
    return max(Fraction(str(max_share)), Fraction(2, num_people))


def most_each(num_people: Mapping[int, int], max_share: float) -> int:
    """So many rankings each person keeps: the largest c with c <= share * (sum of min(n, c) over people).

    The sum is concave in c, so that whatever is below the largest c fits, too, and bisection finds it. A c of 1
    always fits; from the largest n on, nobody loses anything.

    Args:
        num_people: how many people have n rankings, by n.
    """
    share = share_in_force(max_share, sum(num_people.values()))
    num_rankings = sum(n * num for n, num in num_people.items())

    def exceeds(c: int) -> bool:
        return c > share * sum(min(n, c) * num for n, num in num_people.items())

    return bisect_right(range(int(share * num_rankings) + 1), False, key=exceeds) - 1


# In the database. `rows` have a ranking_id, a split, and an annotator by any name that tells people apart.


async def most_each_by_split(session: AsyncSession, rows: FromClause, max_share: float) -> dict[str, int]:
    """So many rankings each person keeps in each split."""
    counts = (rows.c.split, func.count().label("num"))
    people = select(*counts).group_by(rows.c.split, rows.c.annotator).subquery()
    # Different counts are few, however many people there are: a million rankings have at most 1,413 of them.
    query = select(people.c.split, people.c.num, func.count()).group_by(people.c.split, people.c.num)
    found: dict[str, dict[int, int]] = {}
    for split, num, num_people in await session.execute(query):
        found.setdefault(split, {})[num] = num_people
    return {split: most_each(num_people, max_share) for split, num_people in found.items()}


def turn(rows: FromClause) -> ColumnElement[int]:
    """Which of a person's rankings of a split each is, from 1: in an order that neither time nor the person chooses,
    and that is the same whenever one asks.
    """
    return func.row_number().over(
        partition_by=(rows.c.split, rows.c.annotator), order_by=func.sha256(func.uuid_send(rows.c.ranking_id))
    )


def is_surplus(turns: FromClause, most: Mapping[str, int]) -> ColumnElement[bool]:
    """Whether a row is more than what its person keeps. `turns` have a split and a turn."""
    return or_(false(), *[and_(turns.c.split == split, turns.c.turn > num) for split, num in most.items()])
