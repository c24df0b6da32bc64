"""The table of model versions."""

from __future__ import annotations

import uuid
from enum import StrEnum

from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint, text
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Created, EmptyObject, FalseByDefault, ProjectId, UuidKey


class VersionKind(StrEnum):
    """What a version is a model of."""

    POLICY = "policy"
    REWARD = "reward"


class Version(Base):
    """A model with its parents. Version 1 of a project is the SFT policy that everything starts from."""

    __tablename__ = "versions"
    __table_args__ = (
        UniqueConstraint("project_id", "number"),
        # A project has one live policy and one live reward model.
        Index("uq_versions_live", "project_id", "kind", unique=True, postgresql_where=text("is_live")),
        CheckConstraint("kind in ('policy', 'reward')", name="kind"),
        # Only the version that a project starts from comes out of no run.
        CheckConstraint("run_id is not null or parent_id is null", name="has_run"),
    )

    id: Mapped[UuidKey]
    project_id: Mapped[ProjectId]
    number: Mapped[int]
    kind: Mapped[str]
    alias: Mapped[str]
    parent_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("versions.id"))
    reward_version_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("versions.id"))
    dataset_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("datasets.id"), index=True)
    # Unique: no run registers two versions, however often it is finished.
    run_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("runs.id"), unique=True)
    metrics: Mapped[EmptyObject]
    # What it had to show before it went live, and whether it did (app/loop/gates.py: Verdict). Written by `loop`.
    gate: Mapped[EmptyObject]
    sha256: Mapped[str | None]
    is_live: Mapped[FalseByDefault]
    created_at: Mapped[Created]
