"""Tables of webhooks and of what is delivered to them. The log of deliveries is the queue, too."""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Created, ProjectId, UserId, UuidKey, ZeroByDefault


class HookEvent(StrEnum):
    """What a webhook can be told of."""

    MILESTONE = "rankings.milestone"  # every so many rankings
    RUN_ENDED = "run.ended"  # finished, failed or cancelled
    VERSION_PROMOTED = "version.promoted"


class Webhook(Base):
    """An address outside that is told of a project's events."""

    __tablename__ = "webhooks"
    __table_args__ = (
        CheckConstraint(
            "events <@ array['rankings.milestone', 'run.ended', 'version.promoted'] and cardinality(events) > 0",
            name="events",
        ),
        CheckConstraint("every is null or every between 1 and 1000000", name="every"),
        CheckConstraint("(every is not null) = ('rankings.milestone' = any (events))", name="every_with_milestone"),
        Index("ix_webhooks_project", "project_id"),
    )

    id: Mapped[UuidKey]
    project_id: Mapped[ProjectId]
    url: Mapped[str]
    # Signing needs it as it is, so it is no hash. It opens nothing here: it only proves to the receiver who we are.
    secret: Mapped[str]
    events: Mapped[list[str]]
    # A milestone is reached every so many rankings, counted in the feed of changes up to this cursor.
    every: Mapped[int | None]
    num_counted: Mapped[int] = mapped_column(BigInteger, server_default=text("0"), default=0)
    counted_transaction: Mapped[int] = mapped_column(BigInteger, server_default=text("0"), default=0)
    counted_number: Mapped[int] = mapped_column(BigInteger, server_default=text("0"), default=0)
    created_by: Mapped[UserId | None]
    created_at: Mapped[Created]


class Delivery(Base):
    """One event for one webhook: what is sent, and what came of it."""

    __tablename__ = "webhook_deliveries"
    __table_args__ = (
        Index("ix_webhook_deliveries_due", "next_try_at", postgresql_where=text("next_try_at is not null")),
        Index("ix_webhook_deliveries_webhook", "webhook_id", "created_at"),
        CheckConstraint("delivered_at is null or next_try_at is null", name="done"),
    )

    id: Mapped[UuidKey]
    webhook_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("webhooks.id", ondelete="CASCADE"))
    event: Mapped[str]
    # The bytes that are sent and signed, the same at every try.
    body: Mapped[str]
    created_at: Mapped[Created]
    num_tries: Mapped[ZeroByDefault]
    # Null: delivered, or given up.
    next_try_at: Mapped[datetime | None]
    delivered_at: Mapped[datetime | None]
    last_status: Mapped[int | None]
    last_error: Mapped[str | None]
