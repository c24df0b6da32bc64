"""API tokens: made within their owner's roles, shown once, revoked, and who is behind one."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from sqlalchemy import Row, bindparam, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app import facts
from app.accounts.audit import audit
from app.accounts.credentials import SEEN_EVERY, Person, asked_with, hash_secret, person_and_project
from app.accounts.models import ApiToken, Roles, Scope, TokenFacts, User, Who
from app.accounts.roles import ROLES_BY_PROJECT, get_roles, roles_of
from app.accounts.service import get_user
from app.accounts.wanted import NamedProject, Wanted
from app.errors import Invalid, NotFound


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
    found = await person_and_project(session, PERSON_OF_TOKEN, secret, wanted)
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
    query, values = asked_with(PERSON_OF_TOKEN, secret, wanted)
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
