"""Where a project is seen as a whole: home, the road of its round, versions with their lineage, and the buttons."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Form, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.guards import Access, AccessDep, Admin, Trainer
from app.accounts.models import Scope
from app.errors import Invalid, RankloopError
from app.loop import alternatives, arrivals, lineage, overview, sampling, service, training
from app.plots import metric_plots
from app.projects.guards import PageProject
from app.projects.models import Project
from app.projects.schemas import parse_object
from app.projects.service import list_projects
from app.quality import reviews
from app.rankings.pages import ranking_context
from app.registry import service as registry
from app.runs import service as runs
from app.runs.pages import render_list as render_runs
from app.tasks.lists import prompts_of_tasks
from app.web import SessionDep, SettingsDep, render, see_other, told, words

router = APIRouter()
PAGE_SIZE = 50


@router.get("/")
async def show_home(request: Request, access: AccessDep, session: SessionDep) -> HTMLResponse:
    """My projects, with what waits for me."""
    projects = await list_projects(session, within=access.roles.projects_with(Scope))
    return render(
        request, "home.html", projects=[await home_row(request, session, project, access) for project in projects]
    )


async def home_row(request: Request, session: AsyncSession, project: Project, access: Access) -> dict[str, Any]:
    """One project on the first page; who may read all of it sees the road of its round too."""
    scopes = access.roles.scopes_in(project.id)
    may_read = Scope.READ in scopes
    steps = await overview.road(session, project=project, words=words(request)) if may_read else []
    progress = await overview.my_progress(session, project=project, user=access.user)
    num_reviews = await reviews.count_open(session, project) if Scope.REVIEW in scopes else None
    return {"project": project, "may_read": may_read, "num_reviews": num_reviews, "steps": steps, **progress}


@router.get("/projects/{slug}")
async def show_project(request: Request, project: PageProject, user: Trainer, session: SessionDep) -> HTMLResponse:
    """The current round: its road, its figures, the versions, and the next button to press."""
    context = await overview.project_view(session, project=project, user=user, words=words(request))
    return render(request, "projects/show.html", here="overview", project=project, **context)


@router.post("/projects/{slug}/sample")
async def sample(project: PageProject, user: Trainer, session: SessionDep, settings: SettingsDep) -> RedirectResponse:
    """Draw answers for the current round."""
    run = await sampling.start_sampling(session, project=project, actor_id=user.id, max_queued=settings.max_queued_runs)
    return see_other(f"/projects/{project.slug}/runs/{run.id}")


@router.post("/projects/{slug}/train")
async def train(project: PageProject, user: Trainer, session: SessionDep, settings: SettingsDep) -> RedirectResponse:
    """Train the reward model, then the policy."""
    run = await training.start_training(session, project=project, actor_id=user.id, max_queued=settings.max_queued_runs)
    return see_other(f"/projects/{project.slug}/runs/{run.id}")


@router.get("/projects/{slug}/runs")
async def list_runs(request: Request, project: PageProject, user: Trainer, session: SessionDep) -> HTMLResponse:
    """The runs of a project, and the form to train in another way."""
    return await render_runs(request, session, project, starts=await _starts(request, session, project))


async def _starts(request: Request, session: AsyncSession, project: Project) -> list[tuple[int, str]]:
    """(number, title) of the policies that a run may begin from."""
    policies = await alternatives.starts(session, project)
    return [(policy.number, lineage.version_title(policy, words(request))) for policy in policies]


@router.post("/projects/{slug}/runs", response_model=None)
async def start_run(
    request: Request,
    project: PageProject,
    user: Trainer,
    session: SessionDep,
    settings: SettingsDep,
    kind: Annotated[str, Form()],
    version: Annotated[str, Form(max_length=20)] = "",
    training: Annotated[str, Form(max_length=10_000)] = "",
) -> RedirectResponse | HTMLResponse:
    """Train in another way. What can't be started comes back as typed, with the reason."""
    try:
        # What was frozen for a run that then can't start is not kept.
        async with session.begin_nested():
            run = await alternatives.start(
                session,
                project=project,
                kind=kind,
                version=await alternatives.find_start(session, project, version) if version else None,
                training=parse_object("training", training),
                actor_id=user.id,
                max_queued=settings.max_queued_runs,
            )
    except RankloopError as error:
        typed, starts = (
            {"kind": kind, "version": version, "training": training},
            await _starts(request, session, project),
        )
        return await render_runs(request, session, project, starts=starts, typed=typed, error=error)
    return see_other(f"/projects/{project.slug}/runs/{run.id}")


