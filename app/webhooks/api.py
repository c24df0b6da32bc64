"""Webhooks through the API."""

from __future__ import annotations

import uuid

from fastapi import APIRouter
from starlette import status

from app.accounts.guards import AdminCaller
from app.idempotency import idempotent
from app.projects.guards import ApiProject
from app.web import SessionDep
from app.webhooks import service
from app.webhooks.schemas import DeliveryOut, NewWebhook, WebhookIn, WebhookOut

router = APIRouter(tags=["webhooks"])


@router.get("/projects/{project_id}/webhooks")
async def list_webhooks(project: ApiProject, caller: AdminCaller, session: SessionDep) -> list[WebhookOut]:
    """A project's webhooks."""
    return [WebhookOut.model_validate(item) for item in await service.list_webhooks(session, project.id)]


@router.post("/projects/{project_id}/webhooks", status_code=status.HTTP_201_CREATED)
@idempotent(shows_secret=True)
async def create_webhook(project: ApiProject, body: WebhookIn, caller: AdminCaller, session: SessionDep) -> NewWebhook:
    """Tell an address of events from now on: POSTs in the form of Standard Webhooks, signed, tried again for days."""
    webhook = await service.create_webhook(session, project_id=project.id, **body.model_dump(), actor_id=caller.user.id)
    return NewWebhook.model_validate(webhook)


@router.delete("/webhooks/{webhook_id}", status_code=status.HTTP_204_NO_CONTENT)
async def delete_webhook(webhook_id: uuid.UUID, caller: AdminCaller, session: SessionDep) -> None:
    """Tell it nothing any more."""
    await service.delete_webhook(session, await service.get_webhook(session, webhook_id), actor_id=caller.user.id)


@router.get("/webhooks/{webhook_id}/deliveries")
async def list_deliveries(webhook_id: uuid.UUID, caller: AdminCaller, session: SessionDep) -> list[DeliveryOut]:
    """Its newest deliveries, and what came of them. They are kept for 30 days."""
    return [DeliveryOut.model_validate(item) for item in await service.list_deliveries(session, webhook_id)]


@router.post("/webhooks/{webhook_id}/deliveries/{delivery_id}/send")
async def send_again(
    webhook_id: uuid.UUID, delivery_id: uuid.UUID, caller: AdminCaller, session: SessionDep
) -> DeliveryOut:
    """Send a delivery again now."""
    return DeliveryOut.model_validate(await service.send_again(session, webhook_id=webhook_id, delivery_id=delivery_id))
