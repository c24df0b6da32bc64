"""Wire shapes of rankings."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.examples import A, B, C, shown
from app.rankings.answers import (
    MAX_CONFIDENCE,
    MAX_RATING,
    MAX_RATIONALE_LENGTH,
    MAX_STRENGTH,
    MIN_CONFIDENCE,
    MIN_RATING,
    RankingAnswer,
    errors_of_order,
    places_of,
)
from app.rankings.changes import Change, Kind
from app.rankings.provenance import UNKNOWN, How, Provenance
from app.rankings.service import AnswerRefused, RankingView

Cell = Annotated[list[uuid.UUID], Field(max_length=9)]
Key = Annotated[str, StringConstraints(max_length=60)]


class RankingIn(BaseModel):
    """An answer: cells of completion ids, best first; two or more in a cell are tied."""

    model_config = ConfigDict(
        extra="forbid",
        json_schema_extra=shown(
            order=[[B], [A, C]],
            ratings={B: 6},
            labels={A: ["rude"]},
            rationale="B is right; A and C are not.",
            confidence=3,
        ),
    )

    order: Annotated[list[Cell], Field(max_length=9)]
    ratings: dict[uuid.UUID, Annotated[int, Field(strict=True, ge=MIN_RATING, le=MAX_RATING)]] = Field(
        default_factory=dict
    )
    labels: dict[uuid.UUID, Annotated[list[Key], Field(max_length=100)]] = Field(default_factory=dict)
    denied: Annotated[
        dict[uuid.UUID, Annotated[list[Key], Field(max_length=100)]],
        Field(description="Required labels that were answered with no."),
    ] = {}
    rationale: Annotated[str, StringConstraints(max_length=MAX_RATIONALE_LENGTH)] = ""
    confidence: Annotated[
        int | None,
        Field(strict=True, ge=MIN_CONFIDENCE, le=MAX_CONFIDENCE, description="1 unsure, 2 fairly sure, 3 sure."),
    ] = None
    all_bad: Annotated[bool | None, Field(strict=True, description="Whether every answer is bad.")] = None
    strength: Annotated[
        int | None,
        Field(
            strict=True,
            ge=0,
            le=MAX_STRENGTH,
            description="Of two answers, how much better: 0 a tie, 1 slightly, 2 better, 3 much.",
        ),
    ] = None
    how: How | None = None

    def provenance(self, *, leased_at: datetime, now: datetime) -> Provenance:
        """How it was made, in the server's time.

        Raises:
            Invalid: that can't be true.
        """
        return self.how.provenance(leased_at=leased_at, now=now) if self.how else UNKNOWN

    def answer(self) -> RankingAnswer:
        """The same by places.

        Raises:
            AnswerRefused: a cell is empty, or an answer is named twice.
        """
        errors = errors_of_order(self.order)
        if errors:
            raise AnswerRefused(errors)
        return RankingAnswer(
            places=places_of(self.order),
            ratings=self.ratings,
            labels=self.labels,
            rationale=self.rationale,
            denied=self.denied,
            confidence=self.confidence,
            all_bad=self.all_bad,
            strength=self.strength,
        )


class ProvenanceOut(BaseModel):
    """How a ranking was made, by the server's clock. Null: not told."""

    model_config = ConfigDict(from_attributes=True)

    shown_at: datetime | None
    first_action_at: datetime | None
    submitted_at: datetime | None
    active_seconds: float | None
    device: str | None
    num_undos: int | None
    inputs: list[str] | None
    is_preloaded: bool
    is_offline: bool
    is_assisted: bool = False
    """The cards stood in a reward model's order."""


class RankingOut(BaseModel):
    """A ranking. `order` is best first; completions in no cell were left out. `display_order` is what was seen."""

    id: uuid.UUID
    number: int
    cursor: str
    project_id: uuid.UUID
    task_id: uuid.UUID
    lease_id: uuid.UUID | None
    annotator_id: uuid.UUID | None
    annotator_name: str | None
    source: str
    supersedes_id: uuid.UUID | None
    superseded_by: uuid.UUID | None
    is_surplus: bool
    is_current: bool
    order: list[list[uuid.UUID]]
    display_order: list[uuid.UUID]
    ratings: dict[uuid.UUID, int]
    labels: dict[uuid.UUID, list[str]]
    denied: dict[uuid.UUID, list[str]]
    rationale: str
    confidence: int | None
    all_bad: bool | None
    strength: int | None
    created_at: datetime
    provenance: ProvenanceOut

    @classmethod
    def of(cls, view: RankingView) -> RankingOut:
        """The wire shape of a ranking."""
        ranking = view.ranking
        names = ("id", "number", "project_id", "task_id", "lease_id", "annotator_id", "annotator_name", "source")
        return cls(
            **{name: getattr(ranking, name) for name in names},
            cursor=view.cursor,
            supersedes_id=ranking.supersedes_id,
            superseded_by=view.superseded_by,
            is_surplus=ranking.is_surplus,
            is_current=view.is_current,
            order=view.order,
            display_order=list(view.display_order),
            ratings={key: place.rating for key, place in view.places.items() if place.rating is not None},
            labels={key: place.labels for key, place in view.places.items() if place.labels},
            denied={key: place.denied for key, place in view.places.items() if place.denied},
            rationale=ranking.rationale,
            confidence=ranking.confidence,
            all_bad=ranking.all_bad,
            strength=ranking.strength,
            created_at=ranking.created_at,
            provenance=ProvenanceOut.model_validate(ranking).model_copy(update={"is_assisted": view.is_assisted}),
        )


class RankingPage(BaseModel):
    """One page of rankings; send `next_cursor` as `cursor` to get what comes after, now or later."""

    items: list[RankingOut]
    next_cursor: str | None


class ChangeOut(BaseModel):
    """Something that happened to a ranking, and the ranking as it is now. Send `cursor` to get what came after."""

    cursor: str = Field(examples=["4711.12"])
    change: Kind
    at: datetime
    ranking: RankingOut

    @classmethod
    def of(cls, change: Change) -> ChangeOut:
        """The wire shape of a change."""
        return cls(cursor=change.cursor, change=change.kind, at=change.at, ranking=RankingOut.of(change.view))


class ChangePage(BaseModel):
    """One page of changes; send `next_cursor` as `since` to get what comes after, now or later."""

    items: list[ChangeOut]
    next_cursor: str | None
