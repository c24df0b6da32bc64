"""The lines of files with rankings that were made elsewhere: the interchange form, and our own dataset rows.

Either becomes judgements: an order of some answers by one annotator, checked, in the ids of its line.
"""

from __future__ import annotations

import uuid
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Annotated, Any, ClassVar, Self

from pydantic import BeforeValidator, Field, FiniteFloat, model_validator

from app.prompts.adding import MAX_TASK_COMPLETIONS
from app.prompts.lines import AnswerIn, Answers, AnswerText, Label, PromptFields, Strict, as_answer, refuse
from app.rankings.answers import MAX_CONFIDENCE, MAX_RATIONALE_LENGTH, MAX_STRENGTH, MIN_CONFIDENCE

Cells = list[list[str]]


@dataclass(frozen=True)
class Judgement:
    """What one annotator said of some answers, in the ids of their line; an answer in no cell is missing, not last."""

    annotator: str
    answers: Sequence[str]
    cells: Cells
    labels: Mapping[str, Sequence[str]] = field(default_factory=dict)
    ratings: Mapping[str, int] = field(default_factory=dict)
    denied: Mapping[str, Sequence[str]] = field(default_factory=dict)
    # What was said of the whole: `rationale`, `confidence`, `all_bad`, `strength`.
    whole: Mapping[str, Any] = field(default_factory=dict)


class Pair(Strict):
    """Which of two answers is better."""

    a: Label
    b: Label
    pref: Label


class Annotation(Strict):
    """What one annotator said: an order by `ranks` (1 is best), by `pairs`, or by `scores` (larger is better)."""

    annotator: Label | None = None
    ranks: dict[str, int] | None = None
    scores: dict[str, FiniteFloat] | None = None
    pairs: list[Pair] | None = None

    def judgements(self, answers: Sequence[str], annotator: str) -> Iterator[Judgement]:
        """One for an order, one for each pair."""
        if self.ranks or (self.scores and not self.pairs):
            by_score = {key: -score for key, score in (self.scores or {}).items()}
            yield whole_judgement(annotator, answers, cells_of(self.ranks or by_score))
            return
        for pair in self.pairs or []:
            yield Judgement(annotator, (pair.a, pair.b), cells_of_pair(pair))


class Aggregate(Strict):
    """One order that was made out of several."""

    kind: Label = "aggregate"
    ranking: Cells | None = None
    scores: Any = None


class RankedLine(PromptFields):
    """A line of the interchange form. The aggregate is read where no annotations stand."""

    responses: Answers | None = None
    completions: Answers | None = None
    annotations: list[Annotation] = Field(default_factory=list)
    aggregate: Aggregate | None = None
    answer: Any = None

    UNREAD: ClassVar = ("answer",)

    @model_validator(mode="after")
    def check_whole(self) -> Self:
        """There are a prompt, answers with ids, and orders of them."""
        self.require_conversation()
        known = identities(self.answers())
        if not list(self.judgements()):
            raise refuse("needs `annotations` (each with `ranks`, `pairs` or `scores`) or `aggregate.ranking`")
        for judgement in self.judgements():
            check_judgement(judgement, known)
        return self

    def answers(self) -> list[AnswerIn]:
        """The answers, under either name; one without an id is known by its position."""
        given = self.responses or self.completions or []
        return [
            item if item.id is not None else item.model_copy(update={"id": str(position)})
            for position, item in enumerate(given)
        ]

    def judgements(self) -> Iterator[Judgement]:
        """Everything that was said, one order at a time."""
        names = [answer.id or "" for answer in self.answers()]
        for number, annotation in enumerate(self.annotations, start=1):
            yield from annotation.judgements(names, annotation.annotator or f"annotator {number}")
        if not self.annotations and self.aggregate is not None and self.aggregate.ranking:
            yield whole_judgement(self.aggregate.kind, names, self.aggregate.ranking)

    def known_as(self) -> uuid.UUID | None:
        """Only our own rows know the ranking that they were."""
        return None


class OrderedAnswer(Strict):
    """A completion of one of our dataset rows."""

    id: Label | None = None
    text: AnswerText
    model: Label | None = None
    version_id: Label | None = None
    finish_reason: str | None = Field(None, pattern="^(stop|length)$")


