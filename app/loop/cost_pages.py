"""The page of what rounds cost, and every plot's and table's numbers as files."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, JSONResponse, Response

from app.accounts.guards import Trainer
from app.loop import costs, watch
from app.plots import Series
from app.projects.guards import PageProject
from app.spreadsheets import as_csv
from app.web import SessionDep, render

router = APIRouter()
POINT = ("plot", "series", "x", "y", "low", "high")


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
async def download_watch_csv(project: PageProject, user: Trainer, session: SessionDep) -> Response:
    """Every point of every plot of the watch page."""
    rows = points_of(await watch.all_series(session, project))
    return as_file(as_csv(POINT, rows), f"{project.slug}-watch.csv")


@router.get("/projects/{slug}/watch.json")
async def download_watch_json(project: PageProject, user: Trainer, session: SessionDep) -> JSONResponse:
    """The same as JSON: plot -> series -> points, as [x, y], or [x, y, low, high] where the interval is known."""
    return JSONResponse(await watch.all_series(session, project))


def points_of(plots: Mapping[str, Series]) -> list[dict[str, Any]]:
    """One row a point; `low` and `high` are empty where no interval is known."""
    return [
        {"plot": name, "series": series, **dict(zip(POINT[2:], point, strict=False))}
        for name, lines in plots.items()
        for series, points in lines.items()
        for point in points
    ]


def as_file(text: str, name: str) -> Response:
    """A download under this name; other characters than a header takes are left out."""
    plain = name.encode("ascii", "ignore").decode().lstrip("-")
    headers = {"content-disposition": f'attachment; filename="{plain}"'}
    return Response(text, media_type="text/csv; charset=utf-8", headers=headers)
