"""Wire shapes of runs, as docs/protocol.md has them."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat, StringConstraints

from app.examples import shown
from app.runs.models import Run, RunKind

ShortText = Annotated[str, StringConstraints(max_length=200)]
# PostgreSQL can't store NUL in text.
LogText = Annotated[str, StringConstraints(max_length=20_000, pattern=r"^[^\x00]*$")]
MetricName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9_]+(/[a-z0-9_]+)*$", max_length=100)]


class Strict(BaseModel):
    """Unknown fields are refused by name."""

    model_config = ConfigDict(extra="forbid")


class ClaimIn(Strict):
    """A worker asks for work."""

    model_config = ConfigDict(json_schema_extra=shown(worker="gpu-1", kinds=["sample", "sft", "reward", "ppo"]))

    worker: ShortText
    kinds: list[RunKind] = Field(min_length=1)


class ClaimOut(BaseModel):
    """A run that this worker now holds."""

    id: uuid.UUID
    kind: RunKind
    project_id: uuid.UUID
    fence: int
    attempt: int
    lease_seconds: int
    config: dict[str, Any]

    @classmethod
    def of(cls, run: Run, *, lease_seconds: int) -> ClaimOut:
        """The wire shape of a run that was just taken."""
        names = ("id", "kind", "project_id", "fence", "attempt", "config")
        return cls(**{name: getattr(run, name) for name in names}, lease_seconds=lease_seconds)


class Progress(Strict):
    """How far a run is."""

    step: int = Field(ge=0)
    total: int | None = Field(None, ge=0)
    message: ShortText = ""
    eta_seconds: float | None = Field(None, ge=0)


class HeartbeatIn(Strict):
    """A sign of life."""

    model_config = ConfigDict(
        json_schema_extra=shown(progress={"step": 120, "total": 500, "message": "PPO", "eta_seconds": 900})
    )

    progress: Progress | None = None


class HeartbeatOut(BaseModel):
    """What the worker should know."""

    cancel_requested: bool
    lease_seconds: int


class MetricPoint(Strict):
    """One point of one curve."""

    step: int = Field(ge=0)
    name: MetricName
    value: FiniteFloat


class MetricsIn(Strict):
    """Points of curves."""

    model_config = ConfigDict(
        json_schema_extra=shown(points=[{"step": 120, "name": "objective/reward", "value": 1.42}])
    )

    points: list[MetricPoint] = Field(max_length=10_000)


class LogLine(Strict):
    """One line of the log."""

    level: Literal["info", "warning", "error"] = "info"
    text: LogText


class LogIn(Strict):
    """Lines of the log."""

    model_config = ConfigDict(json_schema_extra=shown(lines=[{"level": "info", "text": "checkpoint written"}]))

    lines: list[LogLine] = Field(max_length=1_000)


class FinishIn(Strict):
    """How a run ended."""

    model_config = ConfigDict(json_schema_extra=shown(state="failed", error="CUDA out of memory"))

    state: Literal["finished", "failed", "cancelled"]
    result: dict[str, Any] | None = None
    artifacts: list[ShortText] = []
    error: LogText | None = None


class ArtifactOut(BaseModel):
    """A delivered file."""

    model_config = ConfigDict(from_attributes=True)

    name: str
    size: int
    sha256: str


class UploadOut(ArtifactOut):
    """How much of a file has arrived."""

    received: int
    complete: bool


class ArtifactList(BaseModel):
    """All delivered files."""

    items: list[ArtifactOut]


class RunOut(BaseModel):
    """A run as the API shows it."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    project_id: uuid.UUID
    kind: RunKind
    state: str
    config: dict[str, Any]
    is_triggered: bool
    attempt: int
    worker: str | None
    progress: dict[str, Any] | None
    result: dict[str, Any] | None
    error: str | None
    created_at: datetime
    started_at: datetime | None
    finished_at: datetime | None


class RunPage(BaseModel):
    """Runs, newest first, and where the next page begins."""

    items: list[RunOut]
    next_cursor: str | None
