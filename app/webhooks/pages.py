"""The admins' page of a project's webhooks."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from typing import Annotated

from fastapi import APIRouter, Form, Request
from fastapi.responses import HTMLResponse, RedirectResponse
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.guards import Admin
from app.errors import FieldError, Invalid
from app.projects.guards import PageProject
from app.projects.models import Project
from app.projects.schemas import checked
from app.web import SessionDep, render, see_other, words
from app.webhooks import service
from app.webhooks.models import HookEvent, Webhook
from app.webhooks.schemas import WebhookIn

router = APIRouter()
SHOWN = 10


@router.get("/projects/{slug}/webhooks")
async def list_webhooks(request: Request, project: PageProject, user: Admin, session: SessionDep) -> HTMLResponse:
    """A project's webhooks with their newest deliveries, and the form for another."""
    return await show(request, session, project)


@router.post("/projects/{slug}/webhooks")
async def create_webhook(
    request: Request,
    project: PageProject,
    user: Admin,
    session: SessionDep,
    url: Annotated[str, Form()] = "",
    events: Annotated[list[str] | None, Form()] = None,
    every: Annotated[str, Form()] = "",
) -> HTMLResponse:
    """Add a webhook. The page that answers shows its secret, this once."""
    typed = {"url": url, "events": events or [], "every": every}
    has_milestone = HookEvent.MILESTONE in typed["events"]
    try:
        body = checked(WebhookIn, typed | {"every": every if has_milestone and every else None})
        webhook = await service.create_webhook(session, project_id=project.id, **body.model_dump(), actor_id=user.id)
    except Invalid as refused:
        return await show(request, session, project, typed=typed, errors=refused.errors)
    return await show(request, session, project, made=webhook)


@router.post("/projects/{slug}/webhooks/{webhook_id}/delete")
async def delete_webhook(
    webhook_id: uuid.UUID, project: PageProject, user: Admin, session: SessionDep
) -> RedirectResponse:
    """Tell it nothing any more."""
    await service.delete_webhook(session, await service.get_webhook(session, webhook_id), actor_id=user.id)
    return see_other(f"/projects/{project.slug}/webhooks")


@router.post("/projects/{slug}/webhooks/{webhook_id}/deliveries/{delivery_id}")
async def send_again(
    webhook_id: uuid.UUID, delivery_id: uuid.UUID, project: PageProject, user: Admin, session: SessionDep
) -> RedirectResponse:
    """Send a delivery again."""
    await service.send_again(session, webhook_id=webhook_id, delivery_id=delivery_id)
    return see_other(f"/projects/{project.slug}/webhooks")


async def show(
    request: Request,
    session: AsyncSession,
    project: Project,
    *,
    made: Webhook | None = None,
    typed: Mapping[str, object] | None = None,
    errors: Sequence[FieldError] = (),
) -> HTMLResponse:
    """The page; with errors it is a 422 that has what was typed."""
    webhooks = await service.list_webhooks(session, project.id)
    told = [FieldError(error.field, error.in_words(words(request))) for error in errors]
    return render(
        request,
        "webhooks/list.html",
        status_code=422 if errors else 200,
        here="settings",
        project=project,
        webhooks=[(item, await service.list_deliveries(session, item.id, limit=SHOWN)) for item in webhooks],
        made=made,
        typed=typed or {"url": "", "events": [], "every": ""},
        errors=told,
    )
