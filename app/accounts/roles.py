"""Who may do what: a person's role in every project, and their memberships, each a role in one."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from sqlalchemy import Row, Uuid, column, func, select, table
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.audit import audit
from app.accounts.models import AnyUser, Membership, Role, Roles, Scope, User
from app.accounts.service import get_user, require_an_owner, require_known_role
from app.errors import existing


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
