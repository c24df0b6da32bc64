"""Tables of prompts and of the answers to them."""

from __future__ import annotations

import uuid
from datetime import datetime
from enum import StrEnum
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint, ForeignKey, Identity, Index, LargeBinary, UniqueConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Created, EmptyObject, FalseByDefault, ProjectId, UserId, UuidKey


class Split(StrEnum):
    """What a prompt may be used for; hashed from the root of its conversation at import, never recomputed."""

    TRAIN = "train"
    VALIDATION = "validation"  # ranked, and held out from training
    TEST = "test"  # goes to `evaluate` only


class PromptKind(StrEnum):
    """How a prompt was written (InstructGPT, appendix A.2)."""

    PLAIN = "plain"
    FEW_SHOT = "few_shot"
    USER = "user"


class Prompt(Base):
    """A conversation that ends with a user turn."""

    __tablename__ = "prompts"
    __table_args__ = (
        UniqueConstraint("project_id", "content_hash"),
        Index("ix_prompts_project", "project_id", "number"),
        Index("ix_prompts_project_split", "project_id", "split", "number"),
        CheckConstraint("kind in ('plain', 'few_shot', 'user')", name="kind"),
        CheckConstraint("split in ('train', 'validation', 'test')", name="split"),
        CheckConstraint(
            "jsonb_array_length(messages) > 0 and messages -> -1 ->> 'role' = 'user'", name="ends_with_user"
        ),
    )

    id: Mapped[UuidKey]
    # The order in which prompts came in.
    number: Mapped[int] = mapped_column(BigInteger, Identity(always=True))
    project_id: Mapped[ProjectId]
    messages: Mapped[list[Any]] = mapped_column(JSONB)
    kind: Mapped[str] = mapped_column(server_default="plain", default=PromptKind.PLAIN)
    language: Mapped[str] = mapped_column(server_default="en", default="en")
    source: Mapped[str] = mapped_column(server_default="", default="")
    split: Mapped[str]
    root_hash: Mapped[bytes] = mapped_column(LargeBinary)
    content_hash: Mapped[bytes] = mapped_column(LargeBinary)
    meta: Mapped[EmptyObject]
    withdrawn_at: Mapped[datetime | None]
    created_at: Mapped[Created]


class Completion(Base):
    """One answer to a prompt: by a model version with its sampling settings, by a person, or imported."""

    __tablename__ = "completions"
    __table_args__ = (
        # A worker that delivers the same answer again does no harm.
        UniqueConstraint("run_id", "prompt_id", "index"),
        Index("ix_completions_prompt", "prompt_id"),
        Index("ix_completions_version", "version_id"),
        CheckConstraint("finish_reason is null or finish_reason in ('stop', 'length')", name="finish_reason"),
        CheckConstraint("(run_id is null) = (index is null)", name="index_within_run"),
    )

    id: Mapped[UuidKey]
    prompt_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("prompts.id", ondelete="CASCADE"))
    text: Mapped[str]
    content_hash: Mapped[bytes] = mapped_column(LargeBinary)
    run_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("runs.id"))
    index: Mapped[int | None]
    version_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("versions.id"))
    author_id: Mapped[UserId | None]
    # Who wrote an imported answer, as its file says.
    model_name: Mapped[str | None]
    sampling: Mapped[dict[str, Any] | None] = mapped_column(JSONB)
    seed: Mapped[int | None] = mapped_column(BigInteger)
    finish_reason: Mapped[str | None]
    num_tokens: Mapped[int | None]
    is_demonstration: Mapped[FalseByDefault]
    created_at: Mapped[Created]


class RunPrompt(Base):
    """One line of a run's frozen list of prompts. A trigger keeps test prompts out of all but `sample` and `evaluate`
    runs.
    """

    __tablename__ = "run_prompts"
    __table_args__ = (Index("ix_run_prompts_prompt", "prompt_id"),)

    run_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("runs.id", ondelete="CASCADE"), primary_key=True)
    position: Mapped[int] = mapped_column(primary_key=True)
    prompt_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("prompts.id", ondelete="CASCADE"))
