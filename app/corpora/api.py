"""Corpora for trainers and workers: import, list, and their lines as they were stored."""

from __future__ import annotations

import uuid
from functools import partial as bind
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from app.accounts.guards import ReadCaller, ReadOrWorkerCaller
from app.corpora import service
from app.corpora.models import CorpusKind
from app.corpora.schemas import CorpusList, CorpusOut
from app.projects.guards import ApiProject
from app.prompts.api import SentFile, json_lines
from app.prompts.lines import ImportReport
from app.web import SessionDep, stream

router = APIRouter(tags=["corpora"])


@router.post(
    "/projects/{project_id}/corpora:import",
    openapi_extra=json_lines({"prompt": "Who wrote Faust?", "completion": "Goethe."}),
)
async def import_corpus(file: SentFile, name: Annotated[str, Query(max_length=200)] = "") -> ImportReport:
    """Take a corpus: JSON lines of `{"text"}`, `{"messages"}` or `{"prompt", "completion"}`, or any of docs/data.md."""
    return await file.take("corpus", service.import_corpus, name=name)


@router.get("/projects/{project_id}/corpora")
async def list_corpora(
    project: ApiProject, caller: ReadCaller, session: SessionDep, kind: CorpusKind | None = None
) -> CorpusList:
    """A project's corpora, newest first."""
    corpora = await service.list_corpora(session, project.id, kind=kind)
    return CorpusList(items=[CorpusOut.model_validate(item) for item in corpora])


@router.get("/corpora/{corpus_id}/rows", response_class=StreamingResponse)
async def get_rows(
    corpus_id: uuid.UUID, caller: ReadOrWorkerCaller, session: SessionDep, request: Request
) -> StreamingResponse:
    """The lines of a corpus, for a run."""
    corpus = await service.get_corpus(session, corpus_id)
    caller.require_project(corpus.project_id)
    return stream(request, bind(service.stream_lines, corpus_id=corpus.id), etag=f'"{corpus.sha256}"')
