"""People, their roles, sign-in links, sessions, tokens, audit log. Secrets are random, shown once, stored as hashes."""

from __future__ import annotations

import hashlib
import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import func, select, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import (
    ApiToken,
    AuditEntry,
    Membership,
    Role,
    Roles,
    Scope,
    SignInLink,
    User,
    UserSession,
)
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


@dataclass(frozen=True)
class Person:
    """A person with their roles."""

    user: User
    roles: Roles


# People


async def create_user(
    session: AsyncSession,
    *,
    name: str,
    email: str | None,
    role: str | None,
    is_simulated: bool = False,
    actor_id: uuid.UUID | None = None,
) -> User:
    """Add a person. `role` holds in every project; None: only where they become members.

    Raises:
        Invalid: the name is empty, the role unknown, or the address taken.
    """
    if not name.strip():
        raise Invalid.field("name", "must not be empty")
    require_known_role(role)
    user = User(name=name.strip(), email=email.strip() if email else None, role=role, is_simulated=is_simulated)
    try:
        async with session.begin_nested():
            session.add(user)
    except IntegrityError as error:
        raise Invalid.field("email", "somebody has this address already") from error
    await audit(session, actor_id=actor_id, action="user.create", subject=str(user.id), role=role)
    return user


def require_known_role(role: str | None) -> None:
    """Refuse a role that there is not.

    Raises:
        Invalid: it is unknown.
    """
    if role is not None and role not in set(Role):
        raise Invalid.field("role", f"must be one of {', '.join(Role)}")


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


# Roles


async def set_role(
    session: AsyncSession, *, user_id: uuid.UUID, role: str | None, actor_id: uuid.UUID | None = None
) -> None:
    """Give a person this role in every project; None: only what their memberships say.

    Raises:
        NotFound: there is no such person.
        Invalid: the role is unknown, or it was the last owner's.
    """
    require_known_role(role)
    user = await get_user(session, user_id)
    user.role = role
    await session.flush()
    if await first_admin(session) is None:
        raise Invalid.field("role", "this is the last owner of the site; make another person one first")
    await audit(session, actor_id=actor_id, action="user.role", subject=str(user_id), role=role)


async def set_member(
    session: AsyncSession,
    *,
    user_id: uuid.UUID,
    project_id: uuid.UUID,
    role: str,
    actor_id: uuid.UUID | None = None,
) -> Membership:
    """Give a person a role in a project, in place of the one they had there. Twice is harmless.

    Raises:
        NotFound: there is no such person.
        Invalid: the role is unknown.
    """
    require_known_role(role)
    await get_user(session, user_id)
    values = {"user_id": user_id, "project_id": project_id, "role": role}
    membership = await session.scalar(
        insert(Membership)
        .values(values)
        .on_conflict_do_update(index_elements=["user_id", "project_id"], set_={"role": role})
        .returning(Membership)
        .execution_options(populate_existing=True)
    )
    assert membership is not None
    await audit(
        session, actor_id=actor_id, action="member.set", subject=str(user_id), project=str(project_id), role=role
    )
    return membership


async def remove_member(
    session: AsyncSession, *, user_id: uuid.UUID, project_id: uuid.UUID, actor_id: uuid.UUID | None = None
) -> None:
    """Take a person's role in a project away. Their rankings stay. Twice is harmless.

    What they had in hand can't be answered any more, and goes to others when it expires.
    """
    membership = await session.get(Membership, (user_id, project_id))
    if membership is None:
        return
    await session.delete(membership)
    await audit(session, actor_id=actor_id, action="member.remove", subject=str(user_id), project=str(project_id))


async def list_members(session: AsyncSession, project_id: uuid.UUID) -> Sequence[tuple[User, str]]:
    """Who has a role of their own in a project, with that role, by name."""
    rows = await session.execute(
        select(User, Membership.role)
        .join(Membership, Membership.user_id == User.id)
        .where(Membership.project_id == project_id)
        .order_by(func.lower(User.name), User.id)
    )
    return [(row.User, row.role) for row in rows]


# With the person in one query: every request asks.
ROLES_BY_PROJECT = (
    select(func.jsonb_object_agg(Membership.project_id, Membership.role))
    .where(Membership.user_id == User.id)
    .scalar_subquery()
    .label("by_project")
)


def roles_of(user: User, by_project: Mapping[str, str] | None) -> Roles:
    """A person's roles, from what `ROLES_BY_PROJECT` selects."""
    return Roles(user.role, {uuid.UUID(key): role for key, role in (by_project or {}).items()})


async def get_roles(session: AsyncSession, user: User) -> Roles:
    """A person's roles."""
    return roles_of(user, await session.scalar(select(ROLES_BY_PROJECT).where(User.id == user.id)))


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


async def person_of_session(session: AsyncSession, token: str) -> Person | None:
    """Who is signed in with this cookie, unless it is too old or the person was disabled."""
    row = (
        await session.execute(
            select(User, UserSession, ROLES_BY_PROJECT)
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
    return Person(row.User, roles_of(row.User, row.by_project))


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
    await require_allowed(session, await get_user(session, user_id), scopes, project_ids)
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


async def require_allowed(
    session: AsyncSession, owner: User, scopes: Sequence[str], project_ids: Sequence[uuid.UUID] | None
) -> None:
    """Refuse a token that would name more than its owner's roles allow, there or anywhere.

    Raises:
        Invalid: a scope, or a project, is beyond them.
    """
    roles = await get_roles(session, owner)
    reached = roles.by_project if project_ids is None else project_ids
    allowed = roles.scopes_in(None).union(*map(roles.scopes_in, reached))
    beyond = sorted(set(scopes) - allowed)
    if beyond:
        raise Invalid.field("scopes", f"{', '.join(beyond)}: is more than the roles of its owner allow")
    if any(not roles.scopes_in(project_id) for project_id in project_ids or ()):
        raise Invalid.field("project_ids", "names a project where its owner has no role")


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


async def person_of_token(session: AsyncSession, secret: str) -> tuple[ApiToken, Person] | None:
    """The token and its owner, unless it is revoked, too old, or the person was disabled."""
    row = (
        await session.execute(
            select(ApiToken, User, ROLES_BY_PROJECT)
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
    return token, Person(row.User, roles_of(row.User, row.by_project))
