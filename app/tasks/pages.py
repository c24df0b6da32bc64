"""What the ranking page sends besides its answer (skip, draft), the admins' list of tasks, and what was reported."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Annotated, Literal

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from starlette import status

from app.accounts.guards import Admin, Annotator, Trainer
from app.db import stamp
from app.errors import Conflict
from app.projects.guards import PageProject
from app.prompts import service as prompts
from app.tasks import ahead, audiences, drafts, lists, making, reports, service
from app.tasks.guards import SamePerson
from app.tasks.models import SkipKind
from app.tasks.schemas import DraftOut, PageDraftIn, PageDraftOut
from app.web import SessionDep, render, see_other

router = APIRouter()
PAGE_SIZE = 50


@router.post("/leases/{lease_id}/skip", response_model=None)
async def skip_task(
    request: Request,
    lease_id: uuid.UUID,
    annotator: SamePerson,
    session: SessionDep,
    reason: Annotated[str, Form(max_length=service.MAX_REASON_LENGTH)] = "",
    kind: Annotated[SkipKind | None, Form()] = None,
) -> Response:
    """Give a task back for good, and go on to the next one. A script, which asks for JSON, goes on by itself."""
    lease = await service.get_lease(session, lease_id=lease_id, annotator=annotator)
    onward = f"/projects/{(await service.project_of(session, lease)).slug}/rank"
    try:
        await service.release_lease(session, lease_id=lease_id, annotator=annotator, reason=reason, kind=kind)
    except Conflict as conflict:
        conflict.onward = onward
        raise
    if "application/json" in request.headers.get("accept", ""):
        return Response(status_code=status.HTTP_204_NO_CONTENT)
    return see_other(onward)


@router.post("/leases/{lease_id}/draft")
async def save_draft(
    lease_id: uuid.UUID, sent: PageDraftIn, annotator: SamePerson, session: SessionDep
) -> PageDraftOut:
    """Keep what was placed so far, and the lease with it. A draft that was overtaken on its way is not stored."""
    now, draft = datetime.now(UTC), sent.stored()
    lease = await drafts.save_draft(
        session, lease_id=lease_id, annotator=annotator, draft=draft, now=now, follows=sent.follows
    )
    return PageDraftOut(
        saved_at=stamp(lease.draft_saved_at),
        is_stored=lease.draft == draft,
        expires_in_seconds=DraftOut.of(lease, now).expires_in_seconds,
    )


@router.post("/leases/{lease_id}/let-go", status_code=status.HTTP_204_NO_CONTENT)
async def let_go(lease_id: uuid.UUID, annotator: Annotator, session: SessionDep) -> None:
    """The page closes: give back the task that was fetched ahead, if it was not begun. A beacon, with no body."""
    await ahead.let_go(session, lease_id=lease_id, annotator=annotator)


@router.get("/projects/{slug}/tasks")
async def list_tasks(
    request: Request,
    project: PageProject,
    user: Trainer,
    session: SessionDep,
    state: Literal["", "waiting", "done"] = "",
    after: Annotated[int | None, Query(ge=0)] = None,
) -> HTMLResponse:
    """A project's tasks, oldest first."""
    is_waiting = {"waiting": True, "done": False}.get(state)
    rows = await lists.list_tasks(
        session, project_id=project.id, after=after, limit=PAGE_SIZE + 1, is_waiting=is_waiting
    )
    num_all, num_waiting = await lists.count_tasks(session, project_id=project.id)
    following = f"?state={state}&after={rows[PAGE_SIZE - 1].task.number}" if len(rows) > PAGE_SIZE else None
    return render(
        request,
        "tasks/list.html",
        here="tasks",
        project=project,
        rows=rows[:PAGE_SIZE],
        num_all=num_all,
        num_waiting=num_waiting,
        most_waiting=lists.MOST_WAITING,
        num_reports=await reports.count_reports(session, project_id=project.id),
        for_nobody=await audiences.for_nobody(session, project),
        state=state,
        next_url=following,
        is_first=after is None,
    )


# The convertor lets `/prompts/import` through to its own page.
@router.get("/projects/{slug}/prompts/{prompt_id:uuid}")
async def show_prompt(
    prompt_id: uuid.UUID, request: Request, project: PageProject, user: Trainer, session: SessionDep
) -> HTMLResponse:
    """One prompt with its answers, its tasks, and what was reported of it."""
    return render(
        request,
        "prompts/show.html",
        here="prompts",
        project=project,
        prompt=await prompts.get_prompt(session, prompt_id, project_id=project.id),
        completions=await prompts.list_completions(session, prompt_id),
        tasks=await lists.tasks_of_prompt(session, prompt_id),
        reports=await reports.list_reports(session, project_id=project.id, prompt_id=prompt_id),
    )


@router.get("/projects/{slug}/reports")
async def list_reports(request: Request, project: PageProject, user: Trainer, session: SessionDep) -> HTMLResponse:
    """What annotators reported of broken prompts."""
    found = await reports.list_reports(session, project_id=project.id)
    return render(request, "tasks/reports.html", here="tasks", project=project, reports=found)


@router.post("/projects/{slug}/reports/{prompt_id}")
async def settle_reports(
    prompt_id: uuid.UUID,
    project: PageProject,
    user: Admin,
    session: SessionDep,
    is_broken: Annotated[bool, Form()],
) -> RedirectResponse:
    """Withdraw the tasks of a prompt that was reported, or say that nothing is wrong with it."""
    await reports.settle_reports(
        session,
        project_id=project.id,
        prompt_id=prompt_id,
        is_broken=is_broken,
        actor_id=user.id,
        now=datetime.now(UTC),
    )
    return see_other(f"/projects/{project.slug}/reports")


@router.post("/projects/{slug}/tasks/{task_id}/withdraw")
async def withdraw_task(task_id: uuid.UUID, project: PageProject, user: Admin, session: SessionDep) -> RedirectResponse:
    """Hand a task out no more."""
    await making.withdraw_task(session, project_id=project.id, task_id=task_id, actor_id=user.id)
    return see_other(f"/projects/{project.slug}/tasks/{task_id}")
