"""The audit log: who did what. It only grows."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import Text, cast, or_, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.accounts.models import AuditEntry, User


async def audit(session: AsyncSession, *, actor_id: uuid.UUID | None, action: str, subject: str, **detail: Any) -> None:
    """Write down who did what. Never names or addresses: the log outlives the people in it."""
    session.add(AuditEntry(actor_id=actor_id, action=action, subject=subject, detail=detail))


@dataclass(frozen=True)
class AuditRow:
    """An entry of the log, with the names of today of who did it and of whom it is about, where it is a person."""

    entry: AuditEntry
    actor: str | None
    about: str | None


async def list_audit(
    session: AsyncSession, *, action: str = "", person_id: uuid.UUID | None = None, before: int | None, limit: int
) -> list[AuditRow]:
    """The log, newest first: one kind of entry, or what one person did and what was done to them."""
    actor, about = aliased(User), aliased(User)
    query = (
        select(AuditEntry, actor.name, about.name)
        .outerjoin(actor, actor.id == AuditEntry.actor_id)
        .outerjoin(about, cast(about.id, Text) == AuditEntry.subject)
        .order_by(AuditEntry.id.desc())
        .limit(limit)
    )
    if action:
        query = query.where(AuditEntry.action == action)
    if person_id:
        query = query.where(or_(AuditEntry.actor_id == person_id, AuditEntry.subject == str(person_id)))
    if before is not None:
        query = query.where(AuditEntry.id < before)
    return [AuditRow(*row) for row in await session.execute(query)]


async def list_actions(session: AsyncSession) -> Sequence[str]:
    """The kinds of entries that the log has."""
    return (await session.scalars(select(AuditEntry.action).distinct().order_by(AuditEntry.action))).all()
