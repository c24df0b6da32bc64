"""New projects and their settings. The page of a project itself is the loop's."""

from __future__ import annotations

import json
from typing import Any

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.datastructures import FormData

from app.accounts.guards import Admin, Owner
from app.errors import FieldError, Invalid
from app.projects import service
from app.projects.guards import PageProject
from app.projects.models import Project
from app.projects.schemas import ProjectIn, ProjectSettings, checked, checked_changes, parse_object
from app.web import SessionDep, render, see_other

router = APIRouter()
# Aliases that every worker knows; a team adds its own to its workers' configuration.
BUILT_IN_MODELS = ["smollm2-135m", "pocket"]
CHECKBOXES = ("ties_allowed", "partial_allowed", "is_paused")
SAMPLING = {"temperature": "temperature", "top_p": "top_p", "max_new_tokens": "max_new_tokens", "sampling_seed": "seed"}
TRAINING = {"training_reward": "reward", "training_ppo": "ppo"}
FOLDED = ("sampling", "training", "labels")


@router.get("/projects/new")
async def show_new(request: Request, user: Owner) -> HTMLResponse:
    """An empty form."""
    defaults = ProjectIn(name="-", model_alias="smollm2-135m").model_dump()
    return render_form(request, form_values(defaults | {"name": "", "slug": "", "labels": service.INSTRUCTGPT_LABELS}))


@router.post("/projects", response_model=None)
async def create(request: Request, user: Owner, session: SessionDep) -> RedirectResponse | HTMLResponse:
    """Add a project."""
    form = await request.form()
    try:
        wanted = checked(ProjectIn, read_form(form))
        project = await service.create_project(session, **wanted.model_dump(), actor_id=user.id)
    except Invalid as error:
        return render_form(request, as_typed(form), error=error)
    return see_other(f"/projects/{project.slug}/prompts/import")


@router.get("/projects/{slug}/settings")
async def show_settings(request: Request, project: PageProject, user: Admin) -> HTMLResponse:
    """The settings that can be changed."""
    values = form_values({name: getattr(project, name) for name in ProjectSettings.model_fields})
    return render_form(request, values, project=project)


@router.post("/projects/{slug}/settings", response_model=None)
async def change_settings(
    request: Request, project: PageProject, user: Admin, session: SessionDep
) -> RedirectResponse | HTMLResponse:
    """Change them; they hold for what comes after."""
    form = await request.form()
    try:
        changes = checked_changes(project, read_form(form))
    except Invalid as error:
        return render_form(request, as_typed(form), project=project, error=error)
    await service.update_project(session, project=project, changes=changes, actor_id=user.id)
    return see_other(f"/projects/{project.slug}/settings")


def render_form(
    request: Request, values: dict[str, Any], *, project: Project | None = None, error: Invalid | None = None
) -> HTMLResponse:
    """The form, with what was typed and what is wrong with it."""
    return render(
        request,
        "projects/form.html",
        status_code=error.status if error else 200,
        project=project,
        values=values,
        errors=[as_form_error(item) for item in error.errors] if error else [],
        aliases=BUILT_IN_MODELS,
        here="settings",
    )


def as_form_error(error: FieldError) -> FieldError:
    """A setting's error at the field of the form that holds it: `sampling.seed` -> `sampling_seed`."""
    parts = error.field.split(".")
    if parts[0] == "sampling" and len(parts) > 1:
        return FieldError("sampling_seed" if parts[1] == "seed" else parts[1], error.rule)
    if parts[0] == "training" and len(parts) > 1:
        return FieldError(f"training_{parts[1]}", error.rule)
    return FieldError(parts[0], error.rule)


def form_values(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings as the form's fields: sampling and training unfolded, labels a line each."""
    values = {name: value for name, value in settings.items() if name not in FOLDED}
    values |= {field: settings["sampling"][name] for field, name in SAMPLING.items()}
    for field, name in TRAINING.items():
        overrides = settings["training"].get(name)
        values[field] = json.dumps(overrides, ensure_ascii=False) if overrides else ""
    values["labels"] = "\n".join(f"{item['key']} | {item['en']} | {item['zh']}" for item in settings["labels"])
    return values


def as_typed(form: FormData) -> dict[str, Any]:
    """The fields as they were sent, to be shown again."""
    return dict(form) | {name: name in form for name in CHECKBOXES}


def read_form(form: FormData) -> dict[str, Any]:
    """The form's fields as settings: empty ones left out, what the page unfolds folded again.

    Raises:
        Invalid: a field that holds JSON doesn't parse, or a line of the labels has not three parts.
    """
    unfolded = {*SAMPLING, *TRAINING, "labels"}
    values: dict[str, Any] = {name: value for name, value in form.items() if value != "" and name not in unfolded}
    values |= {name: name in form for name in CHECKBOXES}
    values["guidelines"] = form.get("guidelines", "")
    values["train_threshold"] = form.get("train_threshold") or None
    values["sampling"] = {name: form[field] for field, name in SAMPLING.items() if form.get(field)}
    values["training"] = {name: parse_object(field, form.get(field)) for field, name in TRAINING.items()}
    values["labels"] = parse_labels(str(form.get("labels", "")))
    return values


def parse_labels(text: str) -> list[dict[str, str]]:
    """Labels from lines `key | English | 中文`.

    Raises:
        Invalid: a line has not three parts; it is named.
    """
    labels = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip():
            continue
        parts = [part.strip() for part in line.split("|")]
        if len(parts) != 3 or not all(parts):
            raise Invalid.field("labels", f"line {number}: write key | English | 中文")
        labels.append(dict(zip(("key", "en", "zh"), parts, strict=True)))
    return labels
