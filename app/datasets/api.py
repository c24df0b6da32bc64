"""Datasets for trainers and workers: freeze, list, and their lines as they were frozen."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

from fastapi import APIRouter, Query, Request
from fastapi.responses import PlainTextResponse, Response, StreamingResponse
from sqlalchemy.ext.asyncio import AsyncSession
from starlette import status

from app.accounts.guards import ApiCaller, ReadCaller, ReadOrWorkerCaller, WriteCaller
from app.datasets import service
from app.datasets.cards import card_markdown
from app.datasets.exporting import Export, check_choices, download
from app.datasets.models import Dataset
from app.datasets.schemas import DatasetIn, DatasetOut, DatasetPage, ExportChoices, ExportReport
from app.errors import BadRequest
from app.idempotency import idempotent
from app.projects.guards import find_project
from app.projects.service import get_project
from app.web import SessionDep

router = APIRouter(tags=["datasets"])


class MarkdownResponse(PlainTextResponse):
    """Markdown, as the OpenAPI document names it."""

    media_type = "text/markdown"


@router.get("/datasets")
async def list_datasets(
    project_id: str,
    caller: ReadCaller,
    session: SessionDep,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> DatasetPage:
    """A project's datasets, newest first."""
    project = await find_project(session, project_id)
    caller.require_project(project.id)
    if cursor is not None and not (cursor.isascii() and cursor.isdigit() and len(cursor) < 10):
        raise BadRequest("cursor: take it from the answer before, unchanged")
    before = int(cursor) if cursor else None
    datasets = await service.list_datasets(session, project.id, before=before, limit=limit)
    following = str(datasets[-1].number) if len(datasets) == limit else None
    return DatasetPage(items=[DatasetOut.model_validate(item) for item in datasets], next_cursor=following)


@router.post("/datasets", status_code=status.HTTP_201_CREATED)
@idempotent()
async def freeze_dataset(body: DatasetIn, caller: WriteCaller, session: SessionDep) -> DatasetOut:
    """Freeze the current rankings of a project, all or those that the filter chooses."""
    project = await find_project(session, body.project_id)
    caller.require_project(project.id)
    dataset = await service.freeze(
        session,
        project=project,
        chosen=body.filter.with_cap(project.max_annotator_share),
        name=body.name,
        licence=body.licence,
        created_by=caller.user.id,
    )
    return DatasetOut.model_validate(dataset)


@router.get("/datasets/{dataset_id}")
async def get_dataset(dataset_id: uuid.UUID, caller: ReadOrWorkerCaller, session: SessionDep) -> DatasetOut:
    """One dataset."""
    return DatasetOut.model_validate(await reachable(session, dataset_id, caller))


@router.get("/datasets/{dataset_id}/rows", response_class=StreamingResponse)
async def get_rows(
    dataset_id: uuid.UUID, caller: ReadOrWorkerCaller, session: SessionDep, request: Request
) -> Response:
    """The lines of a dataset as they were frozen, for a run."""
    dataset = await reachable(session, dataset_id, caller)
    project = await get_project(session, dataset.project_id)
    return await download(request, session, dataset, project, ExportChoices())


@router.get(
    "/datasets/{dataset_id}/export",
    response_class=StreamingResponse,
    responses={
        206: {"description": "The bytes that `Range` asked for."},
        304: {"description": "You have it: `If-None-Match` names its `ETag`."},
        416: {"description": "The file has no such bytes."},
    },
)
async def export_dataset(
    dataset_id: uuid.UUID,
    caller: ReadCaller,
    session: SessionDep,
    request: Request,
    choices: Annotated[ExportChoices, Query()],
) -> Response:
    """A dataset as a file, in a format of your choice. A broken download goes on with `Range` and `If-Range`."""
    dataset = await reachable(session, dataset_id, caller)
    project = await get_project(session, dataset.project_id)
    return await download(request, session, dataset, project, check_choices(choices))


@router.get("/datasets/{dataset_id}/report")
async def report_export(
    dataset_id: uuid.UUID,
    caller: ReadCaller,
    session: SessionDep,
    request: Request,
    choices: Annotated[ExportChoices, Query()],
) -> ExportReport:
    """What such a file holds, and what its format can't hold."""
    dataset = await reachable(session, dataset_id, caller)
    project = await get_project(session, dataset.project_id)
    export = Export(dataset, project, check_choices(choices), request.app.state.sessionmaker)
    return ExportReport.model_validate(export.report())


@router.get("/datasets/{dataset_id}/diff")
async def compare_datasets(
    dataset_id: uuid.UUID, other: uuid.UUID, caller: ReadCaller, session: SessionDep
) -> dict[str, Any]:
    """Which rankings two datasets share: how many, and the first rows that only one of them has."""
    one, with_ = await reachable(session, dataset_id, caller), await reachable(session, other, caller)
    return await service.compare(session, one, with_)


@router.get("/datasets/{dataset_id}/card")
async def get_card(dataset_id: uuid.UUID, caller: ReadCaller, session: SessionDep) -> dict[str, Any]:
    """Who ranked, how, how well they agree, which biases show, under which licence."""
    dataset = await reachable(session, dataset_id, caller)
    return service.card_of(dataset, await get_project(session, dataset.project_id))


@router.get("/datasets/{dataset_id}/card.md", response_class=MarkdownResponse)
async def get_card_markdown(dataset_id: uuid.UUID, caller: ReadCaller, session: SessionDep) -> MarkdownResponse:
    """The card as Markdown, as it stands in an exported folder."""
    dataset = await reachable(session, dataset_id, caller)
    card = service.card_of(dataset, await get_project(session, dataset.project_id))
    return MarkdownResponse(card_markdown(card, service.splits_of(dataset)))


async def reachable(session: AsyncSession, dataset_id: uuid.UUID, caller: ApiCaller) -> Dataset:
    """A dataset of a project that the caller may see."""
    dataset = await service.get_dataset(session, dataset_id)
    caller.require_project(dataset.project_id)
    return dataset
