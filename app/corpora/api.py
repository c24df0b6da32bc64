"""Corpora for trainers and workers: import, list, and their lines as they were stored."""

from __future__ import annotations

import uuid
from functools import partial as bind
from typing import Annotated

from fastapi import APIRouter, Query, Request
from fastapi.responses import StreamingResponse

from app.accounts.guards import ReadCaller, ReadOrWorkerCaller, WriteCaller
from app.corpora import service
from app.corpora.models import CorpusKind
from app.corpora.schemas import CorpusList, CorpusOut
from app.formats.sources import FileReader
from app.projects.guards import ApiProject
from app.prompts.api import NDJSON_BODY, DryRun, FileFormat, Partial
from app.prompts.importing import ImportRefused, import_file
from app.prompts.lines import ImportReport
from app.web import SessionDep, SettingsDep, stream

router = APIRouter(tags=["corpora"])


@router.post("/projects/{project_id}/corpora:import", openapi_extra=NDJSON_BODY)
async def import_corpus(
    project: ApiProject,
    caller: WriteCaller,
    request: Request,
    session: SessionDep,
    settings: SettingsDep,
    name: Annotated[str, Query(max_length=200)] = "",
    partial: Partial = False,
    dry_run: DryRun = False,
    format: FileFormat = "auto",
) -> ImportReport:
    """Take a corpus: JSON lines of `{"text"}`, `{"messages"}` or `{"prompt", "completion"}`, or any of docs/data.md."""
    reader = FileReader("corpus", format, settings.max_body_bytes)
    report = await import_file(
        service.import_corpus,
        session,
        request.stream(),
        reader=reader,
        project=project,
        name=name,
        partial=partial,
        dry_run=dry_run,
        actor_id=caller.user.id,
    )
    return ImportRefused.unless_stored(report)


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