class OrderedLine(PromptFields):
    """A row of one of our datasets (docs/protocol.md), or as little of it as says: these answers, in this order."""

    ranking_id: uuid.UUID | None = None
    prompt_id: Any = None
    split: Any = None
    display_order: Any = None
    provenance: Any = None
    created_at: Any = None
    completions: list[Annotated[OrderedAnswer, BeforeValidator(as_answer)]]
    order: Cells
    annotator: Label = "imported"
    labels: dict[str, list[Label]] = Field(default_factory=dict)
    denied: dict[str, list[Label]] = Field(default_factory=dict)
    ratings: dict[str, Annotated[int, Field(ge=1, le=7)]] = Field(default_factory=dict)
    rationale: Annotated[AnswerText, Field(max_length=MAX_RATIONALE_LENGTH)] = ""
    confidence: int | None = Field(None, ge=MIN_CONFIDENCE, le=MAX_CONFIDENCE)
    all_bad: bool | None = None
    strength: int | None = Field(None, ge=0, le=MAX_STRENGTH)

    UNREAD: ClassVar = ("split", "display_order", "provenance", "created_at")

    @model_validator(mode="after")
    def check_whole(self) -> Self:
        """There are a prompt, answers with ids, and an order of them."""
        self.require_conversation()
        known = identities(self.answers())
        unknown = sorted((set(self.labels) | set(self.denied) | set(self.ratings)) - set(known))
        if unknown:
            raise refuse(f"labels or ratings name {unknown[0]!r}, which is not the id of an answer")
        for judgement in self.judgements():
            check_judgement(judgement, known)
        self.check_remarks()
        return self

    def check_remarks(self) -> None:
        """No label has yes and no; a strength fits the order."""
        for key, labels in self.labels.items():
            if set(labels) & set(self.denied.get(key, ())):
                raise refuse(f"labels and denied both name {min(labels)!r} of {key!r}")
        if self.strength is not None:
            if len(self.completions) != 2:
                raise refuse("strength belongs to a comparison of two answers")
            if (self.strength == 0) != (len(self.order) == 1):
                raise refuse("strength is 0 where the answers are tied, and only there")

    def answers(self) -> list[AnswerIn]:
        """The answers with ids, each by the model or the version that the row names."""
        return [
            AnswerIn(
                id=str(position) if item.id is None else item.id,
                text=item.text,
                model=item.model or item.version_id,
                finished=None if item.finish_reason is None else item.finish_reason == "stop",
            )
            for position, item in enumerate(self.completions)
        ]

    def judgements(self) -> Iterator[Judgement]:
        """The one order of this row."""
        names = [answer.id or "" for answer in self.answers()]
        whole = {name: getattr(self, name) for name in ("rationale", "confidence", "all_bad", "strength")}
        yield Judgement(self.annotator, names, self.order, self.labels, self.ratings, self.denied, whole)

    def known_as(self) -> uuid.UUID | None:
        """The ranking that this row was."""
        return self.ranking_id


AnyLine = RankedLine | OrderedLine


def parse(value: dict[str, Any]) -> AnyLine:
    """A line of either form: our own rows have an `order`."""
    return OrderedLine.model_validate(value) if "order" in value else RankedLine.model_validate(value)


def whole_judgement(annotator: str, answers: Sequence[str], cells: Cells) -> Judgement:
    """An order of all answers; of those that it names, where one task can't hold all."""
    named = {key for cell in cells for key in cell}
    compared = answers if len(answers) <= MAX_TASK_COMPLETIONS else [key for key in answers if key in named]
    return Judgement(annotator, compared, cells)


def cells_of(places: Mapping[str, float]) -> Cells:
    """Answers with the same place share a cell; the smallest place comes first."""
    ordered = sorted(places, key=lambda key: places[key])
    return [list(cell) for _, cell in groupby(ordered, key=lambda key: places[key])]


def cells_of_pair(pair: Pair) -> Cells:
    """A pair as an order."""
    if pair.pref == "tie":
        return [[pair.a, pair.b]]
    return [[pair.pref], [pair.b if pair.pref == pair.a else pair.a]]


def identities(answers: Sequence[AnswerIn]) -> dict[str, tuple[str, str | None]]:
    """Id -> what is stored once: the same text by the same model is one answer."""
    known = {answer.id or "": (answer.text, answer.model) for answer in answers}
    if len(answers) < 2:
        raise refuse("needs at least two answers, as `responses` or `completions`")
    if len(known) < len(answers):
        raise refuse("two answers have the same `id`")
    return known


def check_judgement(judgement: Judgement, known: Mapping[str, tuple[str, str | None]]) -> None:
    """Each answer stands in at most one cell, at least two stand somewhere, and one task can hold them."""
    who = f"the order by {judgement.annotator!r}"
    placed = [key for cell in judgement.cells for key in cell]
    for key in placed:
        if key not in known or key not in judgement.answers:
            raise refuse(f"{who} names {key!r}, which is not the id of an answer that it compares")
    twice = [key for key, times in Counter(placed).items() if times > 1]
    if twice:
        raise refuse(f"{who} names {twice[0]!r} twice")
    if not all(judgement.cells):
        raise refuse(f"{who} has an empty cell")
    different = [{known[key] for key in cell} for cell in judgement.cells]
    if sum(map(len, different)) > len(set().union(*different)):
        raise refuse(f"{who} puts the same text by the same model in two places")
    if len(set().union(*different)) < 2:
        raise refuse(f"{who} compares fewer than two different answers")
    if len(judgement.answers) > MAX_TASK_COMPLETIONS:
        raise refuse(
            f"{who} compares {len(judgement.answers)} answers; a task takes 2 to {MAX_TASK_COMPLETIONS}: "
            "rank some of them, or send `pairs`"
        )
