"""Datasets for admins: the list, one dataset with its first rows, freeze, download."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlencode

from fastapi import APIRouter, Query, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response, StreamingResponse
from sqlalchemy.ext.asyncio import AsyncSession
from starlette.datastructures import QueryParams

from app.accounts.guards import Trainer
from app.accounts.models import Scope, nameless
from app.corpora.service import list_corpora
from app.datasets import service
from app.datasets.exporting import Export, check_choices, download
from app.datasets.filters import PEOPLE, SHARES, DatasetFilter, Form
from app.datasets.schemas import ExportChoices
from app.db import let_go
from app.errors import FieldError, Invalid
from app.formats.exports import EXPORTS
from app.projects import tallies
from app.projects.guards import PageProject
from app.projects.models import Project
from app.web import SessionDep, render, see_other, told, words

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
        num_learnable=(await tallies.read(session, project.id)).whole().num_learnable,
        corpora=await list_corpora(session, project.id),
    )


@router.get("/projects/{slug}/datasets/new")
async def show_new(request: Request, project: PageProject, user: Trainer, session: SessionDep) -> HTMLResponse:
    """Choose rankings, and see how many they are; at first all, as the project caps what one person may be."""
    share = project.max_annotator_share
    at_first = QueryParams({} if share is None else {"max_annotator_share": share})
    return await render_new(request, project, session, request.query_params or at_first)


@router.post("/projects/{slug}/datasets", response_class=RedirectResponse)
async def freeze_dataset(request: Request, project: PageProject, user: Trainer, session: SessionDep) -> Response:
    """Freeze the current rankings, all or those chosen."""
    async with request.form() as form:
        name, licence = (str(form.get(field, ""))[:200] for field in ("name", "licence"))
        try:
            chosen = DatasetFilter.of_form(form)
            dataset = await service.freeze(
                session, project=project, chosen=chosen, name=name, licence=licence, created_by=user.id
            )
        except Invalid:
            return await render_new(request, project, session, form)
    return see_other(f"/projects/{project.slug}/datasets/{dataset.number}")


async def render_new(request: Request, project: Project, session: AsyncSession, form: Form) -> HTMLResponse:
    """The form with what was typed, and what that would choose."""
    errors: list[FieldError] = []
    found = None
    try:
        found = await service.count_chosen(session, project.id, DatasetFilter.of_form(form))
    except Invalid as error:
        errors = told(request, error)
    people = await service.list_people(session, project.id)
    sees_names = Scope.ADMIN in request.state.user.scopes
    several = {name: list(form.getlist(name)) for name in ("splits", "sources", *PEOPLE)}
    single = ("name", "licence", "rounds", "languages", "versions", "since", "until", "reviewed", *SHARES)
    typed = {name: str(form.get(name, "")) for name in single} | several
    return render(
        request,
        "datasets/new.html",
        status_code=422 if errors else 200,
        here="datasets",
        project=project,
        chosen=typed | {"splits": several["splits"] or ["train", "validation"]},
        errors=errors,
        found=found,
        most_counted=service.MOST_COUNTED,
        people=[(key, name if sees_names else nameless(key)) for key, name in people if key],
        outsiders=[name for key, name in people if key is None],
    )


@router.get("/projects/{slug}/datasets/{number:int}/diff")
async def compare_datasets(
    number: int,
    request: Request,
    project: PageProject,
    user: Trainer,
    session: SessionDep,
    other: Annotated[int | None, Query(ge=1, lt=2**31)] = None,
) -> HTMLResponse:
    """What one dataset holds and another one does not."""
    one = await service.get_dataset_by_number(session, project.id, number)
    with_ = None if other is None else await service.get_dataset_by_number(session, project.id, other)
    others = [item for item in await service.list_datasets(session, project.id, limit=LIST_SIZE) if item.id != one.id]
    return render(
        request,
        "datasets/diff.html",
        here="datasets",
        project=project,
        one=one,
        other=with_,
        datasets=[(item.number, f"d{item.number} {item.name}".strip()) for item in others],
        difference=await service.compare(session, one, with_) if with_ else None,
    )


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
        rows=await service.first_rows(session, dataset),
        versions=await service.versions_of_dataset(session, dataset.id),
        card=service.card_of(dataset, project),
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
    await let_go(session)
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
    return await download(request, session, dataset, project, check_choices(choices))


def excerpt(record: bytes) -> str:
    """The beginning of a record, for a page."""
    line = record.decode()
    return line if len(line) <= PREVIEW_LENGTH else f"{line[:PREVIEW_LENGTH]}…"
