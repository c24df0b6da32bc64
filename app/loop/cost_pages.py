"""The page of what rounds cost, and every plot's and table's numbers as files."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from app.accounts.guards import Trainer
from app.loop import costs, watch
from app.projects.guards import PageProject
from app.spreadsheets import as_csv
from app.web import SessionDep, render, words

router = APIRouter()
POINT = ("plot", "series", "x", "y")


@router.get("/projects/{slug}/costs")
async def show_costs(request: Request, project: PageProject, user: Trainer, session: SessionDep) -> HTMLResponse:
    """Minutes of people and of workers a round, and a point of win rate."""
    rows = await costs.costs_of(session, project)
    return render(request, "loop/costs.html", here="overview", project=project, rows=rows)


@router.get("/projects/{slug}/costs.csv")
async def download_costs_csv(project: PageProject, user: Trainer, session: SessionDep) -> Response:
    """The figures of that page, as a file for spreadsheets."""
    rows = costs.rows_of(await costs.costs_of(session, project))
    return as_file(as_csv(costs.ALL_COLUMNS, rows), f"{project.slug}-costs.csv")


@router.get("/projects/{slug}/costs.json")
async def download_costs_json(project: PageProject, user: Trainer, session: SessionDep) -> JSONResponse:
    """The same as JSON."""
    return JSONResponse(costs.rows_of(await costs.costs_of(session, project)))


@router.get("/projects/{slug}/watch.csv")
async def download_watch_csv(request: Request, project: PageProject, user: Trainer, session: SessionDep) -> Response:
    """Every point of every plot of the watch page."""
    rows = points_of(await watch.all_series(session, project, words(request)))
    return as_file(as_csv(POINT, rows), f"{project.slug}-watch.csv")


@router.get("/projects/{slug}/watch.json")
async def download_watch_json(
    request: Request, project: PageProject, user: Trainer, session: SessionDep
) -> JSONResponse:
    """The same as JSON: plot -> series -> points."""
    return JSONResponse(await watch.all_series(session, project, words(request)))


def points_of(plots: dict[str, watch.Series]) -> list[dict[str, Any]]:
    """One row a point."""
    return [
        {"plot": name, "series": series, "x": x, "y": y}
        for name, lines in plots.items()
        for series, points in lines.items()
        for x, y in points
    ]


def as_file(text: str, name: str) -> Response:
    """A download under this name; other characters than a header takes are left out."""
    plain = name.encode("ascii", "ignore").decode().lstrip("-")
    headers = {"content-disposition": f'attachment; filename="{plain}"'}
    return Response(text, media_type="text/csv; charset=utf-8", headers=headers)
