"""An answer as rows. What is locked, judged and written of it is one function of the database (`answer_lease`), as each
further way there costs more than the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pydantic_core import to_json
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import make_transient_to_detached
from sqlalchemy.orm.attributes import set_committed_value

from app import facts
from app.facts import Question
from app.rankings.models import PlaceFacts, Ranking
from app.tasks.models import AnyLease, Lease, LeaseState

# What only the database can say of a ranking; what it is told, where flags that nobody set are off.
SAID = ("number", "transaction_id", "created_at", "is_surplus", "is_preloaded", "is_offline")
FLAGS = ("is_surplus", "is_preloaded", "is_offline")
TOLD = [column.name for column in Ranking.__table__.columns if column.name not in SAID]


def _question(call: str) -> Question:
    return Question.of(f"select {', '.join(SAID)} from {call}", *[None] * len(SAID))  # noqa: S608 (one of these two)


ANSWER = "%(lease_id)s, %(annotator_id)s, %(given)s::jsonb, %(placed)s::jsonb"
STORE_RANKING = _question("store_ranking(%(given)s::jsonb, %(placed)s::jsonb)")
ANSWER_LEASE = _question(f"answer_lease({ANSWER})")


async def store(session: AsyncSession, ranking: Ranking, places: Sequence[PlaceFacts]) -> None:
    """Store a ranking that is not in the session yet, with its places."""
    await _ask(session, STORE_RANKING, ranking, places)


async def answer(session: AsyncSession, ranking: Ranking, places: Sequence[PlaceFacts], lease: AnyLease) -> bool:
    """Store the answer to a lease, and end that; the ranking then says whether it is surplus.

    False: nothing was stored, as the lease was answered or given back before.
    """
    ids = {"lease_id": lease.id, "annotator_id": ranking.annotator_id}
    if not await _ask(session, ANSWER_LEASE, ranking, places, ids):
        return False
    if isinstance(lease, Lease):
        set_committed_value(lease, "state", LeaseState.RELEASED if ranking.is_surplus else LeaseState.ANSWERED)
        set_committed_value(lease, "draft", None)
    return True


async def _ask(
    session: AsyncSession,
    question: Question,
    ranking: Ranking,
    places: Sequence[PlaceFacts],
    ids: dict[str, Any] | None = None,
) -> bool:
    """Whether it was stored. If so, the session knows it from now on."""
    given = {name: getattr(ranking, name) for name in TOLD}
    told = (
        given | {name: bool(getattr(ranking, name)) for name in FLAGS} | {"body_hash": f"\\x{ranking.body_hash.hex()}"}
    )
    sent = {"given": _as_json(told), "placed": _as_json([place._asdict() for place in places])}
    said = await facts.ask(session, question, sent | (ids or {}))
    if said is None:
        return False
    for name, value in (given | dict(zip(SAID, said, strict=True))).items():
        set_committed_value(ranking, name, value)
    make_transient_to_detached(ranking)
    session.add(ranking)
    return True


def _as_json(told: Any) -> str:
    return to_json(told).decode()
