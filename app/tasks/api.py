"""Tasks and leases through the API: what an annotator's program needs, and the list for trainers."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Response
from starlette import status

from app.accounts.guards import AnnotateCaller, ApiCaller, Ranker, ReadCaller, project_in_body
from app.accounts.quick import QuickRoute
from app.projects.guards import find_project, known_project
from app.tasks import drafts, lists, service
from app.tasks.models import Lease
from app.tasks.schemas import DraftIn, DraftOut, LeaseOut, NextTaskIn, ReleaseIn, TaskOut, TaskPage
from app.web import SessionDep, begins_late

router = APIRouter(tags=["tasks"], route_class=QuickRoute)


@router.post("/tasks:next", response_model=LeaseOut, responses={204: {"description": "Nothing waits."}})
@begins_late
@project_in_body
async def next_task(body: NextTaskIn, caller: Ranker, session: SessionDep) -> LeaseOut | Response:
    """The task that the caller works on, or a new one. Asking again gives the same until it is ranked or released."""
    project = known_project(caller)
    sheet = await service.next_sheet(session, project=project, annotator=caller.user, now=datetime.now(UTC))
    return LeaseOut.of(sheet) if sheet is not None else Response(status_code=status.HTTP_204_NO_CONTENT)


@router.post("/leases/{lease_id}:release", status_code=status.HTTP_204_NO_CONTENT)
async def release_lease(
    lease_id: uuid.UUID, caller: AnnotateCaller, session: SessionDep, body: ReleaseIn | None = None
) -> None:
    """Skip: someone else gets the task, and the caller not again. Twice is harmless. A broken one is a report."""
    await require_reach(session, lease_id, caller)
    body = body or ReleaseIn()
    await service.release_lease(session, lease_id=lease_id, annotator=caller.user, reason=body.reason, kind=body.kind)


@router.post("/leases/{lease_id}:extend")
async def extend_lease(lease_id: uuid.UUID, caller: AnnotateCaller, session: SessionDep) -> LeaseOut:
    """Keep a task for longer: the lease runs from now again."""
    await require_reach(session, lease_id, caller)
    lease = await service.extend_lease(session, lease_id=lease_id, annotator=caller.user, now=datetime.now(UTC))
    return LeaseOut.of(await service.get_sheet(session, lease))


@router.put("/leases/{lease_id}/draft")
async def save_draft(lease_id: uuid.UUID, body: DraftIn, caller: AnnotateCaller, session: SessionDep) -> DraftOut:
    """Keep what was placed so far, and the lease with it."""
    await require_reach(session, lease_id, caller)
    now = datetime.now(UTC)
    lease = await drafts.save_draft(session, lease_id=lease_id, annotator=caller.user, draft=body.stored(), now=now)
    return DraftOut.of(lease, now)


async def require_reach(session: SessionDep, lease_id: uuid.UUID, caller: ApiCaller) -> Lease:
    """The caller's lease, if the token reaches its project.

    Raises:
        NotFound: it is somebody else's, or the token is bound to other projects.
    """
    lease = await service.get_lease(session, lease_id=lease_id, annotator=caller.user)
    caller.require_project((await service.project_of(session, lease)).id)
    return lease


@router.get("/tasks")
async def list_tasks(
    project_id: str,
    caller: ReadCaller,
    session: SessionDep,
    cursor: Annotated[int | None, Query(ge=0)] = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
    is_waiting: bool | None = None,
) -> TaskPage:
    """A project's tasks, oldest first."""
    project = await find_project(session, project_id)
    caller.require_project(project.id)
    rows = await lists.list_tasks(session, project_id=project.id, after=cursor, limit=limit, is_waiting=is_waiting)
    following = str(rows[-1].task.number) if len(rows) == limit else None
    return TaskPage(items=[TaskOut.of(row) for row in rows], next_cursor=following)
