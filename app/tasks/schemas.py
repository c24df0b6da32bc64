"""Wire shapes of tasks and leases."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.accounts.guards import MAX_KEY
from app.examples import PROJECT, A, B, shown
from app.tasks.lists import TaskRow
from app.tasks.models import Lease, SkipKind
from app.tasks.service import MAX_REASON_LENGTH, Shown

Key = Annotated[str, StringConstraints(max_length=60)]


class NextTaskIn(BaseModel):
    """Which project to take a task from."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=shown(project_id=PROJECT))

    project_id: Annotated[
        str, StringConstraints(min_length=1, max_length=MAX_KEY), Field(description="Its id or short name")
    ]


class MessageOut(BaseModel):
    """One turn of the conversation."""

    role: str
    content: str


class CardOut(BaseModel):
    """One answer; who wrote it is not told."""

    id: uuid.UUID
    text: str


class LeaseOut(BaseModel):
    """A task to rank: all that its annotator may know. `completions` stand in the order of display."""

    lease_id: uuid.UUID
    task_id: uuid.UUID
    expires_at: datetime
    messages: list[MessageOut]
    completions: list[CardOut]
    k: int
    ties_allowed: bool
    partial_allowed: bool
    is_assisted: bool
    """Their order is a reward model's guess, the best first; else it is random."""

    @classmethod
    def of(cls, sheet: Shown) -> LeaseOut:
        """The wire shape of a sheet."""
        return cls(
            lease_id=sheet.lease.id,
            task_id=sheet.lease.task_id,
            expires_at=sheet.lease.expires_at,
            messages=[MessageOut(role=turn["role"], content=turn["content"]) for turn in sheet.messages],
            completions=[CardOut(id=card.id, text=card.text) for card in sheet.cards],
            k=len(sheet.cards),
            ties_allowed=sheet.project.ties_allowed,
            partial_allowed=sheet.project.partial_allowed,
            is_assisted=sheet.lease.is_assisted,
        )


class ReleaseIn(BaseModel):
    """Why a task is skipped."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=shown(kind="other", reason="I know no law."))

    kind: SkipKind | None = None
    reason: Annotated[str, StringConstraints(max_length=MAX_REASON_LENGTH)] | None = None


class DraftIn(BaseModel):
    """What was placed so far. Ids are those of the task's completions."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra=shown(places={A: 1, B: 2}, labels={B: ["rude"]}, rationale="A says where, too."),
    )

    places: dict[uuid.UUID, Annotated[int, Field(ge=1, le=9)] | None] = Field(default_factory=dict)
    ratings: dict[uuid.UUID, Annotated[int, Field(ge=1, le=7)] | None] = Field(default_factory=dict)
    labels: dict[uuid.UUID, Annotated[list[Key], Field(max_length=100)]] = Field(default_factory=dict)
    denied: dict[uuid.UUID, Annotated[list[Key], Field(max_length=100)]] = Field(default_factory=dict)
    rationale: str = ""
    confidence: Annotated[int, Field(ge=1, le=3)] | None = None
    all_bad: bool | None = None
    strength: Annotated[int, Field(ge=0, le=3)] | None = None

    def stored(self) -> dict[str, Any]:
        """As it is kept: plain JSON of what was sent."""
        return self.model_dump(mode="json", exclude_unset=True)


class PageDraftIn(DraftIn):
    """The same from a page, which may be gone by the time that its draft arrives."""

    # The `saved_at` that the page knew; empty for none.
    follows: Annotated[str, StringConstraints(max_length=40)] | None = None

    def stored(self) -> dict[str, Any]:
        """As it is kept: plain JSON of what was placed."""
        return self.model_dump(mode="json", exclude_unset=True, exclude={"follows"})


class DraftOut(BaseModel):
    """A saved draft keeps the task for its annotator."""

    saved_at: datetime
    expires_in_seconds: float

    @classmethod
    def of(cls, lease: Lease, now: datetime) -> DraftOut:
        """What is told of a draft that was saved at `now`."""
        return cls(saved_at=now, expires_in_seconds=max(0.0, (lease.expires_at - now).total_seconds()))


class PageDraftOut(BaseModel):
    """What the server has now. `is_stored` is false when another draft was saved since the one that the page knew."""

    saved_at: str
    is_stored: bool
    expires_in_seconds: float


class TaskOut(BaseModel):
    """A task as trainers see it."""

    model_config = ConfigDict(from_attributes=True)

    id: uuid.UUID
    number: int
    project_id: uuid.UUID
    prompt_id: uuid.UUID
    completion_ids: list[uuid.UUID]
    run_id: uuid.UUID | None
    round: int | None
    priority: int
    chosen_by: str
    score: float | None
    overlap: int
    num_open: int
    num_answered: int
    withdrawn_at: datetime | None
    created_at: datetime

    @classmethod
    def of(cls, row: TaskRow) -> TaskOut:
        """The wire shape of a row of the list."""
        task = row.task
        names = (
            "id",
            "number",
            "project_id",
            "prompt_id",
            "run_id",
            "round",
            "priority",
            "chosen_by",
            "score",
            "overlap",
        )
        return cls(
            **{name: getattr(task, name) for name in (*names, "withdrawn_at", "created_at")},
            completion_ids=list(row.completion_ids),
            num_open=row.num_open,
            num_answered=row.num_answered,
        )


class TaskPage(BaseModel):
    """One page of tasks; send `next_cursor` as `cursor` to get the next."""

    items: list[TaskOut]
    next_cursor: str | None
