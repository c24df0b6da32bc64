"""People, sign-in links, sessions, tokens, and the audit log. Secrets are random, shown once, and stored as hashes."""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import ROLE_SCOPES, ApiToken, AuditEntry, Role, Scope, SignInLink, User, UserSession
from app.errors import Invalid, NotFound, Unauthorized

LINK_LIFE = timedelta(minutes=15)
SESSION_LIFE = timedelta(days=30)
SESSION_IDLE = timedelta(days=7)
# `last_seen_at` and `last_used_at` are written at most this often, so that reading a page writes no row.
SEEN_EVERY = timedelta(minutes=5)


class LinkSpent(Unauthorized):
    """This sign-in link was used already or is older than 15 minutes. Ask for a new one: `rankloop user link EMAIL`
    prints it.
    """


def hash_secret(secret: str) -> bytes:
    """What is stored of a secret. The secrets are 32 random bytes, so a plain hash is enough."""
    return hashlib.sha256(secret.encode()).digest()


async def audit(session: AsyncSession, *, actor_id: uuid.UUID | None, action: str, subject: str, **detail: Any) -> None:
    """Write down who did what. Never names or addresses: the log outlives the people in it."""
    session.add(AuditEntry(actor_id=actor_id, action=action, subject=subject, detail=detail))


# People


async def create_user(
    session: AsyncSession,
    *,
    name: str,
    email: str | None,
    role: str,
    is_simulated: bool = False,
    actor_id: uuid.UUID | None = None,
) -> User:
    """Add a person.

    Raises:
        Invalid: the name is empty, the role unknown, or the address taken.
    """
    if not name.strip():
        raise Invalid.field("name", "must not be empty")
    if role not in set(Role):
        raise Invalid.field("role", f"must be one of {', '.join(Role)}")
    user = User(name=name.strip(), email=email.strip() if email else None, role=role, is_simulated=is_simulated)
    try:
        async with session.begin_nested():
            session.add(user)
    except IntegrityError as error:
        raise Invalid.field("email", "somebody has this address already") from error
    await audit(session, actor_id=actor_id, action="user.create", subject=str(user.id), role=role)
    return user


async def list_users(session: AsyncSession) -> Sequence[User]:
    """All people, oldest first."""
    return (await session.scalars(select(User).order_by(User.created_at, User.id))).all()


async def get_user(session: AsyncSession, user_id: uuid.UUID) -> User:
    """A person by id.

    Raises:
        NotFound: there is none.
    """
    user = await session.get(User, user_id)
    if user is None:
        raise NotFound("There is no such person.")
    return user


async def get_user_by_email(session: AsyncSession, email: str) -> User:
    """A person by address.

    Raises:
        NotFound: nobody has it.
    """
    user = await session.scalar(select(User).where(func.lower(User.email) == email.strip().lower()))
    if user is None:
        raise NotFound(f"Nobody has the address {email}.")
    return user


async def set_disabled(
    session: AsyncSession, *, user_id: uuid.UUID, is_disabled: bool, actor_id: uuid.UUID | None = None
) -> None:
    """Switch a person off (sessions and tokens stop working at once) or on again.

    Raises:
        NotFound: there is no such person.
        Invalid: it is the last admin.
    """
    user = await get_user(session, user_id)
    user.disabled_at = datetime.now(UTC) if is_disabled else None
    await session.flush()
    if await first_admin(session) is None:
        raise Invalid.field("user", "this is the last admin; make another person an admin first")
    await audit(
        session, actor_id=actor_id, action="user.disable" if is_disabled else "user.enable", subject=str(user_id)
    )


async def first_admin(session: AsyncSession) -> User | None:
    """The oldest admin, if there is one."""
    return await session.scalar(
        select(User).where(User.role == Role.ADMIN, User.disabled_at.is_(None)).order_by(User.created_at).limit(1)
    )


async def ensure_admin(session: AsyncSession) -> User:
    """The first admin; made when there is none. It has no password: its way in is a one-time link."""
    return await first_admin(session) or await create_user(
        session, name="Admin", email="admin@localhost", role=Role.ADMIN
    )


# Sign-in


async def create_sign_in_link(session: AsyncSession, *, user: User, public_url: str) -> str:
    """A one-time address that signs its bearer in. The secret stands in the fragment, which no server or proxy sees."""
    secret = secrets.token_urlsafe(32)
    session.add(SignInLink(token_hash=hash_secret(secret), user_id=user.id, expires_at=datetime.now(UTC) + LINK_LIFE))
    await audit(session, actor_id=None, action="link.create", subject=str(user.id))
    return f"{public_url.rstrip('/')}/sign-in/link#{secret}"


