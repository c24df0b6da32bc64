"""Pages of gold tasks, for admins: the list, and one task's known order."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.datastructures import FormData

from app.accounts.guards import Admin
from app.accounts.models import User
from app.errors import Invalid
from app.projects.guards import PageProject
from app.projects.models import Project
from app.prompts.models import Prompt
from app.quality import gold, qualification
from app.rankings.forms import read_form
from app.rankings.service import AnswerRefused
from app.tasks import lists
from app.tasks import service as tasks
from app.tasks.models import GoldOrder
from app.tasks.service import LETTERS
from app.web import SessionDep, render, see_other, told

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
    known = await session.get(GoldOrder, task_id)
    places = await gold.places_of_ranking(session, task_id, ranking) if ranking else known.places if known else []
    shown = await tasks.completion_ids(session, task_id) if places else []
    typed: dict[str, Any] = {f"place_{item}": place for item, place in zip(shown, places, strict=True)}
    if known:
        typed |= {"why": known.why, "is_qualifying": known.is_qualifying}
    return await render_gold(request, session, project, task_id, typed)


async def render_gold(
    request: Request,
    session: AsyncSession,
    project: Project,
    task_id: uuid.UUID,
    typed: Mapping[str, Any],
    error: Invalid | None = None,
) -> HTMLResponse:
    """The page, with what was typed and what is wrong with it."""
    task = await tasks.get_task(session, project_id=project.id, task_id=task_id)
    completions = await lists.list_completions(session, task_id)
    return render(
        request,
        "quality/gold_task.html",
        status_code=error.status if error else 200,
        here="quality",
        project=project,
        task=task,
        prompt=await session.get_one(Prompt, task.prompt_id),
        cards=[(letter, completion) for letter, (completion, _) in zip(LETTERS, completions, strict=False)],
        known=await session.get(GoldOrder, task_id),
        typed=typed,
        errors=told(request, error) if error else [],
    )


@router.post("/projects/{slug}/tasks/{task_id}/gold", response_model=None)
async def mark_gold(
    task_id: uuid.UUID, request: Request, project: PageProject, user: Admin, session: SessionDep
) -> RedirectResponse | HTMLResponse:
    """Make it gold, or write its order anew: `place_<completion id>`, `why`, `is_qualifying`."""
    form = await request.form()
    try:
        async with session.begin_nested():
            await mark(session, project, task_id, admin=user, form=form)
    except Invalid as error:
        return await render_gold(request, session, project, task_id, form, error)
    return see_other(f"/projects/{project.slug}/quality/gold")


async def mark(session: AsyncSession, project: Project, task_id: uuid.UUID, *, admin: User, form: FormData) -> None:
    """Do as the form says.

    Raises:
        Invalid: it leaves an answer without a place, or says nothing that anybody could be right about.
    """
    task = await tasks.get_task(session, project_id=project.id, task_id=task_id)
    fields = [(name, value) for name, value in form.multi_items() if isinstance(value, str)]
    sent = read_form(fields, await tasks.completion_ids(session, task.id))
    if sent.errors:
        raise AnswerRefused(sent.errors)
    why, is_qualifying = str(form.get("why", "")), "is_qualifying" in form
    await gold.mark(session, project, task_id, answer=sent.answer, why=why, actor=admin, is_qualifying=is_qualifying)
