"""Runs for admins: the list, one run with its progress, curves and log, cancel and retry."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.audit import audit
from app.accounts.guards import Trainer
from app.errors import NotFound, RankloopError
from app.plots import metric_plots
from app.projects.guards import PageProject
from app.projects.models import Project
from app.runs import service
from app.web import SessionDep, render, see_other, told

router = APIRouter()


async def render_list(
    request: Request,
    session: AsyncSession,
    project: Project,
    *,
    starts: Sequence[tuple[int, str]],
    typed: Mapping[str, str] | None = None,
    error: RankloopError | None = None,
) -> HTMLResponse:
    """The runs of a project, newest first. Below them the form to train in another way: the versions it
    `starts` from (number, title), what was typed, and what is wrong with it."""
    runs = await service.list_runs(session, project_id=project.id, limit=200)
    return render(
        request,
        "runs/list.html",
        status_code=error.status if error else 200,
        here="runs",
        project=project,
        runs=runs,
        starts=starts,
        typed=typed or {},
        errors=told(request, error) if error else [],
        next_url=None,
        is_first=True,
    )


@router.get("/projects/{slug}/runs/{run_id}")
async def show_run(
    run_id: uuid.UUID, request: Request, project: PageProject, user: Trainer, session: SessionDep
) -> HTMLResponse:
    """One run."""
    return render(request, "runs/show.html", **await run_context(session, project, run_id))


@router.get("/projects/{slug}/runs/{run_id}/live")
async def show_run_live(
    run_id: uuid.UUID, request: Request, project: PageProject, user: Trainer, session: SessionDep
) -> HTMLResponse:
    """The part of the page that moves."""
    return render(request, "runs/_live.html", **await run_context(session, project, run_id))


async def run_context(session: AsyncSession, project: Project, run_id: uuid.UUID) -> dict[str, Any]:
    """A run of this project with all that its worker reported.

    Raises:
        NotFound: the project has no such run.
    """
    run = await service.get_run(session, run_id)
    if run.project_id != project.id:
        raise NotFound("There is no such run.")
    return {
        "here": "runs",
        "project": project,
        "run": run,
        "version": (run.result or {}).get("version"),
        "plots": metric_plots(await service.list_metrics(session, run_id)),
        "log": await service.list_log(session, run_id),
        "artifacts": await service.list_artifacts(session, run_id),
    }


@router.post("/projects/{slug}/runs/{run_id}/cancel")
async def cancel_run(run_id: uuid.UUID, project: PageProject, user: Trainer, session: SessionDep) -> RedirectResponse:
    """Cancel a run."""
    await run_context(session, project, run_id)
    await service.cancel(session, run_id=run_id)
    await audit(session, actor_id=user.id, action="run.cancel", subject=str(run_id))
    return see_other(f"/projects/{project.slug}/runs/{run_id}")


@router.post("/projects/{slug}/runs/{run_id}/retry")
async def retry_run(run_id: uuid.UUID, project: PageProject, user: Trainer, session: SessionDep) -> RedirectResponse:
    """Put a failed or cancelled run into the queue again."""
    await run_context(session, project, run_id)
    await service.retry(session, run_id=run_id)
    await audit(session, actor_id=user.id, action="run.retry", subject=str(run_id))
    return see_other(f"/projects/{project.slug}/runs/{run_id}")
