"""Tables of rankings. Triggers make them immutable and hold them to the completions of their task (design, rules 2 and
3).
"""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import NamedTuple

from sqlalchemy import (
    BigInteger,
    CheckConstraint,
    ForeignKey,
    ForeignKeyConstraint,
    Identity,
    Index,
    LargeBinary,
    UniqueConstraint,
    text,
)
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Created, FalseByDefault, ProjectId, UserId, UuidKey

FEED_PLACE = "(pg_current_xact_id()::text)::bigint + feed_offset()"
"""Where a row stands in its feed: its transaction's number, and what a restore added to those of its cluster."""


class Ranking(Base):
    """An ordered partition of a task's completions. Never edited: a change is a new row that supersedes the old one."""

    __tablename__ = "rankings"
    __table_args__ = (
        # The lease is the idempotency key: it yields one ranking; what supersedes that has its own key.
        Index("uq_rankings_lease", "lease_id", unique=True, postgresql_where=text("supersedes_id is null")),
        Index("ix_rankings_project", "project_id", "number"),
        Index("ix_rankings_stream", "project_id", "transaction_id", "number"),
        Index("ix_rankings_task", "task_id"),
        Index("ix_rankings_annotator", "annotator_id", "project_id", "number"),
        UniqueConstraint("id", "task_id"),
        CheckConstraint("source in ('page', 'api', 'import', 'review')", name="source"),
        # Only a ranking that was made elsewhere, or by a reviewer, has no lease.
        CheckConstraint("(lease_id is null) = (source in ('import', 'review'))", name="has_lease"),
        CheckConstraint(
            "shown_at <= first_action_at and first_action_at <= submitted_at and shown_at <= submitted_at", name="times"
        ),
        CheckConstraint("active_seconds between 0 and 86400", name="active_seconds"),
        CheckConstraint("device in ('phone', 'tablet', 'desktop')", name="device"),
        CheckConstraint("num_undos between 0 and 10000", name="num_undos"),
        CheckConstraint("inputs <@ array['key', 'pointer', 'touch']", name="inputs"),
        CheckConstraint("confidence is null or confidence between 1 and 3", name="confidence"),
        CheckConstraint("strength is null or strength between 0 and 3", name="strength"),
    )

    id: Mapped[UuidKey]
    # The order in which rankings came in, and the transaction that brought them: together a cursor that skips nothing.
    number: Mapped[int] = mapped_column(BigInteger, Identity(always=True), unique=True)
    transaction_id: Mapped[int] = mapped_column(BigInteger, server_default=text(FEED_PLACE))
    project_id: Mapped[ProjectId]
    task_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"))
    lease_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("leases.id"))
    annotator_id: Mapped[UserId | None]
    # Who made an imported ranking, as its file says.
    annotator_name: Mapped[str | None]
    source: Mapped[str]
    supersedes_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("rankings.id"), unique=True)
    # Came after its lease had gone to someone else: kept, but outside overlap and datasets.
    is_surplus: Mapped[FalseByDefault]
    rationale: Mapped[str] = mapped_column(server_default="", default="")
    # 1 unsure, 2 fairly sure, 3 sure; null: not said.
    confidence: Mapped[int | None]
    # Whether every answer is bad; null: not asked.
    all_bad: Mapped[bool | None]
    # Of two answers, how much better one is: 0 a tie, 1 slightly, 2 better, 3 much better; null: not said.
    strength: Mapped[int | None]
    # SHA-256 of what was sent: the same again is a retry, another is a conflict.
    body_hash: Mapped[bytes] = mapped_column(LargeBinary)
    created_at: Mapped[Created]
    # How it was made (app/rankings/provenance.py); null: not told. `created_at` is when it was stored.
    shown_at: Mapped[datetime | None]
    first_action_at: Mapped[datetime | None]
    submitted_at: Mapped[datetime | None]
    active_seconds: Mapped[float | None]
    device: Mapped[str | None]
    num_undos: Mapped[int | None]
    inputs: Mapped[list[str] | None]
    # Its task was fetched while the one before was answered; it was taken along to be ranked without a connection.
    is_preloaded: Mapped[FalseByDefault]
    is_offline: Mapped[FalseByDefault]


class PlaceFacts(NamedTuple):
    """The place of one completion, as it is answered."""

    completion_id: uuid.UUID
    place: int | None
    rating: int | None
    labels: list[str]
    denied: list[str]


class RankingPlace(Base):
    """The place of one completion in one ranking; 1 is best, two with the same place are tied."""

    __tablename__ = "ranking_places"
    __table_args__ = (
        ForeignKeyConstraint(["ranking_id", "task_id"], ["rankings.id", "rankings.task_id"], ondelete="CASCADE"),
        # A ranking names completions of its own task only.
        ForeignKeyConstraint(
            ["task_id", "completion_id"], ["task_completions.task_id", "task_completions.completion_id"]
        ),
        CheckConstraint("place is null or place between 1 and 9", name="place"),
        CheckConstraint("rating is null or rating between 1 and 7", name="rating"),
        Index("ix_ranking_places_completion", "completion_id"),
    )

    ranking_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    completion_id: Mapped[uuid.UUID] = mapped_column(primary_key=True)
    task_id: Mapped[uuid.UUID]
    # Null: left out of a partial ranking; it is missing, not last.
    place: Mapped[int | None]
    rating: Mapped[int | None]
    labels: Mapped[list[str]] = mapped_column(server_default="{}", default=list)
    # Required labels that were answered with no; a label in neither list was not asked, or not answered.
    denied: Mapped[list[str]] = mapped_column(server_default="{}", default=list)


class RankingChange(Base):
    """Something that happened to a ranking. Written by triggers alone; read in the order (transaction, number)."""

    __tablename__ = "ranking_changes"
    __table_args__ = (
        Index("ix_ranking_changes_stream", "project_id", "transaction_id", "number"),
        Index("ix_ranking_changes_ranking", "ranking_id"),
        CheckConstraint(
            "kind in ('stored', 'superseded', 'withdrawn', 'restored', 'rejected', 'approved')", name="kind"
        ),
    )

    number: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    transaction_id: Mapped[int] = mapped_column(BigInteger, server_default=text(FEED_PLACE))
    project_id: Mapped[ProjectId]
    ranking_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("rankings.id", ondelete="CASCADE"))
    kind: Mapped[str]
    at: Mapped[Created]
