"""Erasing a person (design, rule 5): their name, address and all that lets them in go for good.

Their row stays, under a name that tells nothing, so that who ranked what can still be counted: agreement and the
quality of annotators need it, and a random id is no personal data any more.
"""

from __future__ import annotations

import uuid
from datetime import UTC, datetime

from sqlalchemy import delete, func, text, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import attempts, service
from app.accounts.audit import audit
from app.accounts.models import (
    ApiToken,
    Attempts,
    Identity,
    Invitation,
    Membership,
    Password,
    Role,
    SignInLink,
    User,
    UserSession,
)
from app.errors import Invalid

KEPT_BY_PERSON = (UserSession, SignInLink, Password, Identity, Membership)


async def erase(
    session: AsyncSession, *, user_id: uuid.UUID, confirmation: str, actor_id: uuid.UUID | None = None
) -> None:
    """Erase a person. `confirmation` is their name, typed by whoever does it. Twice is harmless.

    Raises:
        NotFound: there is no such person.
        Invalid: the name is another one, or this is the last owner of the site.
    """
    user = await service.get_user(session, user_id)
    if user.erased_at is not None:
        return
    if confirmation.strip() != user.name:
        raise Invalid.field("confirmation", "is not the name of this person")
    await _forget_answers_with(session, user)
    await _empty(session, user)
    await audit(session, actor_id=actor_id, action="user.erase", subject=str(user_id))


async def _empty(session: AsyncSession, user: User) -> None:
    if user.email:
        await session.execute(delete(Attempts).where(Attempts.key == attempts.account_key(user.email)))
    was_owner = user.role == Role.ADMIN
    user.name, user.email, user.role = f"Erased {user.id.hex[:8]}", None, None
    user.languages, user.skills = [], []
    user.disabled_at = user.erased_at = datetime.now(UTC)
    await session.flush()
    if was_owner:
        await service.require_an_owner(session, "user")
    for table in KEPT_BY_PERSON:
        await session.execute(delete(table).where(table.user_id == user.id))
    # Runs name the token that claimed them, so tokens stay; a name may be anything that somebody typed.
    tokens = update(ApiToken).where(ApiToken.user_id == user.id)
    await session.execute(tokens.values(name="erased", revoked_at=func.coalesce(ApiToken.revoked_at, func.now())))
    await session.execute(
        update(Invitation)
        .where(Invitation.created_by == user.id, Invitation.revoked_at.is_(None))
        .values(revoked_at=func.now())
    )


async def _forget_answers_with(session: AsyncSession, user: User) -> None:
    """Answers that are kept a day for requests that are sent twice may hold the name: those go, too."""
    await session.execute(
        text(
            "delete from idempotent_answers where user_id = :id or position(convert_to(:id_text, 'UTF8') in body) > 0"
        ),
        {"id": user.id, "id_text": str(user.id)},
    )