async def sign_in(session: AsyncSession, *, secret: str) -> str:
    """Spend a link; returns the secret of a new session.

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
    token = secrets.token_urlsafe(32)
    session.add(
        UserSession(token_hash=hash_secret(token), user_id=user_id, expires_at=datetime.now(UTC) + SESSION_LIFE)
    )
    await audit(session, actor_id=user_id, action="sign_in", subject=str(user_id))
    return token


async def user_of_session(session: AsyncSession, token: str) -> User | None:
    """Who is signed in with this cookie, unless it is too old or the person was disabled."""
    row = (
        await session.execute(
            select(User, UserSession)
            .join(UserSession, UserSession.user_id == User.id)
            .where(
                UserSession.token_hash == hash_secret(token),
                UserSession.expires_at > func.now(),
                UserSession.last_seen_at > func.now() - SESSION_IDLE,
                User.disabled_at.is_(None),
            )
        )
    ).one_or_none()
    if row is None:
        return None
    if row.UserSession.last_seen_at < datetime.now(UTC) - SEEN_EVERY:
        row.UserSession.last_seen_at = datetime.now(UTC)
    user: User = row.User
    return user


async def sign_out(session: AsyncSession, token: str) -> None:
    """End one session."""
    row = await session.get(UserSession, hash_secret(token))
    if row is not None:
        await session.delete(row)


# API tokens


async def create_token(
    session: AsyncSession,
    *,
    user_id: uuid.UUID,
    name: str,
    scopes: Sequence[str],
    project_ids: Sequence[uuid.UUID] | None = None,
    days: int | None = 90,
    actor_id: uuid.UUID | None = None,
) -> tuple[ApiToken, str]:
    """A token and its secret, which is never shown again.

    Raises:
        Invalid: a scope is unknown, or more than the owner's role may.
        NotFound: nobody has this id.
    """
    unknown = sorted(set(scopes) - set(Scope))
    if unknown or not scopes:
        raise Invalid.field("scopes", f"must be among {', '.join(Scope)}; got {', '.join(unknown) or 'none'}")
    owner = await session.get(User, user_id)
    if owner is None:
        raise NotFound(f"There is no user {user_id}.")
    beyond = sorted(set(scopes) - ROLE_SCOPES[owner.role])
    if beyond:
        raise Invalid.field("scopes", f"{', '.join(beyond)}: is more than the role {owner.role} may")
    secret = f"rl_{secrets.token_urlsafe(32)}"
    token = ApiToken(
        user_id=user_id,
        name=name,
        prefix=secret[:8],
        token_hash=hash_secret(secret),
        scopes=sorted(set(scopes)),
        project_ids=list(project_ids) if project_ids is not None else None,
        expires_at=datetime.now(UTC) + timedelta(days=days) if days else None,
    )
    session.add(token)
    await session.flush()
    await audit(session, actor_id=actor_id, action="token.create", subject=str(token.id), scopes=token.scopes)
    return token, secret


async def list_tokens(session: AsyncSession) -> Sequence[ApiToken]:
    """All tokens, newest first, the revoked ones too."""
    return (await session.scalars(select(ApiToken).order_by(ApiToken.created_at.desc()))).all()


async def revoke_token(session: AsyncSession, *, token_id: uuid.UUID, actor_id: uuid.UUID | None = None) -> None:
    """End a token at once; doing it twice is harmless.

    Raises:
        NotFound: there is no such token.
    """
    token = await session.get(ApiToken, token_id)
    if token is None:
        raise NotFound("There is no such token.")
    token.revoked_at = token.revoked_at or datetime.now(UTC)
    await audit(session, actor_id=actor_id, action="token.revoke", subject=str(token_id))


async def revoke_tokens_named(session: AsyncSession, *, name: str) -> None:
    """End every token of this name: what `rankloop up` gave to the workers of its last start."""
    await session.execute(
        update(ApiToken).where(ApiToken.name == name, ApiToken.revoked_at.is_(None)).values(revoked_at=func.now())
    )


async def token_of_secret(session: AsyncSession, secret: str) -> tuple[ApiToken, User] | None:
    """The token and its owner, unless it is revoked, too old, or the person was disabled."""
    row = (
        await session.execute(
            select(ApiToken, User)
            .join(User, User.id == ApiToken.user_id)
            .where(
                ApiToken.token_hash == hash_secret(secret),
                ApiToken.revoked_at.is_(None),
                (ApiToken.expires_at.is_(None)) | (ApiToken.expires_at > func.now()),
                User.disabled_at.is_(None),
            )
        )
    ).one_or_none()
    if row is None:
        return None
    token: ApiToken = row.ApiToken
    if token.last_used_at is None or token.last_used_at < datetime.now(UTC) - SEEN_EVERY:
        token.last_used_at = datetime.now(UTC)
    return token, row.User
