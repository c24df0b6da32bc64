"""An answer as rows: the ranking, its places and the end of its lease, written by one statement.

The database checks all of it together at the end of the transaction, and each further way there would cost more than
the work that it does.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Uuid, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import make_transient_to_detached
from sqlalchemy.orm.attributes import set_committed_value

from app.rankings.models import Ranking, RankingPlace
from app.tasks.models import Lease, LeaseState

# What the database says of a ranking, and what it is told; flags that nobody set are off.
SAID = ("number", "transaction_id", "created_at")
TOLD = [column.name for column in Ranking.__table__.columns if column.name not in SAID]
FLAGS = ("is_surplus", "is_preloaded", "is_offline")
PLACE = ("completion_id", "place", "rating", "labels", "denied")
WRITE = text(
    f"""
    with closed as (update leases set state = :closed_as, draft = null where id = :closed_id),
    placed as (
        insert into ranking_places (ranking_id, task_id, {", ".join(PLACE)})
        select :id, :task_id, {", ".join(PLACE)} from jsonb_to_recordset(:placed)
            as given (completion_id uuid, place int, rating int, labels text[], denied text[]))
    insert into rankings ({", ".join(TOLD)}) values ({", ".join(f":{name}" for name in TOLD)})
    returning {", ".join(SAID)}"""  # noqa: S608 (names of columns)
).bindparams(bindparam("placed", type_=JSONB), bindparam("closed_id", type_=Uuid))


async def write(
    session: AsyncSession,
    ranking: Ranking,
    places: Sequence[RankingPlace],
    *,
    closes: Lease | None = None,
    as_state: LeaseState | None = None,
) -> None:
    """Store a ranking that is not in the session yet, with its places; `closes`: its lease, which ends `as_state`."""
    await session.flush()
    values = {name: getattr(ranking, name) for name in TOLD} | {name: bool(getattr(ranking, name)) for name in FLAGS}
    placed = [_as_json(place) for place in places]
    closed = {"closed_id": closes.id if closes else None, "closed_as": as_state}
    said = (await session.execute(WRITE, {**values, "placed": placed, **closed})).one()
    for name, value in (values | said._asdict()).items():
        set_committed_value(ranking, name, value)
    make_transient_to_detached(ranking)
    session.add(ranking)
    if closes is not None:
        set_committed_value(closes, "state", as_state)
        set_committed_value(closes, "draft", None)


def _as_json(place: RankingPlace) -> dict[str, Any]:
    return {name: getattr(place, name) for name in PLACE} | {"completion_id": str(place.completion_id)}
