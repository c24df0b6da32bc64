"""Pages of the qualification: where one stands and what one may learn, and the decision of an admin."""

from __future__ import annotations

import uuid
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse

from app.accounts.guards import Admin, Annotator
from app.projects.guards import PageProject
from app.quality import qualification
from app.web import SessionDep, render, see_other

router = APIRouter()


@router.get("/projects/{slug}/qualification")
async def show_qualification(
    request: Request, project: PageProject, user: Annotator, session: SessionDep
) -> HTMLResponse:
    """How far somebody is, and after a try their orders beside the known ones."""
    report = await qualification.report_of(session, project, user)
    return render(request, "quality/qualification.html", project=project, report=report)


@router.post("/projects/{slug}/qualification")
async def begin_qualification(project: PageProject, user: Annotator, session: SessionDep) -> RedirectResponse:
    """Begin a try, the first or another one."""
    await qualification.begin(session, project, user)
    return see_other(f"/projects/{project.slug}/rank")


@router.post("/projects/{slug}/quality/annotators/{user_id}/standing")
async def decide_standing(
    user_id: uuid.UUID, project: PageProject, user: Admin, session: SessionDep, decision: Annotated[str, Form()] = ""
) -> RedirectResponse:
    """Let somebody in, give them their tries again, or leave them out."""
    await qualification.decide(session, project, user_id, decision, actor_id=user.id)
    return see_other(f"/projects/{project.slug}/quality/annotators/{user_id}")
