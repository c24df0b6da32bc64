"""An answer as rows. What is locked, judged and written of it is one function of the database (`answer_lease`), as each
further way there costs more than the work.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy import TextClause, bindparam, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import make_transient_to_detached
from sqlalchemy.orm.attributes import set_committed_value

from app.rankings.models import Ranking, RankingPlace
from app.tasks.models import Lease, LeaseState

# What only the database can say of a ranking; what it is told, where flags that nobody set are off.
SAID = ("number", "transaction_id", "created_at")
TOLD = [column.name for column in Ranking.__table__.columns if column.name not in SAID]
FLAGS = {"is_surplus", "is_preloaded", "is_offline"}
PLACE = ("completion_id", "place", "rating", "labels", "denied")


def _question(call: str) -> TextClause:
    json = (bindparam(name, type_=JSONB) for name in ("given", "placed"))
    return text(f"select * from {call}").bindparams(*json)  # noqa: S608 (one of these two)


STORE = _question("store_ranking(:given, :placed)")
ANSWER = _question("answer_lease(:lease_id, :annotator_id, :given, :placed)")


async def store(session: AsyncSession, ranking: Ranking, places: Sequence[RankingPlace]) -> None:
    """Store a ranking that is not in the session yet, with its places."""
    await _ask(session, STORE, ranking, places)


async def answer(session: AsyncSession, ranking: Ranking, places: Sequence[RankingPlace], lease: Lease) -> bool:
    """Store the answer to a lease, and end that; the ranking then says whether it is surplus.

    False: nothing was stored, as the lease was answered or given back before.
    """
    ids = {"lease_id": lease.id, "annotator_id": ranking.annotator_id}
    if not await _ask(session, ANSWER, ranking, places, ids):
        return False
    set_committed_value(lease, "state", LeaseState.RELEASED if ranking.is_surplus else LeaseState.ANSWERED)
    set_committed_value(lease, "draft", None)
    return True


async def _ask(
    session: AsyncSession,
    question: TextClause,
    ranking: Ranking,
    places: Sequence[RankingPlace],
    ids: dict[str, Any] | None = None,
) -> bool:
    """Whether it was stored. If so, the session knows it from now on."""
    if session.new or session.dirty:
        await session.flush()
    given = {name: getattr(ranking, name) for name in TOLD}
    rows = {"given": _as_json(ranking, TOLD), "placed": [_as_json(place, PLACE) for place in places]}
    said = (await session.execute(question, rows | (ids or {}))).one_or_none()
    if said is None:
        return False
    for name, value in (given | said._asdict()).items():
        set_committed_value(ranking, name, value)
    make_transient_to_detached(ranking)
    session.add(ranking)
    return True


def _as_json(row: Ranking | RankingPlace, names: Sequence[str]) -> dict[str, Any]:
    return {name: _as_text(getattr(row, name)) if name not in FLAGS else bool(getattr(row, name)) for name in names}


def _as_text(value: Any) -> Any:
    """What JSON has no word for, as PostgreSQL writes it."""
    if isinstance(value, uuid.UUID):
        return str(value)
    if isinstance(value, datetime):
        return value.isoformat()
    return f"\\x{value.hex()}" if isinstance(value, bytes) else value