@router.get("/projects/{slug}/versions")
async def list_versions(request: Request, project: PageProject, user: Trainer, session: SessionDep) -> HTMLResponse:
    """All versions, and how each came from others."""
    view = await overview.versions_view(session, project)
    drawing = await lineage.of_project(session, project=project, versions=view["versions"], words=words(request))
    return render(request, "registry/list.html", here="versions", project=project, lineage=drawing, **view)


@router.get("/projects/{slug}/versions/{number}")
async def show_version(
    number: int, request: Request, project: PageProject, user: Trainer, session: SessionDep
) -> HTMLResponse:
    """One version: what it was made from, back to the rankings, and what came of it."""
    return await render_version(request, session, project, number)


async def render_version(
    request: Request, session: AsyncSession, project: Project, number: int, error: RankloopError | None = None
) -> HTMLResponse:
    """The page; with what was wrong with its form."""
    version = await registry.get_version_by_number(session, project_id=project.id, number=number)
    view = await overview.versions_view(session, project)
    files = await registry.artifacts_of(session, version.run_id)
    base = f"/api/v1/versions/{version.id}/artifacts"
    return render(
        request,
        "registry/show.html",
        status_code=error.status if error else 200,
        here="versions",
        project=project,
        version=version,
        by_id=view["by_id"],
        dataset=view["datasets"].get(version.dataset_id),
        run=await runs.get_run(session, version.run_id) if version.run_id else None,
        artifacts=[
            {"name": item.name, "size": item.size, "sha256": item.sha256, "url": f"{base}/{item.name}"}
            for item in files
        ],
        lineage=await lineage.of_project(
            session, project=project, versions=view["versions"], words=words(request), here=version.number
        ),
        plots=metric_plots(await runs.list_metrics(session, version.run_id)) if version.run_id else [],
        roll_back_to=await registry.live_before(session, version) if version.is_live else None,
        errors=told(request, error) if error else [],
    )


@router.get("/projects/{slug}/versions/{number}/rankings")
async def list_rankings_behind(
    number: int,
    request: Request,
    project: PageProject,
    user: Trainer,
    session: SessionDep,
    after: Annotated[int, Query(ge=-1)] = -1,
) -> HTMLResponse:
    """The rankings that a version learned from, each with a way to it."""
    version = await registry.get_version_by_number(session, project_id=project.id, number=number)
    found = await lineage.rankings_behind(session, version, after=after, limit=PAGE_SIZE)
    prompts = await prompts_of_tasks(session, [view.ranking.task_id for _, view in found])
    return render(
        request,
        "loop/rankings.html",
        here="versions",
        project=project,
        version=version,
        rows=[{"view": view, "prompt": prompts[view.ranking.task_id]} for _, view in found],
        next_url=f"?after={found[-1][0]}" if len(found) == PAGE_SIZE else None,
        is_first=after < 0,
    )


@router.get("/projects/{slug}/rounds")
async def list_rounds(request: Request, project: PageProject, user: Trainer, session: SessionDep) -> HTMLResponse:
    """The board of rounds: who answered, what was ranked, what was trained and what came out."""
    versions = await registry.list_versions(session, project.id)
    return render(
        request,
        "loop/rounds.html",
        here="overview",
        project=project,
        rows=await lineage.rounds_of(session, project, overview.num_ranked_places),
        lineage=await lineage.of_project(session, project=project, versions=versions, words=words(request)),
    )


@router.post("/projects/{slug}/versions/{number}/promote", response_model=None)
async def promote(
    number: int,
    request: Request,
    project: PageProject,
    user: Admin,
    session: SessionDep,
    reason: Annotated[str, Form(max_length=1000)] = "",
) -> RedirectResponse | HTMLResponse:
    """Make a version live, for a reason that stays."""
    version = await registry.get_version_by_number(session, project_id=project.id, number=number)
    if not reason.strip():
        refused = Invalid.field("reason", "Say why this version goes live: the reason stays in the log.")
        return await render_version(request, session, project, number, refused)
    await arrivals.promote(session, project=project, version=version, actor_id=user.id, reason=reason.strip())
    return see_other(f"/projects/{project.slug}/versions/{number}")


@router.get("/projects/{slug}/rankings/{ranking_id}")
async def show_ranking(
    ranking_id: uuid.UUID, request: Request, project: PageProject, user: Trainer, session: SessionDep
) -> HTMLResponse:
    """One ranking, and the versions that learned from it."""
    context = await ranking_context(session, project, ranking_id)
    learned_by = await service.versions_of_ranking(session, ranking_id)
    rejection = await reviews.rejection_of(session, ranking_id)
    drawing = await lineage.of_ranking(session, project=project, ranking=context["ranking"], words=words(request))
    return render(request, "rankings/show.html", learned_by=learned_by, rejection=rejection, lineage=drawing, **context)
