"""Wire shapes of datasets. The rows themselves are in docs/protocol.md."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict


class DatasetIn(BaseModel):
    """Which project's rankings to freeze."""

    model_config = ConfigDict(extra="forbid")

    project_id: str
    """Its id or its short name."""


class DatasetOut(BaseModel):
    """A dataset as the API shows it."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    project_id: uuid.UUID
    number: int
    filter: dict[str, Any]
    counts: dict[str, Any]
    num_rows: int
    sha256: str
    created_at: datetime


class DatasetPage(BaseModel):
    """One page of datasets; send `next_cursor` as `cursor` to get the next."""

    items: list[DatasetOut]
    next_cursor: str | None
