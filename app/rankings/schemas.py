"""Wire shapes of rankings, and how the fields of the ranking page are read."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from datetime import datetime
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from app.rankings.answers import (
    MAX_RATING,
    MAX_RATIONALE_LENGTH,
    MIN_RATING,
    AnswerError,
    RankingAnswer,
    errors_of_order,
    places_of,
    refusal,
)
from app.rankings.provenance import UNKNOWN, How, Provenance
from app.rankings.service import AnswerRefused, RankingView

Cell = Annotated[list[uuid.UUID], Field(max_length=9)]
Key = Annotated[str, StringConstraints(max_length=60)]


class RankingIn(BaseModel):
    """An answer: cells of completion ids, best first; two or more in a cell are tied."""

    model_config = ConfigDict(extra="forbid")

    order: Annotated[list[Cell], Field(max_length=9, examples=[[["<id of the best>"], ["<tied>", "<tied>"]]])]
    ratings: dict[uuid.UUID, Annotated[int, Field(strict=True, ge=MIN_RATING, le=MAX_RATING)]] = Field(
        default_factory=dict
    )
    labels: dict[uuid.UUID, Annotated[list[Key], Field(max_length=100)]] = Field(default_factory=dict)
    rationale: Annotated[str, StringConstraints(max_length=MAX_RATIONALE_LENGTH)] = ""
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
            places=places_of(self.order), ratings=self.ratings, labels=self.labels, rationale=self.rationale
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
    rationale: str
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
            rationale=ranking.rationale,
            created_at=ranking.created_at,
            provenance=ProvenanceOut.model_validate(ranking),
        )


class RankingPage(BaseModel):
    """One page of rankings; send `next_cursor` as `cursor` to get what comes after, now or later."""

    items: list[RankingOut]
    next_cursor: str | None


class FormAnswer(BaseModel):
    """What a form held: the answer, and the fields that can't be read."""

    model_config = ConfigDict(arbitrary_types_allowed=True)

    answer: RankingAnswer
    errors: list[AnswerError]


def read_form(fields: Iterable[tuple[str, str]], num_places: int) -> FormAnswer:
    """The fields `place_<id>`, `rating_<id>`, `flag_<id>` (repeated) and `rationale`; others are not ours.

    `num_places`: the worst place that there is. A field that can't be read is named in `errors` and left out.
    """
    places: dict[uuid.UUID, int | None] = {}
    ratings: dict[uuid.UUID, int] = {}
    labels: dict[uuid.UUID, list[str]] = {}
    rationale = ""
    errors = []
    for name, value in fields:
        kind, _, key = name.partition("_")
        if name == "rationale":
            rationale = value.replace("\r\n", "\n")
        elif kind not in {"place", "rating", "flag"}:
            continue
        elif (completion_id := _read_id(key)) is None:
            errors.append(refusal(name[:60], "This field names no answer."))
        elif kind == "flag":
            labels.setdefault(completion_id, []).append(value)
        elif kind == "place":
            places[completion_id] = _read_number(value, num_places)
            if value and places[completion_id] is None:
                errors.append(refusal(f"places.{completion_id}", "A place is a number from 1 to {n}.", n=num_places))
        elif (rating := _read_number(value, MAX_RATING)) is not None:
            ratings[completion_id] = rating
        elif value:
            errors.append(refusal(f"ratings.{completion_id}", "A rating is a number from 1 to {n}.", n=MAX_RATING))
    return FormAnswer(answer=RankingAnswer(places, ratings, labels, rationale), errors=errors)


def _read_id(text: str) -> uuid.UUID | None:
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def _read_number(text: str, highest: int) -> int | None:
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 4 else 0
    return number if 1 <= number <= highest else None
