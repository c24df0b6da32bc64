"""Datasets for admins: the list, one dataset with its first rows, freeze, download."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse, StreamingResponse

from app.accounts.guards import Admin
from app.corpora.service import list_corpora
from app.datasets import service
from app.datasets.exporting import download
from app.projects.guards import PageProject
from app.web import SessionDep, render, see_other

router = APIRouter()
LIST_SIZE = 200


@router.get("/projects/{slug}/datasets")
async def list_datasets(request: Request, project: PageProject, user: Admin, session: SessionDep) -> HTMLResponse:
    """The datasets and the corpora of a project, newest first."""
    return render(
        request,
        "datasets/list.html",
        here="datasets",
        project=project,
        datasets=await service.list_datasets(session, project.id, limit=LIST_SIZE),
        num_new=await service.count_new_rankings(session, project.id),
        corpora=await list_corpora(session, project.id),
    )


@router.post("/projects/{slug}/datasets")
async def freeze_dataset(project: PageProject, user: Admin, session: SessionDep) -> RedirectResponse:
    """Freeze the current rankings."""
    dataset = await service.freeze(session, project=project, created_by=user.id)
    return see_other(f"/projects/{project.slug}/datasets/{dataset.number}")


@router.get("/projects/{slug}/datasets/{number:int}")
async def show_dataset(
    number: int, request: Request, project: PageProject, user: Admin, session: SessionDep
) -> HTMLResponse:
    """One dataset, with its first rows and the versions that learned from it."""
    dataset = await service.get_dataset_by_number(session, project.id, number)
    return render(
        request,
        "datasets/show.html",
        here="datasets",
        project=project,
        dataset=dataset,
        rows=await service.first_rows(session, dataset.id),
        versions=await service.versions_of_dataset(session, dataset.id),
    )


@router.get("/projects/{slug}/datasets/{number:int}/download", response_class=StreamingResponse)
async def download_dataset(
    number: int, request: Request, project: PageProject, user: Admin, session: SessionDep
) -> StreamingResponse:
    """The lines of a dataset, as a file."""
    dataset = await service.get_dataset_by_number(session, project.id, number)
    return download(request, dataset, project)
