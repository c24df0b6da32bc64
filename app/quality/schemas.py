"""Wire shapes of quality, and the form that settles a flag."""

from __future__ import annotations

import uuid
from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from app.examples import shown
from app.quality.agreement import Agreement
from app.quality.bias import PositionTest, Report, rows_of
from app.quality.detectors import flags_of
from app.quality.people import Portrait
from app.quality.qualification import Report as QualificationReport
from app.quality.service import INSTRUCTGPT, Overview, PersonRow
from app.tasks.models import StandingState

Note = Annotated[str, Field(max_length=1000)]


class SettleForm(BaseModel):
    """What somebody says of a flag."""

    model_config = ConfigDict(extra="forbid")

    settlement: Literal["confirmed", "dismissed"]
    note: Note = ""


class DecisionIn(BaseModel):
    """What an admin decides about an annotator."""

    model_config = ConfigDict(extra="forbid", json_schema_extra=shown(decision="let_in"))

    decision: Literal["let_in", "retry", "exclude"]


class StandingOut(BaseModel):
    """Whether somebody gets real work. `score`: the agreement with known orders that led to this state."""

    model_config = ConfigDict(from_attributes=True)

    annotator_id: uuid.UUID
    state: StandingState
    num_tries: int
    num_asked: int
    num_done: int
    score: float | None
    changed_at: datetime


class FeedbackOut(BaseModel):
    """A task of a try that is over. Orders are of letters, best first; `answers` says what each letter was."""

    answers: dict[str, str]
    order: list[list[str]]
    known: list[list[str]]
    agreement: float
    why: str


class QualificationOut(BaseModel):
    """Where one stands before real work. `standing` null: not begun."""

    standing: StandingOut | None
    is_exempt: bool
    """Reviewers and admins need no qualification."""
    num_unseen: int
    """Tasks of the qualification that are left for this person."""
    feedback: list[FeedbackOut]

    @classmethod
    def of(cls, report: QualificationReport) -> QualificationOut:
        """The wire shape."""
        return cls(
            standing=StandingOut.model_validate(report.standing) if report.standing else None,
            is_exempt=report.is_exempt,
            num_unseen=report.num_unseen,
            feedback=[
                FeedbackOut(
                    answers={card.letter: card.text for card in item.cards},
                    order=[list(cell) for cell in item.order],
                    known=[list(cell) for cell in item.known],
                    agreement=item.agreement,
                    why=item.why,
                )
                for item in report.feedback
            ],
        )


class Part(BaseModel):
    """Agreement within one round or language. `key` null: tasks of no round."""

    key: int | str | None
    agreement: Agreement


class QualityOut(BaseModel):
    """How well people agree, over the newest rankings of tasks that more than one person ranked (docs/quality.md)."""

    everything: Agreement
    by_round: list[Part]
    by_language: list[Part]
    kappas: dict[str, float | None]
    """Fleiss' kappa of each label that was used."""
    instructgpt: dict[str, float]
    """What InstructGPT reports for its training labelers, to compare."""

    @classmethod
    def of(cls, overview: Overview) -> QualityOut:
        """The wire shape."""
        return cls(
            everything=overview.everything,
            by_round=[Part(key=key, agreement=part) for key, part in overview.by_round],
            by_language=[Part(key=key, agreement=part) for key, part in overview.by_language],
            kappas=dict(overview.kappas),
            instructgpt=INSTRUCTGPT,
        )


class AnnotatorOut(BaseModel):
    """What was last measured of one annotator. `flags`: those that nobody has settled."""

    id: uuid.UUID
    name: str
    num_rankings: int
    share: float | None
    """Of all that annotators ranked in this project."""
    measured_at: datetime
    portrait: Portrait
    flags: list[str]
    flagged_now: list[str]
    """The checks that the newest rankings do not pass."""

    @classmethod
    def of(cls, row: PersonRow) -> AnnotatorOut:
        """The wire shape."""
        return cls(
            id=row.id,
            name=row.name,
            num_rankings=row.num_rankings,
            share=row.share,
            measured_at=row.measured_at,
            portrait=row.portrait,
            flags=[flag.check_name for flag in row.flags],
            flagged_now=[str(check) for check in flags_of(row.portrait.checks)],
        )


class AnnotatorPage(BaseModel):
    """One page of annotators; send `next_cursor` as `cursor` to get what follows."""

    items: list[AnnotatorOut]
    next_cursor: str | None


class BiasOut(BaseModel):
    """What the newest rankings lean on: one row a rate (docs/quality.md)."""

    num_rankings: int
    position: PositionTest | None
    is_position_biased: bool
    rates: list[dict[str, Any]]

    @classmethod
    def of(cls, report: Report) -> BiasOut:
        """The wire shape."""
        return cls(
            num_rankings=report.num_rankings,
            position=report.position,
            is_position_biased=report.position is not None and report.position.is_biased,
            rates=rows_of(report),
        )
