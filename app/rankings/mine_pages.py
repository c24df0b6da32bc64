"""An annotator's own work in a project: the last rankings, the break, and the page on which a ranking is changed."""

from __future__ import annotations

import uuid
from datetime import UTC, datetime
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, JSONResponse, RedirectResponse

from app.accounts.guards import Annotator
from app.errors import Conflict
from app.projects.guards import PageProject
from app.rankings import own, service
from app.rankings.forms import read_form
from app.rankings.pages import asks_for_json, show_sheet
from app.rankings.provenance import read_how
from app.rankings.service import AnswerRefused
from app.tasks import ahead, lists
from app.tasks import service as tasks
from app.tasks.guards import SamePerson
from app.web import SessionDep, render, see_other

router = APIRouter()
PAGE_SIZE = 20


@router.get("/projects/{slug}/mine")
async def show_own_work(
    request: Request,
    project: PageProject,
    annotator: Annotator,
    session: SessionDep,
    before: Annotated[int | None, Query(ge=0)] = None,
) -> HTMLResponse:
    """What was done today, and the last rankings, which may still be changed."""
    views = await own.list_own(session, project_id=project.id, annotator=annotator, before=before, limit=PAGE_SIZE + 1)
    shown = views[:PAGE_SIZE]
    today = own.start_of_day(datetime.now(UTC))
    work = await own.work_since(session, project_id=project.id, annotator_id=annotator.id, since=today)
    return render(
        request,
        "rankings/mine.html",
        project=project,
        work=work,
        is_open=service.is_open(project),
        reviewed=await own.reviewed_among(session, shown),
        views=shown,
        prompts=await lists.prompts_of_tasks(session, [view.ranking.task_id for view in shown]),
        next_url=f"?before={shown[-1].ranking.number}" if len(views) > PAGE_SIZE else None,
        is_first=before is None,
    )


@router.post("/projects/{slug}/rank/pause")
async def take_a_break(project: PageProject, annotator: Annotator, session: SessionDep) -> RedirectResponse:
    """Give back the task that was fetched ahead, and show what was done today. What is in hand stays in hand."""
    await ahead.give_ahead_back(session, annotator=annotator, now=datetime.now(UTC))
    return see_other(f"/projects/{project.slug}/mine")


@router.get("/rankings/{ranking_id}/change")
async def show_change(
    request: Request, ranking_id: uuid.UUID, annotator: Annotator, session: SessionDep
) -> HTMLResponse:
    """A ranking as it was given, to be changed."""
    view = await own.find_own(session, ranking_id=ranking_id, annotator=annotator)
    lease = await tasks.get_lease(session, lease_id=view.ranking.lease_id or uuid.UUID(int=0), annotator=annotator)
    sheet = await tasks.get_sheet(session, lease)
    try:
        task = await tasks.get_task(session, project_id=sheet.project.id, task_id=view.ranking.task_id)
        service.require_changeable(sheet.project, task, view)
    except Conflict as closed:
        closed.onward = f"/projects/{sheet.project.slug}/mine"
        raise
    return await show_sheet(request, session, sheet, annotator, answer=own.answer_of(view), changes=ranking_id)


@router.post("/rankings/{ranking_id}/change", response_model=None)
async def change_ranking(
    request: Request, ranking_id: uuid.UUID, annotator: SamePerson, session: SessionDep
) -> RedirectResponse | HTMLResponse | JSONResponse:
    """A change of mind supersedes the ranking. Sent twice it is stored once; the history is kept."""
    form = await request.form()
    view = await own.find_own(session, ranking_id=ranking_id, annotator=annotator)
    lease = await tasks.get_lease(session, lease_id=view.ranking.lease_id or uuid.UUID(int=0), annotator=annotator)
    sheet = await tasks.get_sheet(session, lease)
    fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    sent = read_form(fields, shown=lease.display_order)
    how = read_how(str(form.get("how", "")), lease_id=lease.id, leased_at=lease.created_at, now=datetime.now(UTC))
    try:
        if sent.errors:
            raise AnswerRefused(sent.errors)
        ranking = await service.revise(
            session, ranking_id=ranking_id, annotator=annotator, answer=sent.answer, provenance=how
        )
    except AnswerRefused as refused:
        if asks_for_json(request):
            raise
        return await show_sheet(
            request, session, sheet, annotator, answer=sent.answer, errors=refused.errors, changes=ranking_id
        )
    except Conflict as conflict:
        conflict.onward = f"/projects/{sheet.project.slug}/mine"
        raise
    if asks_for_json(request):
        return JSONResponse({"ranking_id": str(ranking.id), "is_surplus": ranking.is_surplus})
    return see_other(f"/projects/{sheet.project.slug}/mine")
