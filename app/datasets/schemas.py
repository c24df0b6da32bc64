"""Wire shapes of datasets. The rows themselves are in docs/protocol.md."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.datasets.filters import DatasetFilter
from app.examples import PROJECT, shown
from app.formats.exports import Format
from app.formats.files import Compression, FileKind
from app.formats.rows import Options
from app.prompts.lines import Label


class DatasetIn(BaseModel):
    """Which rankings of a project to freeze."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra=shown(
            project_id=PROJECT, name="Round 1", licence="CC-BY-4.0", filter={"splits": ["train"], "rounds": [1]}
        ),
    )

    project_id: str
    """Its id or its short name."""
    name: Label = ""
    licence: Label = ""
    """An SPDX name, such as `CC-BY-4.0`."""
    filter: DatasetFilter = Field(default_factory=DatasetFilter)


class ExportChoices(Options):
    """Which file a dataset becomes. As it is by default, it is the very lines that were frozen and hashed."""

    format: Format = "rankings"
    """What a record is."""
    file: FileKind = "jsonl"
    """How records are written; `folder` is a zip archive whose folder `datasets.load_dataset` opens."""
    compression: Compression = "none"
    split: Literal["all", "train", "validation"] = "all"

    def options(self) -> Options:
        """What the format alone needs to know."""
        return Options(**{name: getattr(self, name) for name in Options.model_fields})


class ExportReport(BaseModel):
    """What is in a file, and what its format can't hold."""

    dataset: dict[str, Any]
    file: str
    choices: dict[str, Any]
    num_rankings: int
    counts: dict[str, Any]
    not_held: Annotated[list[str], Field(description="In sentences; empty: it holds all.")]


class DatasetOut(BaseModel):
    """A dataset as the API shows it."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    project_id: uuid.UUID
    number: int
    name: str
    licence: str
    filter: dict[str, Any]
    counts: dict[str, Any]
    num_rows: int
    sha256: str
    created_at: datetime


class DatasetPage(BaseModel):
    """One page of datasets; send `next_cursor` as `cursor` to get the next."""

    items: list[DatasetOut]
    next_cursor: str | None
