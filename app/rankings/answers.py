"""What an annotator answered, as plain values: its two forms (places, order), its checks, its hash. No database."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.errors import FieldError

MAX_RATIONALE_LENGTH = 10_000
MIN_RATING, MAX_RATING = 1, 7
MIN_PLACED = 2

Order = list[list[uuid.UUID]]


@dataclass(frozen=True)
class RankingAnswer:
    """Places (1 is best, equal is tied, None is left out), ratings and labels by completion, and the reasons."""

    places: Mapping[uuid.UUID, int | None]
    ratings: Mapping[uuid.UUID, int] = field(default_factory=dict)
    labels: Mapping[uuid.UUID, Sequence[str]] = field(default_factory=dict)
    rationale: str = ""


@dataclass(frozen=True)
class Rules:
    """What a task asks for: its completions with the letters that the annotator saw, and the project's settings."""

    letters: Mapping[uuid.UUID, str]
    ties_allowed: bool
    partial_allowed: bool
    label_keys: frozenset[str]


@dataclass(frozen=True)
class AnswerError(FieldError):
    """A refused field, with its rule as a sentence that can be translated: `text` and the `values` of its gaps."""

    text: str = ""
    values: Mapping[str, object] = field(default_factory=dict)


def refusal(name: str, text: str, **values: object) -> AnswerError:
    """A refusal of the field `name`."""
    return AnswerError(name, text.format_map(values), text, values)


# The two forms of an order


def order_of(places: Mapping[uuid.UUID, int | None]) -> Order:
    """Places -> cells, best first; a cell with two or more is a tie, and what has no place is in none.

    Inside a cell the ids keep the order of `places`.
    """
    cells: dict[int, list[uuid.UUID]] = {}
    for completion_id, place in places.items():
        if place is not None:
            cells.setdefault(place, []).append(completion_id)
    return [cells[place] for place in sorted(cells)]


def places_of(order: Sequence[Sequence[uuid.UUID]]) -> dict[uuid.UUID, int | None]:
    """Cells, best first -> places 1, 2, 3 ... Use `errors_of_order` first: what is named twice gets its last place."""
    return {completion_id: place for place, cell in enumerate(order, start=1) for completion_id in cell}


def errors_of_order(order: Sequence[Sequence[uuid.UUID]]) -> list[AnswerError]:
    """What is wrong with cells as such: one that is empty, an answer that is named twice."""
    found = []
    seen: set[uuid.UUID] = set()
    for row, cell in enumerate(order):
        if not cell:
            found.append(refusal(f"order[{row}]", "This cell is empty: leave it out."))
        for column, completion_id in enumerate(cell):
            if completion_id in seen:
                found.append(refusal(f"order[{row}][{column}]", "{id} is named twice.", id=completion_id))
            seen.add(completion_id)
    return found


def make_dense(places: Mapping[uuid.UUID, int | None]) -> dict[uuid.UUID, int | None]:
    """The same order with the places 1, 2, 3 ... and no gaps."""
    rank = {place: index for index, place in enumerate(sorted({p for p in places.values() if p is not None}), start=1)}
    return {completion_id: None if place is None else rank[place] for completion_id, place in places.items()}


def tidy(answer: RankingAnswer) -> RankingAnswer:
    """The one way to write down an answer: dense places, sorted labels, no space around the rationale."""
    return RankingAnswer(
        places=make_dense(answer.places),
        ratings=dict(answer.ratings),
        labels={completion_id: sorted(set(keys)) for completion_id, keys in answer.labels.items() if keys},
        rationale=answer.rationale.strip(),
    )


def body_hash(answer: RankingAnswer) -> bytes:
    """SHA-256 of a tidy answer as canonical JSON: the same answer again has the same hash, whatever its spelling."""
    body = {
        "places": {str(key): place for key, place in answer.places.items() if place is not None},
        "ratings": {str(key): rating for key, rating in answer.ratings.items()},
        "labels": {str(key): list(keys) for key, keys in answer.labels.items()},
        "rationale": answer.rationale,
    }
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).digest()


# The checks


def errors_of(answer: RankingAnswer, rules: Rules) -> list[AnswerError]:
    """Everything that keeps a tidy answer from being taken; empty: it is fine."""
    return [
        *_strangers(answer, rules),
        *_missing_places(answer, rules),
        *_forbidden_ties(answer, rules),
        *_wrong_ratings(answer, rules),
        *_wrong_labels(answer, rules),
        *_wrong_rationale(answer.rationale),
    ]


def _strangers(answer: RankingAnswer, rules: Rules) -> Iterator[AnswerError]:
    groups: dict[str, Mapping[uuid.UUID, Any]] = {
        "places": answer.places,
        "ratings": answer.ratings,
        "labels": answer.labels,
    }
    for name, group in groups.items():
        for completion_id in group:
            if completion_id not in rules.letters:
                yield refusal(f"{name}.{completion_id}", "{id} is no answer of this task.", id=completion_id)


def _missing_places(answer: RankingAnswer, rules: Rules) -> Iterator[AnswerError]:
    missing = [completion_id for completion_id in rules.letters if answer.places.get(completion_id) is None]
    num_placed = len(rules.letters) - len(missing)
    if rules.partial_allowed:
        if num_placed < MIN_PLACED:
            yield refusal("places", "Place at least {n} answers.", n=MIN_PLACED)
        return
    for completion_id in missing:
        letter = rules.letters[completion_id]
        yield refusal(f"places.{completion_id}", "Answer {letter} has no place yet. Give it one.", letter=letter)


def _forbidden_ties(answer: RankingAnswer, rules: Rules) -> Iterator[AnswerError]:
    if rules.ties_allowed:
        return
    first_at: dict[int, str] = {}
    for completion_id, letter in rules.letters.items():
        place = answer.places.get(completion_id)
        if place is None:
            continue
        other = first_at.setdefault(place, letter)
        if other != letter:
            text = "Answer {letter} has the same place as {other}. This project has no ties: move one of them."
            yield refusal(f"places.{completion_id}", text, letter=letter, other=other)


def _wrong_ratings(answer: RankingAnswer, rules: Rules) -> Iterator[AnswerError]:
    for completion_id, rating in answer.ratings.items():
        if not MIN_RATING <= rating <= MAX_RATING:
            text = "The rating of {letter} must be {low} to {high}."
            letter = rules.letters.get(completion_id, str(completion_id))
            yield refusal(f"ratings.{completion_id}", text, letter=letter, low=MIN_RATING, high=MAX_RATING)


def _wrong_labels(answer: RankingAnswer, rules: Rules) -> Iterator[AnswerError]:
    for completion_id, keys in answer.labels.items():
        unknown = sorted(set(keys) - rules.label_keys)
        if unknown:
            text = "This project has no label {keys}."
            yield refusal(f"labels.{completion_id}", text, keys=", ".join(repr(key)[:60] for key in unknown[:5]))


def _wrong_rationale(rationale: str) -> Iterator[AnswerError]:
    if len(rationale) > MAX_RATIONALE_LENGTH:
        text = "The reasons take at most {max} characters; these have {n}."
        yield refusal("rationale", text, max=MAX_RATIONALE_LENGTH, n=len(rationale))
    if "\0" in rationale or any("\ud800" <= letter <= "\udfff" for letter in rationale):
        yield refusal("rationale", "The reasons must not hold NUL or half of a surrogate pair.")
