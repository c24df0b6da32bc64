"""Datasets for trainers and workers: freeze, list, and their lines as they were frozen."""

from __future__ import annotations

import uuid
from functools import partial
from typing import Annotated, Literal

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse
from sqlalchemy.ext.asyncio import AsyncSession
from starlette import status

from app.accounts.guards import ApiCaller, ReadCaller, ReadOrWorkerCaller, WriteCaller
from app.datasets import service
from app.datasets.exporting import download
from app.datasets.models import Dataset
from app.datasets.schemas import DatasetIn, DatasetOut, DatasetPage
from app.errors import BadRequest
from app.idempotency import idempotent
from app.projects.guards import find_project
from app.projects.service import get_project
from app.web import SessionDep, stream

router = APIRouter(tags=["datasets"])


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
    """Freeze the current rankings of a project."""
    project = await find_project(session, body.project_id)
    caller.require_project(project.id)
    return DatasetOut.model_validate(await service.freeze(session, project=project, created_by=caller.user.id))


@router.get("/datasets/{dataset_id}")
async def get_dataset(dataset_id: uuid.UUID, caller: ReadOrWorkerCaller, session: SessionDep) -> DatasetOut:
    """One dataset."""
    return DatasetOut.model_validate(await reachable(session, dataset_id, caller))


@router.get("/datasets/{dataset_id}/rows", response_class=StreamingResponse)
async def get_rows(
    dataset_id: uuid.UUID, caller: ReadOrWorkerCaller, session: SessionDep, request: Request
) -> StreamingResponse:
    """The lines of a dataset, for a run."""
    dataset = await reachable(session, dataset_id, caller)
    return stream(request, partial(service.stream_lines, dataset_id=dataset.id), etag=f'"{dataset.sha256}"')


@router.get("/datasets/{dataset_id}/export", response_class=StreamingResponse)
async def export_dataset(
    dataset_id: uuid.UUID,
    caller: ReadCaller,
    session: SessionDep,
    request: Request,
    format: Literal["jsonl"] = "jsonl",
) -> StreamingResponse:
    """The lines of a dataset, as a file."""
    dataset = await reachable(session, dataset_id, caller)
    project = await get_project(session, dataset.project_id)
    return download(request, dataset, project)


async def reachable(session: AsyncSession, dataset_id: uuid.UUID, caller: ApiCaller) -> Dataset:
    """A dataset of a project that the caller may see."""
    dataset = await service.get_dataset(session, dataset_id)
    caller.require_project(dataset.project_id)
    return dataset
