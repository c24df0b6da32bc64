"""What an annotator writes, and what a reviewer makes of it."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse, Response
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.guards import AccessDep, Annotator, Reviewer
from app.accounts.models import Scope, User
from app.db import stamp
from app.errors import FieldError, Invalid
from app.projects.guards import PageProject
from app.projects.models import Project
from app.projects.service import get_project
from app.prompts.models import PromptKind
from app.tasks.service import get_lease
from app.web import SessionDep, render, see_other, told
from app.writing import service
from app.writing.forms import edit_body, field_of, read_body
from app.writing.models import Writing, WritingKind, WritingState

router = APIRouter()
PAGE_SIZE = 50


@router.get("/projects/{slug}/writing")
async def list_mine(
    request: Request,
    project: PageProject,
    user: Annotator,
    session: SessionDep,
    before: Annotated[int | None, Query(ge=0, lt=2**62)] = None,
    none_left: str = "",
) -> HTMLResponse:
    """What I wrote, and where it stands; what the project asks for; for reviewers, the way to the queue."""
    rows = await service.list_of_author(session, project_id=project.id, author=user, before=before, limit=PAGE_SIZE + 1)
    return render(
        request,
        "writing/list.html",
        here="writing",
        project=project,
        rows=rows[:PAGE_SIZE],
        num_waiting=await service.count_queue(session, project.id),
        is_none_left=bool(none_left),
        next_url=f"?before={rows[PAGE_SIZE - 1][0].number}" if len(rows) > PAGE_SIZE else None,
        is_first=before is None,
    )


@router.post("/projects/{slug}/writing")
async def begin(
    project: PageProject,
    user: Annotator,
    session: SessionDep,
    kind: Annotated[WritingKind, Form()],
    prompt_kind: Annotated[PromptKind, Form()] = PromptKind.PLAIN,
) -> RedirectResponse:
    """Begin an ideal answer to the next prompt that has none, or a prompt."""
    if kind == WritingKind.PROMPT:
        writing = await service.begin_prompt(session, project=project, author=user, prompt_kind=prompt_kind)
        return see_other(f"/writings/{writing.id}")
    found = await service.begin_demonstration(session, project=project, author=user)
    return see_other(f"/writings/{found.id}" if found else f"/projects/{project.slug}/writing?none_left=yes")


@router.post("/leases/{lease_id}/write")
async def begin_from_lease(
    lease_id: uuid.UUID, user: Annotator, access: AccessDep, session: SessionDep
) -> RedirectResponse:
    """Write the ideal answer to the prompt of a task in hand, or of one that was ranked."""
    lease = await get_lease(session, lease_id=lease_id, annotator=user)
    assert access.project is not None
    project = await get_project(session, access.project.id)
    writing = await service.begin_from_lease(session, project=project, lease=lease, author=user)
    return see_other(f"/writings/{writing.id}")


@router.get("/writings/{writing_id}")
async def show(
    writing_id: uuid.UUID, request: Request, user: Annotator, access: AccessDep, session: SessionDep
) -> HTMLResponse:
    """One piece: to write on for its author, to settle for a reviewer."""
    writing = await service.get_writing(session, writing_id)
    return await render_one(request, session, writing, user, access)


@router.post("/writings/{writing_id}", response_model=None)
async def change(
    writing_id: uuid.UUID, request: Request, user: Annotator, access: AccessDep, session: SessionDep
) -> Response:
    """Save, send for review, take back or withdraw, as the button says; a script saves drafts and gets no page."""
    form = await request.form()
    fields = {name: value for name, value in form.items() if isinstance(value, str)}
    action = fields.get("action", "save")
    writing = await service.get_writing(session, writing_id)
    body = read_body(writing.kind, fields)
    is_stored = True
    try:
        if action == "submit":
            await service.submit(session, writing=writing, author=user, body=body)
        elif action == "take-back":
            await service.take_back(session, writing=writing, author=user)
        elif action == "withdraw":
            await service.withdraw(session, writing=writing, author=user)
        else:
            edited, follows = edit_body(body, action), fields.get("follows")
            is_stored = await service.save(session, writing=writing, author=user, body=edited, follows=follows)
    except Invalid as error:
        return await render_one(request, session, writing, user, access, body=body, error=error)
    if "application/json" in request.headers.get("accept", ""):
        return JSONResponse({"saved_at": stamp(writing.saved_at), "is_stored": is_stored})
    project = await get_project(session, writing.project_id)
    stays = action in {"save", "take-back"} or action.startswith("pair:")
    return see_other(f"/writings/{writing.id}" if stays else f"/projects/{project.slug}/writing")


@router.get("/projects/{slug}/writing/review")
async def list_queue(
    request: Request,
    project: PageProject,
    user: Reviewer,
    session: SessionDep,
    after: Annotated[int | None, Query(ge=0, lt=2**62)] = None,
) -> HTMLResponse:
    """What waits for review, oldest first."""
    rows = await service.list_queue(session, project_id=project.id, after=after, limit=PAGE_SIZE + 1)
    return render(
        request,
        "writing/queue.html",
        here="writing",
        project=project,
        rows=rows[:PAGE_SIZE],
        next_url=f"?after={rows[PAGE_SIZE - 1][0].number}" if len(rows) > PAGE_SIZE else None,
        is_first=after is None,
    )


@router.post("/writings/{writing_id}/review", response_model=None)
async def review(
    writing_id: uuid.UUID, request: Request, user: Reviewer, access: AccessDep, session: SessionDep
) -> Response:
    """Approve it, as it is or corrected, or give it back with a reason."""
    form = await request.form()
    fields = {name: value for name, value in form.items() if isinstance(value, str)}
    writing = await service.get_writing(session, writing_id)
    project = await get_project(session, writing.project_id)
    body = read_body(writing.kind, fields)
    try:
        # What was noted before the refusal is not kept.
        async with session.begin_nested():
            if fields.get("action") == "reject":
                reason = fields.get("reason", "")
                await service.reject(session, writing=writing, reviewer=user, reason=reason)
            else:
                await service.approve(session, project=project, writing=writing, reviewer=user, body=body)
    except Invalid as error:
        return await render_one(request, session, writing, user, access, body=body, error=error, fields=fields)
    return see_other(f"/projects/{project.slug}/writing/review")


async def render_one(
    request: Request,
    session: AsyncSession,
    writing: Writing,
    user: User,
    access: AccessDep,
    *,
    body: dict[str, Any] | None = None,
    error: Invalid | None = None,
    fields: dict[str, str] | None = None,
) -> HTMLResponse:
    """The page of one piece, with what was typed and what is wrong with it.

    Raises:
        WritingNotFound: it is somebody else's, and this person is no reviewer.
    """
    # A refusal that undid its steps has made it forget what it held.
    await session.refresh(writing)
    is_reviewer = Scope.REVIEW in access.scopes
    is_author = writing.author_id == user.id
    if not (is_author or is_reviewer):
        raise service.WritingNotFound
    project: Project = await get_project(session, writing.project_id)
    is_in_review = writing.state == WritingState.SUBMITTED
    return render(
        request,
        "writing/show.html",
        status_code=error.status if error else 200,
        here="writing",
        project=project,
        view=await service.view_of(session, writing),
        body=body if body is not None else writing.body,
        saved_at=stamp(writing.saved_at),
        can_edit=is_author and writing.state in service.EDITABLE,
        can_review=is_reviewer and is_in_review and (not is_author or project.allows_self_review),
        is_author=is_author,
        reason=(fields or {}).get("reason", ""),
        errors=[FieldError(field_of(item), item.rule) for item in told(request, error)] if error else [],
    )
