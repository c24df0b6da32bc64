"""Who gets real work, who the tasks of a qualification, and who nothing for now. `quality` decides, this reads."""

from __future__ import annotations

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import AnyUser, Scope, User
from app.accounts.roles import get_roles
from app.errors import Conflict
from app.projects.models import AnyProject
from app.tasks.models import Lease, Standing, StandingState, Task


class Unqualified(Conflict):
    """This project asks for a qualification before real work. Open its page: it says how far you are."""

    def __init__(self, project: AnyProject) -> None:
        super().__init__()
        self.onward = f"/projects/{project.slug}/qualification"


def has_gate(project: AnyProject) -> bool:
    """Whether the project asks who may work."""
    return bool(project.qualify_tasks or project.gold_window)


async def is_exempt(session: AsyncSession, project: AnyProject, annotator: AnyUser) -> bool:
    """Reviewers and admins need no qualification: it is their orders that others are measured against."""
    scopes = (await get_roles(session, annotator)).scopes_in(project.id)
    return bool(scopes & {Scope.REVIEW, Scope.ADMIN})


async def may_work(session: AsyncSession, project: AnyProject, annotator: AnyUser) -> bool:
    """Whether this annotator gets real work.

    Who began before the project asked for a qualification has to pass it as well.
    """
    if not has_gate(project):
        return True
    standing = await session.get(Standing, (project.id, annotator.id), populate_existing=True)
    if standing is not None and standing.state == StandingState.QUALIFIED:
        return True
    if standing is None and not project.qualify_tasks:
        return True
    return await is_exempt(session, project, annotator)


async def is_tested(session: AsyncSession, project: AnyProject, annotator: AnyUser) -> bool:
    """Whether this annotator is in the middle of a qualification.

    Raises:
        Unqualified: neither that, nor do they get real work.
    """
    if await may_work(session, project, annotator):
        return False
    standing = await session.get(Standing, (project.id, annotator.id))
    if standing is None or standing.state != StandingState.TESTING:
        raise Unqualified(project)
    return True


async def may_annotate(session: AsyncSession, project: AnyProject, person: User) -> bool:
    """Whether this person has a role in the project that ranks."""
    return Scope.ANNOTATE in (await get_roles(session, person)).scopes_in(project.id)


async def test_of(session: AsyncSession, project: AnyProject, lease: Lease) -> Standing | None:
    """The try that this lease belongs to; None: it is real work."""
    if not project.qualify_tasks or lease.annotator_id is None:
        return None
    task = await session.get_one(Task, lease.task_id)
    return await session.get(Standing, (project.id, lease.annotator_id)) if task.is_qualifying else None
