"""Prompts for admins: the list. One prompt is in `app.tasks.pages`, imports are in `app.rankings.import_pages`."""

from __future__ import annotations

from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse

from app.accounts.guards import Trainer
from app.projects.guards import PageProject
from app.prompts import service
from app.prompts.models import Split
from app.web import SessionDep, render

router = APIRouter()
PAGE_SIZE = 50


@router.get("/projects/{slug}/prompts")
async def list_prompts(
    request: Request,
    project: PageProject,
    user: Trainer,
    session: SessionDep,
    split: str = "",
    after: Annotated[int, Query(ge=0, lt=2**62)] = 0,
) -> HTMLResponse:
    """The prompts of a project, in the order in which they came."""
    split = split if split in set(Split) else ""
    rows = await service.list_prompts(session, project.id, split=split or None, after=after, limit=PAGE_SIZE)
    more = f"?split={split}&after={rows[-1].Prompt.number}" if len(rows) == PAGE_SIZE else None
    return render(
        request,
        "prompts/list.html",
        here="prompts",
        project=project,
        rows=rows,
        counts=await service.count_prompts(session, project.id),
        split=split,
        next_url=more,
        is_first=after == 0,
    )
