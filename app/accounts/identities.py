"""People by the word of an OpenID provider.

The first time, the provider's verified address leads to the account; from then on the provider's own id for the person
does, whatever their address becomes. Whoever typed that address into an invitation before may have been somebody else:
what they set up (password, sessions, tokens) ends when the address's true owner comes.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import sessions
from app.accounts.audit import audit
from app.accounts.credentials import hash_secret
from app.accounts.models import ApiToken, Identity, Password, ProviderVisit, SignInMethod, User
from app.errors import BadRequest, Forbidden

VISIT_LIFE = timedelta(minutes=10)


class VisitEnded(BadRequest):
    """This sign-in was finished before, or took too long. Begin again."""


class Stranger(Forbidden):
    """There is no account for you here yet. Ask an admin of your project for an invitation, with this mail address."""


async def remember_visit(session: AsyncSession, *, secret: str, data: Mapping[str, Any]) -> None:
    """Keep what a browser must prove when it comes back from the provider: only it has the secret."""
    await session.execute(delete(ProviderVisit).where(ProviderVisit.expires_at < func.now()))
    ends = datetime.now(UTC) + VISIT_LIFE
    session.add(ProviderVisit(token_hash=hash_secret(secret), data=dict(data), expires_at=ends))


async def end_visit(session: AsyncSession, secret: str | None) -> dict[str, Any]:
    """What was kept, this once: a second time there is nothing.

    Raises:
        VisitEnded: there is nothing.
    """
    data: dict[str, Any] | None = await session.scalar(
        delete(ProviderVisit)
        .where(ProviderVisit.token_hash == hash_secret(secret or ""), ProviderVisit.expires_at > func.now())
        .returning(ProviderVisit.data)
    )
    if data is None:
        raise VisitEnded
    return data


async def sign_in(
    session: AsyncSession, claims: Mapping[str, Any], *, device: str = "", replaces: str | None = None
) -> str:
    """Sign in whom the checked claims `iss`, `sub`, `email`, `email_verified` name; returns the new session's secret.

    Raises:
        Stranger: there is no such account, or not one that this identity may have.
    """
    issuer, subject = str(claims["iss"]), str(claims["sub"])
    user_id = await session.scalar(
        select(User.id)
        .join(Identity, Identity.user_id == User.id)
        .where(Identity.issuer == issuer, Identity.subject == subject, User.disabled_at.is_(None))
    )
    user_id = user_id or await _link(session, issuer=issuer, subject=subject, claims=claims)
    return await sessions.start_session(
        session, user_id=user_id, method=SignInMethod.PROVIDER, device=device, replaces=replaces
    )


async def _link(session: AsyncSession, *, issuer: str, subject: str, claims: Mapping[str, Any]) -> uuid.UUID:
    """Give the account with this verified address to this identity, if no other of the provider's has it."""
    email = str(claims.get("email") or "").strip().lower()
    taken = select(Identity.user_id).where(Identity.issuer == issuer)
    known = select(Identity.user_id).where(Identity.issuer == issuer, Identity.subject == subject).exists()
    user_id = await session.scalar(
        select(User.id)
        .where(func.lower(User.email) == email, User.disabled_at.is_(None), User.id.not_in(taken), ~known)
        .with_for_update()
    )
    if claims.get("email_verified") is not True or user_id is None:
        raise Stranger
    await session.execute(delete(Password).where(Password.user_id == user_id))
    await session.execute(
        update(ApiToken).where(ApiToken.user_id == user_id, ApiToken.revoked_at.is_(None)).values(revoked_at=func.now())
    )
    await sessions.end_sessions(session, user_id=user_id)
    session.add(Identity(issuer=issuer, subject=subject, user_id=user_id))
    await audit(session, actor_id=user_id, action="identity.link", subject=str(user_id))
    return user_id
