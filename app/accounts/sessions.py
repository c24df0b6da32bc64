"""One-time links and sessions: how a person comes in, who is behind a cookie, and how it ends."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import bindparam, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.audit import audit
from app.accounts.credentials import SEEN_EVERY, Person, hash_secret, person_and_project
from app.accounts.models import SignInLink, SignInMethod, User, UserSession
from app.accounts.roles import ROLES_BY_PROJECT, roles_of
from app.accounts.service import get_user
from app.accounts.wanted import Wanted
from app.errors import Unauthorized

LINK_LIFE = timedelta(minutes=15)
SESSION_LIFE = timedelta(days=30)
SESSION_IDLE = timedelta(days=7)


class LinkSpent(Unauthorized):
    """This sign-in link was used already or is older than 15 minutes. Ask for a new one: `rankloop user link EMAIL`
    prints it.
    """


async def create_sign_in_link(
    session: AsyncSession, *, user: User, public_url: str, actor_id: uuid.UUID | None = None
) -> str:
    """A one-time address that signs its bearer in. The secret stands in the fragment, which no server or proxy sees."""
    secret = secrets.token_urlsafe(32)
    session.add(SignInLink(token_hash=hash_secret(secret), user_id=user.id, expires_at=datetime.now(UTC) + LINK_LIFE))
    await audit(session, actor_id=actor_id, action="link.create", subject=str(user.id))
    return f"{public_url.rstrip('/')}/sign-in/link#{secret}"


async def sign_in(session: AsyncSession, *, secret: str, device: str = "", replaces: str | None = None) -> str:
    """Spend a link; returns the secret of a new session, in place of the one that the browser `replaces`.

    Raises:
        LinkSpent: it is unknown, spent or too old.
    """
    user_id = await session.scalar(
        update(SignInLink)
        .where(
            SignInLink.token_hash == hash_secret(secret.strip()),
            SignInLink.used_at.is_(None),
            SignInLink.expires_at > func.now(),
        )
        .values(used_at=func.now())
        .returning(SignInLink.user_id)
    )
    if user_id is None:
        raise LinkSpent
    return await start_session(session, user_id=user_id, method=SignInMethod.LINK, device=device, replaces=replaces)


async def start_session(
    session: AsyncSession, *, user_id: uuid.UUID, method: SignInMethod, device: str = "", replaces: str | None = None
) -> str:
    """Sign a person in; returns the secret of the new session. The one that this browser had before ends."""
    if replaces:
        await sign_out(session, replaces)
    token = secrets.token_urlsafe(32)
    session.add(
        UserSession(
            token_hash=hash_secret(token),
            user_id=user_id,
            expires_at=datetime.now(UTC) + SESSION_LIFE,
            method=method,
            device=device,
        )
    )
    await audit(session, actor_id=user_id, action="sign_in", subject=str(user_id), method=method)
    return token


PERSON_OF_SESSION = (
    select(User, UserSession, ROLES_BY_PROJECT)
    .join(UserSession, UserSession.user_id == User.id)
    .where(
        UserSession.token_hash == bindparam("hash"),
        UserSession.expires_at > func.now(),
        UserSession.last_seen_at > func.now() - SESSION_IDLE,
        User.disabled_at.is_(None),
    )
)


async def person_of_session(session: AsyncSession, token: str, wanted: Wanted | None = None) -> Person | None:
    """Who is signed in with this cookie, unless it is too old or the person was disabled; the project `wanted`, too."""
    found = await person_and_project(session, PERSON_OF_SESSION, token, wanted)
    if found is None:
        return None
    row, project = found
    if row.UserSession.last_seen_at < datetime.now(UTC) - SEEN_EVERY:
        row.UserSession.last_seen_at = datetime.now(UTC)
    return Person(row.User, roles_of(row.User, row.by_project), project)


async def sign_out(session: AsyncSession, token: str) -> None:
    """End one session, by its secret."""
    await session.execute(delete(UserSession).where(UserSession.token_hash == hash_secret(token)))


async def list_sessions(session: AsyncSession, user_id: uuid.UUID) -> Sequence[UserSession]:
    """The browsers in which a person is signed in, the last used first."""
    return (
        await session.scalars(
            select(UserSession)
            .where(
                UserSession.user_id == user_id,
                UserSession.expires_at > func.now(),
                UserSession.last_seen_at > func.now() - SESSION_IDLE,
            )
            .order_by(UserSession.last_seen_at.desc(), UserSession.id)
        )
    ).all()


async def end_session(session: AsyncSession, *, user_id: uuid.UUID, session_id: uuid.UUID) -> None:
    """Sign a person out of one browser. Twice is harmless."""
    await session.execute(delete(UserSession).where(UserSession.id == session_id, UserSession.user_id == user_id))
    await audit(session, actor_id=user_id, action="session.end", subject=str(session_id))


async def end_sessions(
    session: AsyncSession, *, user_id: uuid.UUID, but: str | None = None, actor_id: uuid.UUID | None = None
) -> None:
    """Sign a person out everywhere, or everywhere but where this secret is.

    Raises:
        NotFound: there is no such person.
    """
    await get_user(session, user_id)
    query = delete(UserSession).where(UserSession.user_id == user_id)
    if but is not None:
        query = query.where(UserSession.token_hash != hash_secret(but))
    await session.execute(query)
    await audit(session, actor_id=actor_id, action="session.end_all", subject=str(user_id))
