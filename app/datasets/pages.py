"""Datasets for admins: the list, one dataset with its first rows, freeze, download."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse

from app.accounts.guards import Trainer
from app.corpora.service import list_corpora
from app.datasets import service
from app.datasets.exporting import Export, check_choices, download
from app.datasets.schemas import ExportChoices
from app.formats.exports import EXPORTS
from app.projects.guards import PageProject
from app.web import SessionDep, render, see_other, words

router = APIRouter()
LIST_SIZE = 200
PREVIEW_SIZE = 3
PREVIEW_LENGTH = 600


@router.get("/projects/{slug}/datasets")
async def list_datasets(request: Request, project: PageProject, user: Trainer, session: SessionDep) -> HTMLResponse:
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
async def freeze_dataset(project: PageProject, user: Trainer, session: SessionDep) -> RedirectResponse:
    """Freeze the current rankings."""
    dataset = await service.freeze(session, project=project, created_by=user.id)
    return see_other(f"/projects/{project.slug}/datasets/{dataset.number}")


@router.get("/projects/{slug}/datasets/{number:int}")
async def show_dataset(
    number: int, request: Request, project: PageProject, user: Trainer, session: SessionDep
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


@router.get("/projects/{slug}/datasets/{number:int}/export")
async def show_export(
    number: int,
    request: Request,
    project: PageProject,
    user: Trainer,
    session: SessionDep,
    choices: Annotated[ExportChoices, Query()],
) -> HTMLResponse:
    """What a file would hold, and what its format can't, before it is downloaded."""
    dataset = await service.get_dataset_by_number(session, project.id, number)
    export = Export(dataset, project, choices, request.app.state.sessionmaker)
    return render(
        request,
        "datasets/export.html",
        here="datasets",
        project=project,
        dataset=dataset,
        choices=choices,
        formats=[(form.name, words(request)["_"](form.title)) for form in EXPORTS.values()],
        not_held=export.report()["not_held"],
        preview=[excerpt(record) for record in await export.first_records(PREVIEW_SIZE)],
        query=urlencode(choices.model_dump(exclude_defaults=True)),
        file_name=export.file_name,
    )


@router.get("/projects/{slug}/datasets/{number:int}/download", response_class=StreamingResponse)
async def download_dataset(
    number: int,
    request: Request,
    project: PageProject,
    user: Trainer,
    session: SessionDep,
    choices: Annotated[ExportChoices, Query()],
) -> Response:
    """A dataset as a file, in a format of the reader's choice."""
    dataset = await service.get_dataset_by_number(session, project.id, number)
    return await download(request, dataset, project, check_choices(choices))


def excerpt(record: bytes) -> str:
    """The beginning of a record, for a page."""
    line = record.decode()
    return line if len(line) <= PREVIEW_LENGTH else f"{line[:PREVIEW_LENGTH]}…"
