"""The table of projects: what is asked of annotators, and with which settings the loop runs."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from sqlalchemy import BigInteger, CheckConstraint
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Created, FalseByDefault, TrueByDefault, UserId, UuidKey


class Project(Base):
    """What is asked of annotators, and how the loop runs."""

    __tablename__ = "projects"
    __table_args__ = (
        CheckConstraint("k between 2 and 9", name="k"),
        CheckConstraint("overlap between 1 and 100", name="overlap"),
        CheckConstraint("lease_minutes between 1 and 1440", name="lease_minutes"),
        CheckConstraint("train_threshold is null or train_threshold > 0", name="train_threshold"),
        CheckConstraint(
            "validation_share >= 0 and test_share >= 0 and validation_share + test_share < 1", name="shares"
        ),
    )

    id: Mapped[UuidKey]
    slug: Mapped[str] = mapped_column(unique=True)
    name: Mapped[str]
    guidelines: Mapped[str] = mapped_column(server_default="", default="")
    model_alias: Mapped[str]
    k: Mapped[int] = mapped_column(server_default="4", default=4)
    ties_allowed: Mapped[TrueByDefault]
    partial_allowed: Mapped[FalseByDefault]
    # [{"key", "en", "zh"}]: what an annotator may mark on an answer.
    labels: Mapped[list[Any]] = mapped_column(JSONB, server_default="[]")
    overlap: Mapped[int] = mapped_column(server_default="1", default=1)
    lease_minutes: Mapped[int] = mapped_column(server_default="60", default=60)
    # {"temperature", "top_p", "max_new_tokens", "seed"}
    sampling: Mapped[dict[str, Any]] = mapped_column(JSONB)
    # {"reward": {...}, "ppo": {...}}: overrides of the trainer's defaults.
    training: Mapped[dict[str, Any]] = mapped_column(JSONB, server_default="{}")
    # Train by itself after so many new rankings; null: by hand only.
    train_threshold: Mapped[int | None]
    validation_share: Mapped[float] = mapped_column(server_default="0.15", default=0.15)
    test_share: Mapped[float] = mapped_column(server_default="0.1", default=0.1)
    # Salt of the split: the same conversation may be held out in one project and not in another.
    seed: Mapped[int] = mapped_column(BigInteger, server_default="17", default=17)
    is_paused: Mapped[FalseByDefault]
    created_by: Mapped[UserId | None]
    created_at: Mapped[Created]
    archived_at: Mapped[datetime | None]
