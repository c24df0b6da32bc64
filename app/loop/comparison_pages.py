"""The page of blind comparisons: what people said of two policies, and the form that starts another."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.guards import Trainer
from app.errors import RankloopError
from app.loop import comparisons, ending
from app.loop.outcomes import INSTRUCTGPT
from app.plots import whiskers
from app.projects.guards import PageProject
from app.projects.models import Project
from app.registry import service as registry
from app.registry.models import VersionKind
from app.web import SessionDep, SettingsDep, render, see_other, words

router = APIRouter()


@router.get("/projects/{slug}/comparisons")
async def list_comparisons(request: Request, project: PageProject, user: Trainer, session: SessionDep) -> HTMLResponse:
    """All comparisons, newest first, on one axis."""
    return await render_list(request, session, project)


async def render_list(
    request: Request, session: AsyncSession, project: Project, error: RankloopError | None = None
) -> HTMLResponse:
    """The page; with what was wrong with the form."""
    views = await comparisons.list_comparisons(session, project.id)
    versions = await registry.list_versions(session, project.id)
    known = [view for view in views if view.figures.win_rate is not None]
    rows = [(view.figures.win_rate or 0.0, view.figures.low, view.figures.high, 0.5) for view in known]
    drawn = whiskers([*rows, (0.5, 0.0, 1.0, 0.5)])
    return render(
        request,
        "loop/comparisons.html",
        status_code=error.status if error else 200,
        here="versions",
        project=project,
        views=views,
        whiskers={view.comparison.number: mark for view, mark in zip(known, drawn, strict=False)},
        policies=[version for version in versions if version.kind == VersionKind.POLICY],
        published=INSTRUCTGPT,
        default_prompts=comparisons.DEFAULT_PROMPTS,
        max_prompts=comparisons.MAX_PROMPTS,
        error=in_words(error, words(request)) if error else "",
    )


def in_words(error: RankloopError, said: dict[str, Any]) -> str:
    """A refusal in the reader's language."""
    if not error.errors:
        return str(said["_"](str(error)))
    return " ".join(item.in_words(said) for item in error.errors)


@router.post("/projects/{slug}/comparisons", response_model=None)
async def start(
    request: Request,
    project: PageProject,
    user: Trainer,
    session: SessionDep,
    settings: SettingsDep,
    version: Annotated[int, Form(ge=1, lt=2**31)],
    against: Annotated[int, Form(ge=1, lt=2**31)],
    num_prompts: Annotated[int, Form(ge=1, le=comparisons.MAX_PROMPTS)] = comparisons.DEFAULT_PROMPTS,
) -> RedirectResponse | HTMLResponse:
    """Begin a comparison. What can't be begun comes back with the reason."""
    try:
        # Runs that were queued before the refusal are not kept.
        async with session.begin_nested():
            await comparisons.start(
                session,
                project=project,
                version=await registry.get_version_by_number(session, project_id=project.id, number=version),
                against=await registry.get_version_by_number(session, project_id=project.id, number=against),
                num_prompts=num_prompts,
                actor_id=user.id,
                max_queued=settings.max_queued_runs,
            )
    except RankloopError as error:
        return await render_list(request, session, project, error)
    return see_other(f"/projects/{project.slug}/comparisons")


@router.post("/projects/{slug}/comparisons/{number:int}/stop")
async def stop(number: int, project: PageProject, user: Trainer, session: SessionDep) -> RedirectResponse:
    """End a comparison before it is decided."""
    comparison = await comparisons.get_comparison(session, project_id=project.id, number=number)
    await ending.stop(session, comparison, actor_id=user.id)
    return see_other(f"/projects/{project.slug}/comparisons")
