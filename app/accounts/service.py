"""People, their roles, sign-in links, sessions, tokens, audit log. Secrets are random, shown once, stored as hashes."""

from __future__ import annotations

import hashlib
import re
import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import Row, Select, Text, Uuid, bindparam, cast, column, delete, func, or_, select, table, update
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app import facts
from app.accounts.models import (
    AnyUser,
    ApiToken,
    AuditEntry,
    Membership,
    Role,
    Roles,
    Scope,
    SignInLink,
    SignInMethod,
    TokenFacts,
    User,
    UserSession,
    Who,
)
from app.accounts.wanted import NamedProject, Wanted
from app.errors import Invalid, NotFound, Unauthorized, existing

EMAIL = re.compile(r"[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,189}")
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
    # The project that was wanted together with them, if there is one.
    project: NamedProject | None = None


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
        Invalid: the name is empty, the role unknown, the address none or taken.
    """
    if not name.strip():
        raise Invalid.field("name", "must not be empty")
    if email and not EMAIL.fullmatch(email.strip()):
        raise Invalid.field("email", "is not a mail address")
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
    return existing(await session.get(User, user_id), "There is no such person.")


async def get_user_by_email(session: AsyncSession, email: str) -> User:
    """A person by address.

    Raises:
        NotFound: nobody has it.
    """
    user = await session.scalar(select(User).where(func.lower(User.email) == email.strip().lower()))
    return existing(user, f"Nobody has the address {email}.")


async def set_disabled(
    session: AsyncSession, *, user_id: uuid.UUID, is_disabled: bool, actor_id: uuid.UUID | None = None
) -> None:
    """Switch a person off (sessions and tokens stop working at once) or on again.

    Raises:
        NotFound: there is no such person.
        Invalid: it is the last owner of the site, or the person was erased.
    """
    user = await get_user(session, user_id)
    if user.erased_at is not None:
        raise Invalid.field("user", "this person was erased, which can't be undone")
    user.disabled_at = datetime.now(UTC) if is_disabled else None
    await session.flush()
    if is_disabled and user.role == Role.ADMIN:
        await require_an_owner(session, "user")
    # Whoever is switched on again signs in anew.
    await session.execute(delete(UserSession).where(UserSession.user_id == user_id))
    await audit(
        session, actor_id=actor_id, action="user.disable" if is_disabled else "user.enable", subject=str(user_id)
    )


async def require_an_owner(session: AsyncSession, field: str) -> None:
    """Refuse a change after which nobody would own the site. Two at once can't do away with each other: they lock.

    Raises:
        Invalid: nobody does.
    """
    owners = select(User.id).where(User.role == Role.ADMIN, User.disabled_at.is_(None)).with_for_update()
    if (await session.scalars(owners)).first() is None:
        raise Invalid.field(field, "this is the last owner of the site; make another person one first")


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
    was_owner, user.role = user.role == Role.ADMIN, role
    await session.flush()
    if was_owner:
        await require_an_owner(session, "role")
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


async def list_members(session: AsyncSession, project_id: uuid.UUID) -> Sequence[Row[User, Membership]]:
    """Who has a role of their own in a project, with it, by name."""
    query = select(User, Membership).join(Membership, Membership.user_id == User.id)
    query = query.where(Membership.project_id == project_id)
    return (await session.execute(query.order_by(func.lower(User.name), User.id))).all()


async def get_membership(session: AsyncSession, *, user_id: uuid.UUID, project_id: uuid.UUID) -> Membership:
    """What somebody is in a project by a role of their own: its admins learn of nobody else.

    Raises:
        NotFound: this person has none.
    """
    return existing(await session.get(Membership, (user_id, project_id)), "There is no such member.")


async def list_everywhere(session: AsyncSession) -> Sequence[User]:
    """Who has a role in every project, by name."""
    query = select(User).where(User.role.is_not(None), User.disabled_at.is_(None))
    return (await session.scalars(query.order_by(func.lower(User.name), User.id))).all()


# Of projects, which come after accounts, no more than their names.
PROJECTS = table("projects", column("id", Uuid), column("slug"), column("name"), column("archived_at"))


async def list_memberships(session: AsyncSession, user_id: uuid.UUID) -> Sequence[Row[Any, Any, Any]]:
    """The projects where a person is a member: `slug`, `name`, `role`, `languages`, `skills`."""
    kept = (Membership.role, Membership.languages, Membership.skills)
    query = select(PROJECTS.c.slug, PROJECTS.c.name, *kept).join(Membership, Membership.project_id == PROJECTS.c.id)
    return (await session.execute(query.where(Membership.user_id == user_id).order_by(PROJECTS.c.name))).all()


async def list_own_projects(session: AsyncSession, roles: Roles) -> Sequence[Row[Any, Any, Any]]:
    """The projects where somebody has a role: `id`, `slug`, `name`."""
    query = select(PROJECTS.c.id, PROJECTS.c.slug, PROJECTS.c.name).where(PROJECTS.c.archived_at.is_(None))
    within = roles.projects_with(Scope)
    if within is not None:
        query = query.where(PROJECTS.c.id.in_(within))
    return (await session.execute(query.order_by(PROJECTS.c.name))).all()


# With the person in one query: every request asks, so these are put together once.
ROLES_BY_PROJECT = (
    select(func.jsonb_object_agg(Membership.project_id, Membership.role))
    .where(Membership.user_id == User.id)
    .scalar_subquery()
    .label("by_project")
)


def roles_of(user: AnyUser, by_project: Mapping[str, str] | None) -> Roles:
    """A person's roles, from what `ROLES_BY_PROJECT` selects."""
    return Roles(user.role, {uuid.UUID(key): role for key, role in (by_project or {}).items()})


