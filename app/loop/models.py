"""The table of rounds."""

from __future__ import annotations

import uuid
from datetime import datetime

from sqlalchemy import ForeignKey, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from app.db import Base, Created, ProjectId, UuidKey


class Round(Base):
    """Policy version -> completions -> rankings -> reward version -> policy version. The newest of a project is the
    current one.
    """

    __tablename__ = "rounds"
    __table_args__ = (UniqueConstraint("project_id", "number"),)

    id: Mapped[UuidKey]
    project_id: Mapped[ProjectId]
    number: Mapped[int]
    policy_version_id: Mapped[uuid.UUID] = mapped_column(ForeignKey("versions.id"))
    sample_run_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("runs.id"))
    dataset_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("datasets.id"))
    reward_run_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("runs.id"))
    policy_run_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("runs.id"))
    next_version_id: Mapped[uuid.UUID | None] = mapped_column(ForeignKey("versions.id"))
    created_at: Mapped[Created]
    closed_at: Mapped[datetime | None]
