"""New projects and their settings. The page of a project itself is the loop's."""

from __future__ import annotations

from fastapi import APIRouter, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from starlette.datastructures import FormData

from app.accounts.guards import Admin, Owner
from app.errors import FieldError, Invalid
from app.projects import service
from app.projects.forms import Values, as_typed, edit, field_of, form_values, settings_of
from app.projects.guards import PageProject
from app.projects.models import Project
from app.projects.schemas import ProjectIn, ProjectSettings, checked, checked_changes
from app.web import SessionDep, render, see_other, told, words

router = APIRouter()
# Aliases that every worker knows; a team adds its own to its workers' configuration.
BUILT_IN_MODELS = ["smollm2-135m", "pocket"]


@router.get("/projects/new")
async def show_new(request: Request, user: Owner) -> HTMLResponse:
    """An empty form."""
    defaults = ProjectIn(name="-", model_alias="smollm2-135m").model_dump()
    labels = [service.LABEL_DEFAULTS | label for label in service.INSTRUCTGPT_LABELS]
    return render_form(request, form_values(defaults | {"name": "", "slug": "", "labels": labels}))


@router.post("/projects", response_model=None)
async def create(request: Request, user: Owner, session: SessionDep) -> RedirectResponse | HTMLResponse:
    """Add a project; or, by one of the form's own buttons, give the form back changed."""
    form = await request.form()
    values = as_typed(form)
    if (action := action_of(form)) is not None:
        return render_form(request, edit(values, action, ()))
    try:
        wanted = checked(ProjectIn, settings_of(values))
        project = await service.create_project(session, **wanted.model_dump(), actor_id=user.id)
    except Invalid as error:
        return render_form(request, values, error=error)
    return see_other(f"/projects/{project.slug}/prompts/import")


@router.get("/projects/{slug}/settings")
async def show_settings(request: Request, project: PageProject, user: Admin, saved: str = "") -> HTMLResponse:
    """The settings that can be changed."""
    values = form_values({name: getattr(project, name) for name in ProjectSettings.model_fields})
    return render_form(request, values, project=project, is_saved=bool(saved))


@router.post("/projects/{slug}/settings", response_model=None)
async def change_settings(
    request: Request, project: PageProject, user: Admin, session: SessionDep
) -> RedirectResponse | HTMLResponse:
    """Change them; they hold for what comes after. By one of the form's own buttons, give the form back changed."""
    form = await request.form()
    values = as_typed(form)
    if (action := action_of(form)) is not None:
        return render_form(request, edit(values, action, keys_of(project)), project=project)
    try:
        changes = checked_changes(project, settings_of(values))
        await service.update_project(session, project=project, changes=changes, actor_id=user.id)
    except Invalid as error:
        return render_form(request, values, project=project, error=error)
    return see_other(f"/projects/{project.slug}/settings?saved=yes")


def action_of(form: FormData) -> str | None:
    """Which of the form's own buttons was pressed, if it was not the one that saves."""
    action = form.get("edit")
    return action if isinstance(action, str) else None


def keys_of(project: Project) -> set[str]:
    """The keys that rankings may have."""
    return {label["key"] for label in project.labels}


def rankings_a_task(project: Project) -> float:
    """How many rankings a new task takes on average."""
    return 1 + project.overlap_share * (project.overlap - 1)


def render_form(
    request: Request,
    values: Values,
    *,
    project: Project | None = None,
    error: Invalid | None = None,
    is_saved: bool = False,
) -> HTMLResponse:
    """The form, with what was typed and what is wrong with it."""
    say = words(request)["_"]
    labels = [row | {"place": place} for place, row in enumerate(values["labels"])]
    return render(
        request,
        "projects/form.html",
        status_code=error.status if error else 200,
        project=project,
        values=values | {"labels": labels},
        cost=rankings_a_task(project) if project else None,
        stored_keys=keys_of(project) if project else set(),
        errors=[FieldError(field_of(item), item.rule) for item in told(request, error)] if error else [],
        aliases=BUILT_IN_MODELS,
        is_preview=values.get("edit") == "preview",
        messages=[{"kind": "", "text": say("Saved.")}] if is_saved else [],
        here="settings",
    )
