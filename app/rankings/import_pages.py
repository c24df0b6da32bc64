"""The page of imports: prompts, ready answers, rankings that were made elsewhere, or a corpus; a file or pasted."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse
from starlette.datastructures import FormData, UploadFile

from app.accounts.guards import AccessDep, Trainer
from app.accounts.models import Scope
from app.corpora.service import import_corpus
from app.errors import FieldError, RankloopError
from app.formats.imports import TITLES, Kind
from app.formats.sources import FORMATS, FileReader
from app.ndjson import read_upload
from app.projects.guards import PageProject
from app.projects.models import Project
from app.prompts.adding import import_completions, import_prompts
from app.prompts.importing import import_file
from app.prompts.lines import ImportReport
from app.rankings.importing import import_rankings
from app.web import SessionDep, SettingsDep, render, words

router = APIRouter()
IMPORTS: dict[Kind, Callable[..., Awaitable[ImportReport]]] = {
    "prompts": import_prompts,
    "completions": import_completions,
    "rankings": import_rankings,
    "corpus": import_corpus,
}


@router.get("/projects/{slug}/prompts/import")
async def show_import(request: Request, project: PageProject, user: Trainer, kind: str = "prompts") -> HTMLResponse:
    """The empty form."""
    return render_form(request, project, kind=kind if kind in IMPORTS else "prompts")


@router.post("/projects/{slug}/prompts/import")
async def take_import(
    request: Request,
    project: PageProject,
    user: Trainer,
    access: AccessDep,
    session: SessionDep,
    settings: SettingsDep,
) -> HTMLResponse:
    """Check a file and, unless it was only to be checked, store it; the page says line by line what was refused."""
    async with request.form() as form:
        kind, text, file = str(form.get("kind", "prompts")), str(form.get("text", "")), form.get("file")
        uploaded = file if isinstance(file, UploadFile) and file.filename else None
        if kind not in IMPORTS:
            return refused(request, project, "prompts", text, "kind", f"must be one of {', '.join(IMPORTS)}")
        if uploaded is None and not text.strip():
            return refused(request, project, kind, text, "file", "choose a file, or paste lines below")
        reader = FileReader(kind, format_of(form, uploaded), settings.max_body_bytes, user.id)
        choices: dict[str, Any] = {"partial": "partial" in form, "dry_run": "dry_run" in form}
        if kind == "rankings":
            choices["by_admin"] = Scope.ADMIN in access.scopes
        if kind == "corpus" and uploaded is not None:
            choices["name"] = (uploaded.filename or "")[:200]
        try:
            chunks = read_upload(uploaded) if uploaded else pasted(text)
            options = {"project": project, "actor_id": user.id, **choices}
            report = await import_file(IMPORTS[kind], session, chunks, reader=reader, **options)
        except RankloopError as error:
            return refused(request, project, kind, text, "file", error_words(error), status=error.status)
    status = 200 if report.is_stored or report.is_dry_run else 422
    return render_form(request, project, status_code=status, kind=kind, text=text, report=report)


def format_of(form: FormData, uploaded: UploadFile | None) -> str:
    """What was chosen; a file that is named as plain text is that, unless something else was chosen."""
    chosen = str(form.get("format", "auto"))
    is_text = uploaded is not None and (uploaded.filename or "").lower().endswith(".txt")
    return "text" if chosen == "auto" and is_text else chosen if chosen in FORMATS else "auto"


async def pasted(text: str) -> AsyncIterator[bytes]:
    """What was pasted, as the chunks of a file. A lone surrogate cannot come in: forms are decoded as UTF-8."""
    yield text.encode()


def error_words(error: RankloopError) -> str:
    """What is wrong with the whole file."""
    return error.errors[0].rule if error.errors else str(error)


def refused(
    request: Request, project: Project, kind: str, text: str, field: str, rule: str, *, status: int = 422
) -> HTMLResponse:
    """The form again, with what is wrong."""
    errors = [FieldError(field, rule)]
    return render_form(request, project, status_code=status, kind=kind, text=text, errors=errors)


def render_form(request: Request, project: Project, *, status_code: int = 200, **context: Any) -> HTMLResponse:
    """The form with what was typed, and the report on it."""
    _ = words(request)["_"]
    formats = [("auto", _("find out"))] + [(name, _(title)) for name, title in TITLES.items()]
    values = {"text": "", "report": None, "errors": [], "format": "auto", "formats": formats} | context
    return render(request, "prompts/import.html", status_code=status_code, here="prompts", project=project, **values)
