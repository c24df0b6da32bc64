"""The page of over-optimisation and of the learning curve."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse

from app.accounts.guards import Trainer
from app.loop import learning, watch
from app.projects.guards import PageProject
from app.quality.curves import PUBLISHED_GAIN
from app.web import SessionDep, render, words

router = APIRouter()


@router.get("/projects/{slug}/watch")
async def show_watch(request: Request, project: PageProject, user: Trainer, session: SessionDep) -> HTMLResponse:
    """Reward against people over the policy line, and accuracy against rankings."""
    return render(
        request,
        "loop/watch.html",
        here="overview",
        project=project,
        line=await watch.policy_line(session, project),
        learning=await learning.learning_curve(session, project, words(request)),
        published=PUBLISHED_GAIN,
        choices=await watch.choices(session, project),
    )