async def get_roles(session: AsyncSession, user: AnyUser) -> Roles:
    """A person's roles."""
    return roles_of(user, await session.scalar(select(ROLES_BY_PROJECT).where(User.id == user.id)))


def _asked_with(query: Select[Any], secret: str, wanted: Wanted | None) -> tuple[Select[Any], dict[str, Any]]:
    """Whom a secret lets in, and beside them the project that they want: the query, and its values."""
    values = {"hash": hash_secret(secret)}
    return (query, values) if wanted is None else (wanted[0].beside(query), values | {"thing": wanted[1]})


async def _person_and_project(
    session: AsyncSession, query: Select[Any], secret: str, wanted: Wanted | None
) -> tuple[Any, NamedProject | None] | None:
    """The row of whom a secret lets in, and the project that they want."""
    found = await session.execute(*_asked_with(query, secret, wanted))
    row = found.one_or_none()
    if wanted is None:
        return (row, None) if row else None
    # Kept, as a session forgets what nobody holds.
    session.info["along"] = row
    return (row, row[-1]) if row else None


# Sign-in


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
    found = await _person_and_project(session, PERSON_OF_SESSION, token, wanted)
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


async def list_tokens(session: AsyncSession, *, owner_id: uuid.UUID | None = None) -> Sequence[Row[ApiToken, str]]:
    """A person's tokens, or everybody's, with the owner's name; newest first, those that have ended too."""
    query = select(ApiToken, User.name.label("owner")).join(User, User.id == ApiToken.user_id)
    if owner_id is not None:
        query = query.where(ApiToken.user_id == owner_id)
    return (await session.execute(query.order_by(ApiToken.created_at.desc(), ApiToken.id))).all()


async def revoke_token(
    session: AsyncSession,
    *,
    token_id: uuid.UUID,
    owner_id: uuid.UUID | None = None,
    actor_id: uuid.UUID | None = None,
) -> None:
    """End a token at once; doing it twice is harmless.

    Raises:
        NotFound: there is no such token, or it is not this owner's.
    """
    token = await session.get(ApiToken, token_id)
    if token is None or owner_id not in {None, token.user_id}:
        raise NotFound("There is no such token.")
    token.revoked_at = token.revoked_at or datetime.now(UTC)
    await audit(session, actor_id=actor_id, action="token.revoke", subject=str(token_id))


async def revoke_tokens_named(session: AsyncSession, *, name: str) -> None:
    """End every token of this name: what `rankloop up` gave to the workers of its last start."""
    await session.execute(
        update(ApiToken).where(ApiToken.name == name, ApiToken.revoked_at.is_(None)).values(revoked_at=func.now())
    )


PERSON_OF_TOKEN = (
    select(ApiToken, User, ROLES_BY_PROJECT)
    .select_from(ApiToken)
    .join(User, User.id == ApiToken.user_id)
    .where(
        ApiToken.token_hash == bindparam("hash"),
        ApiToken.revoked_at.is_(None),
        (ApiToken.expires_at.is_(None)) | (ApiToken.expires_at > func.now()),
        User.disabled_at.is_(None),
    )
)


async def person_of_token(
    session: AsyncSession, secret: str, wanted: Wanted | None = None
) -> tuple[ApiToken, Person] | None:
    """The token and its owner, unless it is revoked, too old, or the person was disabled; the project `wanted`, too."""
    found = await _person_and_project(session, PERSON_OF_TOKEN, secret, wanted)
    if found is None:
        return None
    row, project = found
    await _note_use(session, row.ApiToken)
    return row.ApiToken, Person(row.User, roles_of(row.User, row.by_project), project)


@dataclass(frozen=True)
class Bearer:
    """Who sent a token, what it allows, and the project that was wanted together with them: facts, not rows."""

    user: Who
    roles: Roles
    token: TokenFacts
    project: NamedProject | None


async def bearer_of_token(session: AsyncSession, secret: str, wanted: Wanted | None) -> Bearer | None:
    """As `person_of_token`, for requests that do with a few facts: they are remembered."""
    query, values = _asked_with(PERSON_OF_TOKEN, secret, wanted)
    found = await facts.ask(session, facts.few_columns(query), values)
    if found is None:
        return None
    token, user, by_project, *others = found
    facts.remember(session, others)
    await _note_use(session, token)
    return Bearer(user, roles_of(user, by_project), token, others[-1] if others else None)


async def _note_use(session: AsyncSession, token: ApiToken | TokenFacts) -> None:
    if token.last_used_at is None or token.last_used_at < datetime.now(UTC) - SEEN_EVERY:
        # Many may use it at this moment: one of them notes it, and nobody waits until that one's request has ended.
        free = select(ApiToken.id).where(ApiToken.id == token.id).with_for_update(skip_locked=True)
        await session.execute(
            update(ApiToken).where(ApiToken.id.in_(free.scalar_subquery())).values(last_used_at=func.now())
        )


# The audit log


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
