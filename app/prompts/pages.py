"""Prompts for admins: the list, and one prompt with its answers. Imports are in `app.rankings.import_pages`."""

from __future__ import annotations

import uuid
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


# The convertor lets `/prompts/import` through to its own page.
@router.get("/projects/{slug}/prompts/{prompt_id:uuid}")
async def show_prompt(
    prompt_id: uuid.UUID, request: Request, project: PageProject, user: Trainer, session: SessionDep
) -> HTMLResponse:
    """One prompt with its answers."""
    return render(
        request,
        "prompts/show.html",
        here="prompts",
        project=project,
        prompt=await service.get_prompt(session, prompt_id, project_id=project.id),
        completions=await service.list_completions(session, prompt_id),
    )
