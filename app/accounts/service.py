"""People: who has an account, who is switched off, and that the site always has an owner."""

from __future__ import annotations

import re
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import delete, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.audit import audit
from app.accounts.models import Role, User, UserSession
from app.errors import Invalid, existing

EMAIL = re.compile(r"[^@\s\x00-\x1f]{1,64}@[^@\s\x00-\x1f]{1,189}")


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
