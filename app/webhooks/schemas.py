"""Wire shapes of webhooks."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.examples import shown
from app.webhooks.models import HookEvent


class WebhookIn(BaseModel):
    """An address that is told of events from now on."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra=shown(
            url="https://trainer.example.org/hooks", events=["rankings.milestone", "run.ended"], every=500
        ),
    )

    url: Annotated[str, StringConstraints(max_length=2000)]
    events: list[HookEvent] = Field(min_length=1, max_length=3)
    every: int | None = Field(None, ge=1, le=1_000_000, description="A milestone is every so many rankings")


class WebhookOut(BaseModel):
    """A webhook. Its secret was shown when it was made."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    project_id: uuid.UUID
    url: str
    events: list[HookEvent]
    every: int | None
    created_at: datetime


class NewWebhook(WebhookOut):
    """A webhook that was just made. `secret` is shown this once: receivers check `webhook-signature` with it."""

    secret: str


class DeliveryOut(BaseModel):
    """One event for a webhook, and what came of it. `next_try_at` null: delivered, or given up."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    event: HookEvent
    body: str
    created_at: datetime
    num_tries: int
    next_try_at: datetime | None
    delivered_at: datetime | None
    last_status: int | None
    last_error: str | None
