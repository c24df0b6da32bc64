"""Tables of what people write: drafts on their way to a demonstration or a prompt, and each step of that way."""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, text
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Created, EmptyObject, FalseByDefault, ProjectId, UserId, UuidKey


class WritingKind(StrEnum):
    """What is written."""

    DEMONSTRATION = "demonstration"  # the ideal answer to a prompt
    PROMPT = "prompt"


class WritingState(StrEnum):
    """Where a piece of writing stands."""

    DRAFT = "draft"  # -> submitted, withdrawn
    SUBMITTED = "submitted"  # -> approved, rejected, draft (its author takes it back)
    REJECTED = "rejected"  # -> submitted (better), withdrawn
    APPROVED = "approved"
    WITHDRAWN = "withdrawn"


class Step(StrEnum):
    """What was done to a piece of writing."""

    SUBMITTED = "submitted"
    CORRECTED = "corrected"
    APPROVED = "approved"
    REJECTED = "rejected"


class Writing(Base):
    """An ideal answer or a prompt by a person. `body` is as `app.writing.bodies` has it."""

    __tablename__ = "writings"
    __table_args__ = (
        CheckConstraint("kind in ('demonstration', 'prompt')", name="kind"),
        CheckConstraint("state in ('draft', 'submitted', 'rejected', 'approved', 'withdrawn')", name="state"),
        CheckConstraint("(kind = 'demonstration') = (prompt_id is not null)", name="answers_a_prompt"),
        # What is approved is where it is learned from, and nothing else is.
        CheckConstraint(
            "(state = 'approved') = (coalesce(completion_id, written_prompt_id) is not null)", name="approved_is_stored"
        ),
        CheckConstraint("not is_assisted or draft_id is not null", name="assisted_by_a_draft"),
        # One open answer of a person to a prompt, in however many tabs.
        Index(
            "uq_writings_open",
            "prompt_id",
            "author_id",
            unique=True,
            postgresql_where=text("state in ('draft', 'submitted', 'rejected')"),
        ),
        Index("ix_writings_author", "author_id", "project_id", "number"),
        Index("ix_writings_queue", "project_id", "number", postgresql_where=text("state = 'submitted'")),
        Index("ix_writings_prompt", "prompt_id"),
        Index("ix_writings_drafted", "project_id", "number", postgresql_where=text("draft_id is not null")),
    )

    id: Mapped[UuidKey]
    number: Mapped[int] = mapped_column(BigInteger, Identity(always=True))
    project_id: Mapped[ProjectId]
    kind: Mapped[str]
    state: Mapped[str] = mapped_column(server_default=WritingState.DRAFT, default=WritingState.DRAFT)
    author_id: Mapped[UserId | None]
    # What a demonstration answers, and the answer that it began from.
    prompt_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("prompts.id", ondelete="CASCADE"))
    began_from_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("completions.id"))
    # The model's answer that there was to begin with, and whether its author was shown it (app/writing/drafts.py); a
    # trigger keeps both as they are.
    draft_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("completions.id"))
    is_assisted: Mapped[FalseByDefault]
    body: Mapped[EmptyObject]
    # What came of it.
    completion_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("completions.id"))
    written_prompt_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("prompts.id"))
    created_at: Mapped[Created]
    saved_at: Mapped[datetime | None]


class WritingStep(Base):
    """One step: what was sent, corrected, approved or rejected, as it then was. A trigger makes it immutable."""

    __tablename__ = "writing_steps"
    __table_args__ = (
        CheckConstraint("step in ('submitted', 'corrected', 'approved', 'rejected')", name="step"),
        CheckConstraint("step <> 'rejected' or reason <> ''", name="rejected_with_a_reason"),
        Index("ix_writing_steps_writing", "writing_id", "id"),
    )

    id: Mapped[int] = mapped_column(BigInteger, Identity(always=True), primary_key=True)
    writing_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("writings.id", ondelete="CASCADE"))
    step: Mapped[str]
    by_id: Mapped[UserId | None]
    reason: Mapped[str] = mapped_column(server_default="", default="")
    body: Mapped[dict[str, Any]] = mapped_column(JSONB)
    created_at: Mapped[Created]
