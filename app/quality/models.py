"""Tables of quality: what was measured of annotators, flags that checks raised, disagreements that reviewers settle."""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Created, EmptyObject, ProjectId, UserId, UuidKey


class AnnotatorRecord(Base):
    """What was last measured of one annotator in one project. Made anew from the rankings at any time."""

    __tablename__ = "annotator_records"
    __table_args__ = (CheckConstraint("num_rankings >= 0", name="num_rankings"),)

    project_id: Mapped[ProjectId] = mapped_column(primary_key=True)
    annotator_id: Mapped[uuid.UUID] = mapped_column(
        ForeignKey("users.id", ondelete="CASCADE"), primary_key=True, index=True
    )
    num_rankings: Mapped[int]
    # The newest ranking that is in it: whoever has a newer one is measured again.
    last_number: Mapped[int] = mapped_column(BigInteger)
    # app/quality/people.py: Portrait
    figures: Mapped[EmptyObject]
    measured_at: Mapped[Created]


class QualityFlag(Base):
    """A check that one annotator did not pass. Stays until somebody has looked at it, whatever is measured later."""

    __tablename__ = "quality_flags"
    __table_args__ = (
        # A check flags a person once, until that is settled.
        Index(
            "uq_quality_flags_open",
            "project_id",
            "annotator_id",
            "check_name",
            unique=True,
            postgresql_where=text("settled_at is null"),
        ),
        Index("ix_quality_flags_annotator", "annotator_id"),
        CheckConstraint(
            "check_name in ('random', 'reversed', 'first_card', 'longest', 'speeding', 'gold', 'qualification')",
            name="check_name",
        ),
        CheckConstraint("(settled_at is null) = (settlement is null)", name="settled"),
        CheckConstraint("settlement in ('confirmed', 'dismissed')", name="settlement"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    project_id: Mapped[ProjectId]
    annotator_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("users.id", ondelete="CASCADE"))
    check_name: Mapped[str]
    # app/quality/detectors.py: Evidence; of gold and of a qualification app/quality/qualification.py: Marks
    evidence: Mapped[EmptyObject]
    # Rankings up to this one were looked at; a settled flag says nothing of later ones.
    last_number: Mapped[int] = mapped_column(BigInteger)
    raised_at: Mapped[Created]
    settled_at: Mapped[datetime | None]
    settled_by: Mapped[UserId | None]
    settlement: Mapped[str | None]
    note: Mapped[str] = mapped_column(server_default="", default="")


class ReviewState(StrEnum):
    """Where a disagreement stands."""

    OPEN = "open"  # -> approved, rejected, corrected
    APPROVED = "approved"  # all orders are fine: people differ
    REJECTED = "rejected"  # some rankings were rejected
    CORRECTED = "corrected"  # a reviewer ranked the task, too


class Review(Base):
    """A task whose rankings differ so much that somebody should look at them side by side."""

    __tablename__ = "reviews"
    __table_args__ = (
        # A task waits once.
        Index("uq_reviews_open", "task_id", unique=True, postgresql_where=text("state = 'open'")),
        Index("ix_reviews_project", "project_id", "state", text("disagreement desc")),
        Index("ix_reviews_task", "task_id"),
        CheckConstraint("state in ('open', 'approved', 'rejected', 'corrected')", name="state"),
        CheckConstraint("disagreement between 0 and 1", name="disagreement"),
        CheckConstraint("(state = 'open') = (settled_at is null)", name="settled"),
    )

    id: Mapped[UuidKey]
    project_id: Mapped[ProjectId]
    task_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("tasks.id", ondelete="CASCADE"))
    state: Mapped[str] = mapped_column(server_default=ReviewState.OPEN, default=ReviewState.OPEN)
    # The share of (two people, two answers) on which the two differ.
    disagreement: Mapped[float]
    # The task's newest ranking at that time: with a newer one it may wait again.
    last_number: Mapped[int] = mapped_column(BigInteger)
    opened_at: Mapped[Created]
    settled_at: Mapped[datetime | None]
    settled_by: Mapped[UserId | None]
    reason: Mapped[str] = mapped_column(server_default="", default="")


class Rejection(Base):
    """A ranking that a reviewer rejected. It stays in the history, and no new dataset holds it."""

    __tablename__ = "rejections"
    __table_args__ = (Index("ix_rejections_review", "review_id"),)

    ranking_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("rankings.id", ondelete="CASCADE"), primary_key=True)
    review_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("reviews.id", ondelete="CASCADE"))
    rejected_by: Mapped[UserId | None]
    reason: Mapped[str]
    rejected_at: Mapped[Created]
