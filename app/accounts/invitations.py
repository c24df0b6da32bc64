"""Invitations: links that make whoever opens them a member. Hashed, ended by time, by count or by hand."""

from __future__ import annotations

import secrets
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from sqlalchemy import ColumnElement, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts import passwords, roles, service, sessions
from app.accounts.audit import audit
from app.accounts.credentials import hash_secret
from app.accounts.models import ROLE_SCOPES, Invitation, Membership, Role, SignInMethod, User
from app.db import let_go
from app.errors import Invalid, NotFound, RankloopError

MAX_DAYS = 90
MAX_USES = 1000


class InvitationEnded(RankloopError):
    """This invitation was used up, has ended, or never was. Ask whoever sent it for a new one."""

    status = 410


async def create(
    session: AsyncSession,
    *,
    project_id: uuid.UUID | None,
    role: str,
    days: int,
    max_uses: int,
    public_url: str,
    actor_id: uuid.UUID | None,
) -> tuple[Invitation, str]:
    """An invitation and its link, which is never shown again. Without a project, the role holds in every one.

    Raises:
        Invalid: the role is unknown, or a number is out of range.
    """
    if role not in set(Role):
        raise Invalid.field("role", f"must be one of {', '.join(Role)}")
    if not 1 <= days <= MAX_DAYS:
        raise Invalid.field("days", "must be 1 to 90")
    if not 1 <= max_uses <= MAX_USES:
        raise Invalid.field("max_uses", "must be 1 to 1000")
    secret = secrets.token_urlsafe(32)
    invitation = Invitation(
        token_hash=hash_secret(secret),
        project_id=project_id,
        role=role,
        max_uses=max_uses,
        created_by=actor_id,
        expires_at=datetime.now(UTC) + timedelta(days=days),
    )
    session.add(invitation)
    await session.flush()
    subject, project = str(invitation.id), str(project_id) if project_id else None
    await audit(session, actor_id=actor_id, action="invitation.create", subject=subject, project=project, role=role)
    return invitation, f"{public_url.rstrip('/')}/join#{secret}"


async def list_open(session: AsyncSession, project_id: uuid.UUID | None) -> Sequence[Invitation]:
    """The invitations into a project, or into all, that still let somebody in; newest first."""
    same = Invitation.project_id == project_id if project_id else Invitation.project_id.is_(None)
    query = select(Invitation).where(same, *_is_open()).order_by(Invitation.created_at.desc(), Invitation.id)
    return (await session.scalars(query)).all()


def _is_open() -> tuple[ColumnElement[bool], ...]:
    return (
        Invitation.revoked_at.is_(None),
        Invitation.expires_at > func.now(),
        Invitation.num_used < Invitation.max_uses,
    )


async def revoke(
    session: AsyncSession, *, invitation_id: uuid.UUID, project_id: uuid.UUID | None, actor_id: uuid.UUID | None
) -> None:
    """End an invitation at once. Twice is harmless.

    Raises:
        NotFound: there is none of this id into this project.
    """
    invitation = await session.get(Invitation, invitation_id)
    if invitation is None or invitation.project_id != project_id:
        raise NotFound("There is no such invitation.")
    invitation.revoked_at = invitation.revoked_at or datetime.now(UTC)
    await audit(session, actor_id=actor_id, action="invitation.revoke", subject=str(invitation_id))


async def _spend(session: AsyncSession, secret: str) -> Invitation:
    """Take one of an invitation's uses; its row stays locked, so that no two take the last one.

    Raises:
        InvitationEnded: it is unknown, revoked, too old or used up.
    """
    invitation: Invitation | None = await session.scalar(
        update(Invitation)
        .where(Invitation.token_hash == hash_secret(secret.strip()), *_is_open())
        .values(num_used=Invitation.num_used + 1)
        .returning(Invitation)
    )
    if invitation is None:
        raise InvitationEnded
    return invitation


async def accept(session: AsyncSession, *, secret: str, user: User) -> Invitation:
    """Give a person what the invitation offers. It never takes anything: who may more already keeps that.

    Raises:
        InvitationEnded: it lets nobody in any more.
    """
    invitation = await _spend(session, secret)
    project_id, role = invitation.project_id, invitation.role
    if project_id is None:
        if ROLE_SCOPES[user.role] < ROLE_SCOPES[role]:
            await roles.set_role(session, user_id=user.id, role=role, actor_id=user.id)
    else:
        member = await session.get(Membership, (user.id, project_id))
        if member is None or ROLE_SCOPES[member.role] < ROLE_SCOPES[role]:
            await roles.set_member(session, user_id=user.id, project_id=project_id, role=role, actor_id=user.id)
    await audit(session, actor_id=user.id, action="invitation.accept", subject=str(invitation.id))
    return invitation


async def sign_up(
    session: AsyncSession,
    *,
    secret: str,
    name: str,
    email: str,
    password: str,
    device: str = "",
    replaces: str | None = None,
) -> str:
    """Make an account for who was invited; returns the secret of their first session.

    Raises:
        InvitationEnded: it lets nobody in any more.
        Invalid: the name is empty, the address taken, or the password guessed soon.
        Crowded: too many passwords are hashed at this moment.
    """
    await _require_open(session, secret)
    await let_go(session)
    made = await passwords.make_hash(password, name=name, email=email)
    # What was half done, an account without a role, is undone.
    async with session.begin_nested():
        user = await service.create_user(session, name=name, email=email, role=None)
        await passwords.store(session, user.id, made)
        await accept(session, secret=secret, user=user)
    return await sessions.start_session(
        session, user_id=user.id, method=SignInMethod.INVITATION, device=device, replaces=replaces
    )


async def _require_open(session: AsyncSession, secret: str) -> None:
    """Refuse what is no invitation before anything else is looked at: strangers learn nothing, and cost no hashing."""
    query = select(Invitation.id).where(Invitation.token_hash == hash_secret(secret.strip()), *_is_open())
    if await session.scalar(query) is None:
        raise InvitationEnded
