"""Pages of gold tasks, for admins: the list, and one task's known order."""

from __future__ import annotations

import uuid

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from app.accounts.guards import Admin
from app.projects.guards import PageProject
from app.prompts.models import Prompt
from app.quality import gold, qualification
from app.rankings.forms import read_form
from app.rankings.service import AnswerRefused
from app.tasks import lists
from app.tasks import service as tasks
from app.tasks.models import GoldOrder
from app.web import SessionDep, render, see_other

router = APIRouter()


@router.get("/projects/{slug}/quality/gold")
async def list_gold(request: Request, project: PageProject, user: Admin, session: SessionDep) -> HTMLResponse:
    """The tasks whose order is known, and how well people do on them."""
    rows = await gold.list_gold(session, project)
    return render(
        request,
        "quality/gold.html",
        here="quality",
        project=project,
        rows=rows,
        most=gold.LISTED,
        num_own=await gold.count_own(session, project, user),
        num_tests=await qualification.count_tests(session, project),
    )


@router.post("/projects/{slug}/quality/gold")
async def take_over(project: PageProject, user: Admin, session: SessionDep) -> RedirectResponse:
    """Make gold of what the admin ranked themselves."""
    await gold.take_over(session, project, actor=user)
    return see_other(f"/projects/{project.slug}/quality/gold")


@router.get("/projects/{slug}/tasks/{task_id}/gold")
async def show_gold(
    task_id: uuid.UUID,
    request: Request,
    project: PageProject,
    user: Admin,
    session: SessionDep,
    ranking: uuid.UUID | None = None,
) -> HTMLResponse:
    """A task with its known order, to be written or changed; `ranking` fills in what one ranking says."""
    task = await tasks.get_task(session, project_id=project.id, task_id=task_id)
    known = await session.get(GoldOrder, task_id)
    places = await gold.places_of_ranking(session, task_id, ranking) if ranking else known.places if known else []
    return render(
        request,
        "quality/gold_task.html",
        here="quality",
        project=project,
        task=task,
        prompt=await session.get_one(Prompt, task.prompt_id),
        completions=await lists.list_completions(session, task_id),
        known=known,
        places=places,
    )


@router.post("/projects/{slug}/tasks/{task_id}/gold")
async def mark_gold(
    task_id: uuid.UUID, request: Request, project: PageProject, user: Admin, session: SessionDep
) -> RedirectResponse:
    """Make it gold, or write its order anew: `place_<completion id>`, `why`, `is_qualifying`."""
    form = await request.form()
    fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    task = await tasks.get_task(session, project_id=project.id, task_id=task_id)
    sent = read_form(fields, await tasks.completion_ids(session, task.id))
    if sent.errors:
        raise AnswerRefused(sent.errors)
    await gold.mark(
        session,
        project,
        task_id,
        answer=sent.answer,
        why=str(form.get("why", "")),
        actor=user,
        is_qualifying="is_qualifying" in form,
    )
    return see_other(f"/projects/{project.slug}/quality/gold")
