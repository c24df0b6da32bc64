"""Wire shapes of versions."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

from app.runs.schemas import ArtifactOut


class VersionOut(BaseModel):
    """A version as the API shows it."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    project_id: uuid.UUID
    number: int
    kind: str
    alias: str
    parent_id: uuid.UUID | None
    reward_version_id: uuid.UUID | None
    dataset_id: uuid.UUID | None
    run_id: uuid.UUID | None
    metrics: dict[str, Any]
    gate: dict[str, Any]
    sha256: str | None
    is_live: bool
    created_at: datetime


class VersionDetail(VersionOut):
    """A version with its files."""

    files: list[ArtifactOut]


class VersionPage(BaseModel):
    """A project's versions, newest first."""

    items: list[VersionOut]
    next_cursor: str | None = None
