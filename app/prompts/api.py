"""Prompts and completions for trainers (import, reading) and workers (what a run works on, what it delivers)."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import orjson
from fastapi import APIRouter, Depends, Query, Request
from fastapi.responses import StreamingResponse
from pydantic import AfterValidator
from sqlalchemy import Row
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.guards import ReadCaller, WriteCaller
from app.accounts.models import Scope
from app.errors import BadRequest
from app.formats.imports import Kind
from app.formats.sources import FORMATS, FileReader, known_format
from app.ndjson import MEDIA_TYPE, write_lines
from app.projects.guards import ApiProject, find_project
from app.prompts import adding, service
from app.prompts.importing import ImportRefused, import_file
from app.prompts.lines import ImportReport
from app.prompts.models import Prompt, Split
from app.prompts.schemas import CompletionsIn, CompletionsStoredOut, PromptOut, PromptPage
from app.runs.api import HeldRun, PeekedRun
from app.web import SessionDep, SettingsDep, stream

router = APIRouter(tags=["prompts"])


def json_lines(*records: Mapping[str, Any]) -> dict[str, Any]:
    """How the document describes an import: JSON lines such as these. They are read as they come, so that the framework
    must not read the body first.
    """
    example = "".join(orjson.dumps(record).decode() + "\n" for record in records)
    content = {MEDIA_TYPE: {"schema": {"type": "string"}, "example": example}}
    return {"requestBody": {"required": True, "content": content}}


Partial = Annotated[bool, Query(description="Take the good lines where others are refused.")]
DryRun = Annotated[bool, Query(description="Store nothing; say what would be taken.")]
FileFormat = Annotated[
    str,
    AfterValidator(known_format),
    Query(description="How the file is written; `auto` looks at it.", json_schema_extra={"enum": list(FORMATS)}),
]


@dataclass(frozen=True)
class ImportedFile:
    """A file that is sent into a project, and how it is to be taken: what all imports of the API share."""

    chunks: AsyncIterator[bytes]
    format: str
    max_bytes: int
    session: AsyncSession
    choices: Mapping[str, Any]
    by_admin: bool

    async def take(self, kind: Kind, importer: Callable[..., Awaitable[ImportReport]], **options: Any) -> ImportReport:
        """Import it as this kind.

        Raises:
            ImportRefused: lines were refused, and so nothing was stored.
        """
        reader = FileReader(kind, self.format, self.max_bytes, self.choices["actor_id"])
        report = await import_file(importer, self.session, self.chunks, reader=reader, **self.choices, **options)
        return ImportRefused.unless_stored(report)


async def sent_file(
    project: ApiProject,
    caller: WriteCaller,
    request: Request,
    session: SessionDep,
    settings: SettingsDep,
    partial: Partial = False,
    dry_run: DryRun = False,
    format: FileFormat = "auto",
) -> ImportedFile:
    """The body of this request as a file; it is read while it is imported."""
    choices = {"project": project, "partial": partial, "dry_run": dry_run, "actor_id": caller.user.id}
    by_admin = Scope.ADMIN in caller.scopes_in(project.id)
    return ImportedFile(request.stream(), format, settings.max_body_bytes, session, choices, by_admin)


SentFile = Annotated[ImportedFile, Depends(sent_file)]


@router.post(
    "/projects/{project_id}/prompts:import",
    openapi_extra=json_lines(
        {"prompt": "Where is the Louvre?", "lang": "en"}, {"prompt": "卢浮宫在哪里？", "lang": "zh"}
    ),
)
async def import_prompts(file: SentFile) -> ImportReport:
    """Take prompts: JSON lines of `{"messages": [...]}` or `{"prompt": "..."}`, or any format of docs/data.md."""
    return await file.take("prompts", adding.import_prompts)


@router.post(
    "/projects/{project_id}/completions:import",
    openapi_extra=json_lines(
        {"prompt": "Who wrote Faust?", "completions": [{"text": "Goethe."}, {"text": "Schiller."}, {"text": "Nobody."}]}
    ),
)
async def import_completions(file: SentFile) -> ImportReport:
    """Take ready answers: JSON lines of a prompt and its `completions`, or any format of docs/data.md."""
    return await file.take("completions", adding.import_completions)


@router.get("/projects/{project_id}/prompts")
async def list_prompts(
    project: ApiProject,
    caller: ReadCaller,
    session: SessionDep,
    split: Split | None = None,
    cursor: str | None = None,
    limit: Annotated[int, Query(ge=1, le=200)] = 50,
) -> PromptPage:
    """A project's prompts, in the order in which they came."""
    rows = await service.list_prompts(session, project.id, split=split, after=parse_cursor(cursor), limit=limit)
    following = str(rows[-1].Prompt.number) if len(rows) == limit else None
    return PromptPage(items=[prompt_out(row) for row in rows], next_cursor=following)


@router.get("/runs/{run_id}/prompts", response_class=StreamingResponse)
async def get_run_prompts(run: PeekedRun, request: Request) -> StreamingResponse:
    """The frozen prompts of the run that this worker holds, in order."""

    async def chunks(session: AsyncSession) -> AsyncIterator[bytes]:
        async for chunk in write_lines(service.stream_run_prompts(session, run.id)):
            yield chunk

    return stream(request, chunks)


@router.post("/runs/{run_id}/completions")
async def store_completions(run: HeldRun, body: CompletionsIn, session: SessionDep) -> CompletionsStoredOut:
    """Deliver answers. The same (prompt, index) again is harmless."""
    version_id = run.config.get("policy", {}).get("version_id")
    stored, repeated = await service.store_completions(
        session, run=run, version_id=uuid.UUID(version_id) if version_id else None, items=body.completions
    )
    return CompletionsStoredOut(stored=stored, repeated=repeated)


@router.get("/completions", response_class=StreamingResponse)
async def get_completions(
    project_id: str,
    caller: ReadCaller,
    session: SessionDep,
    request: Request,
    version_id: uuid.UUID | None = None,
    split: Split | None = None,
) -> StreamingResponse:
    """A project's completions with their prompts, as JSON lines."""
    project = await find_project(session, project_id)
    caller.require_project(project.id)

    async def chunks(session: AsyncSession) -> AsyncIterator[bytes]:
        rows = service.stream_completions(session, project.id, version_id=version_id, split=split)
        async for chunk in write_lines(rows):
            yield chunk

    return stream(request, chunks)


def parse_cursor(cursor: str | None) -> int | None:
    """The number after which to go on.

    Raises:
        BadRequest: it is none of ours.
    """
    if cursor is None:
        return None
    if not (cursor.isascii() and cursor.isdigit() and len(cursor) < 19):
        raise BadRequest("cursor: take it from the answer before, unchanged")
    return int(cursor)


def prompt_out(row: Row[Prompt, int]) -> PromptOut:
    """A prompt with its count, as the API shows it."""
    values = {name: getattr(row.Prompt, name) for name in PromptOut.model_fields if name != "num_completions"}
    return PromptOut(**values, num_completions=row.num_completions)
