"""Wire shapes of corpora. The rows themselves are in docs/protocol.md."""

from __future__ import annotations

import uuid
from datetime import datetime

from pydantic import BaseModel, ConfigDict

from app.corpora.models import CorpusKind


class CorpusOut(BaseModel):
    """A corpus as the API shows it."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    project_id: uuid.UUID
    number: int
    name: str
    kind: CorpusKind
    num_rows: int
    sha256: str
    created_at: datetime


class CorpusList(BaseModel):
    """A project's corpora, newest first."""

    items: list[CorpusOut]
