"""What an annotator answered, as plain values: its two forms (places, order), its checks, its hash. No database."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.errors import FieldError, refusal
from app.projects.models import Asked

MAX_RATIONALE_LENGTH = 10_000
MIN_RATING, MAX_RATING = 1, 7
MIN_CONFIDENCE, MAX_CONFIDENCE = 1, 3
MAX_STRENGTH = 3
MIN_PLACED = 2

Order = list[list[uuid.UUID]]


@dataclass(frozen=True)
class RankingAnswer:
    """Places (1 is best, equal is tied, None is left out), ratings and labels by completion, and the reasons."""

    places: Mapping[uuid.UUID, int | None]
    ratings: Mapping[uuid.UUID, int] = field(default_factory=dict)
    labels: Mapping[uuid.UUID, Sequence[str]] = field(default_factory=dict)
    rationale: str = ""
    # Required labels that the annotator denied: a no that was said, where an absent label says nothing.
    denied: Mapping[uuid.UUID, Sequence[str]] = field(default_factory=dict)
    # 1 unsure, 2 fairly sure, 3 sure; None: not said.
    confidence: int | None = None
    # Whether every answer is bad; None: not asked.
    all_bad: bool | None = None
    # Of two answers, how much better the better one is: 0 about the same, 1 slightly, 2 better, 3 much; None: not said.
    strength: int | None = None


@dataclass(frozen=True)
class Rules:
    """What a task asks for: its completions with the letters that the annotator saw, and the project's settings."""

    letters: Mapping[uuid.UUID, str]
    ties_allowed: bool
    partial_allowed: bool
    label_keys: frozenset[str]
    # Labels that need a yes or a no on every answer, with their names by language.
    required_labels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    rationale: str = Asked.OPTIONAL
    min_rationale: int = 0
    confidence: str = Asked.OFF


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


def errors_of_order(order: Sequence[Sequence[uuid.UUID]]) -> list[FieldError]:
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


def preference_of(answer: RankingAnswer, shown: Sequence[uuid.UUID]) -> int | None:
    """Of two answers, -3 (the first shown is much better) to 3 (the second); None: not chosen yet."""
    if answer.strength is None or len(shown) != MIN_PLACED:
        return None
    first, second = (answer.places.get(completion_id) or 0 for completion_id in shown)
    return answer.strength if second < first else -answer.strength


def tidy(answer: RankingAnswer) -> RankingAnswer:
    """The one way to write down an answer: dense places, sorted labels, no space around the rationale."""
    return RankingAnswer(
        places=make_dense(answer.places),
        ratings=dict(answer.ratings),
        labels=tidy_keys(answer.labels),
        rationale=answer.rationale.strip(),
        denied=tidy_keys(answer.denied),
        confidence=answer.confidence,
        all_bad=answer.all_bad,
        strength=answer.strength,
    )


def tidy_keys(labels: Mapping[uuid.UUID, Sequence[str]]) -> dict[uuid.UUID, list[str]]:
    """Keys sorted, each once; answers without any left out."""
    return {completion_id: sorted(set(keys)) for completion_id, keys in labels.items() if keys}


def body_hash(answer: RankingAnswer) -> bytes:
    """SHA-256 of a tidy answer as canonical JSON: the same answer again has the same hash, whatever its spelling."""
    body = {
        "places": {str(key): place for key, place in answer.places.items() if place is not None},
        "ratings": {str(key): rating for key, rating in answer.ratings.items()},
        "labels": {str(key): list(keys) for key, keys in answer.labels.items()},
        "rationale": answer.rationale,
    }
    # What a project doesn't ask is no part of the hash: answers from before a question was added keep theirs.
    denied = {str(key): list(keys) for key, keys in answer.denied.items()}
    later = {"confidence": answer.confidence, "all_bad": answer.all_bad, "strength": answer.strength}
    body |= {name: value for name, value in later.items() if value is not None} | ({"denied": denied} if denied else {})
    return hashlib.sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).digest()


# The checks


def errors_of(answer: RankingAnswer, rules: Rules) -> list[FieldError]:
    """Everything that keeps a tidy answer from being taken; empty: it is fine."""
    return [
        *_strangers(answer, rules),
        *_missing_places(answer, rules),
        *_forbidden_ties(answer, rules),
        *_wrong_ratings(answer, rules),
        *_wrong_labels(answer, rules),
        *_unanswered_labels(answer, rules),
        *_wrong_rationale(answer.rationale),
        *_missing_rationale(answer.rationale, rules),
        *_wrong_confidence(answer, rules),
        *_wrong_strength(answer, rules),
    ]


def _strangers(answer: RankingAnswer, rules: Rules) -> Iterator[FieldError]:
    groups: dict[str, Mapping[uuid.UUID, Any]] = {
        "places": answer.places,
        "ratings": answer.ratings,
        "labels": answer.labels,
        "denied": answer.denied,
    }
    for name, group in groups.items():
        for completion_id in group:
            if completion_id not in rules.letters:
                yield refusal(f"{name}.{completion_id}", "{id} is no answer of this task.", id=completion_id)


def _missing_places(answer: RankingAnswer, rules: Rules) -> Iterator[FieldError]:
    missing = [completion_id for completion_id in rules.letters if answer.places.get(completion_id) is None]
    num_placed = len(rules.letters) - len(missing)
    if rules.partial_allowed:
        if num_placed < MIN_PLACED:
            yield refusal("places", "Place at least {n} answers.", n=MIN_PLACED)
        return
    for completion_id in missing:
        letter = rules.letters[completion_id]
        yield refusal(f"places.{completion_id}", "Answer {letter} has no place yet. Give it one.", letter=letter)


def _forbidden_ties(answer: RankingAnswer, rules: Rules) -> Iterator[FieldError]:
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


def _wrong_ratings(answer: RankingAnswer, rules: Rules) -> Iterator[FieldError]:
    for completion_id, rating in answer.ratings.items():
        if not MIN_RATING <= rating <= MAX_RATING:
            text = "The rating of {letter} must be {low} to {high}."
            letter = rules.letters.get(completion_id, str(completion_id))
            yield refusal(f"ratings.{completion_id}", text, letter=letter, low=MIN_RATING, high=MAX_RATING)


def _wrong_labels(answer: RankingAnswer, rules: Rules) -> Iterator[FieldError]:
    for name, group in (("labels", answer.labels), ("denied", answer.denied)):
        for completion_id, keys in group.items():
            unknown = sorted(set(keys) - rules.label_keys)
            if unknown:
                text = "This project has no label {keys}."
                yield refusal(f"{name}.{completion_id}", text, keys=", ".join(repr(key)[:60] for key in unknown[:5]))


def _unanswered_labels(answer: RankingAnswer, rules: Rules) -> Iterator[FieldError]:
    for completion_id, letter in rules.letters.items():
        said, denied = set(answer.labels.get(completion_id, ())), set(answer.denied.get(completion_id, ()))
        for key, label in rules.required_labels.items():
            if key not in said | denied:
                text = "Answer {letter}: say yes or no to “{label}”."
                yield refusal(f"labels.{completion_id}", text, letter=letter, label=label)
        for key in sorted(said & denied):
            text = "Answer {letter} has yes and no for the label {key}. Choose one."
            yield refusal(f"labels.{completion_id}", text, letter=letter, key=key)


def _wrong_rationale(rationale: str) -> Iterator[FieldError]:
    if len(rationale) > MAX_RATIONALE_LENGTH:
        text = "The reasons take at most {max} characters; these have {n}."
        yield refusal("rationale", text, max=MAX_RATIONALE_LENGTH, n=len(rationale))
    if "\0" in rationale or any("\ud800" <= letter <= "\udfff" for letter in rationale):
        yield refusal("rationale", "The reasons must not hold NUL or half of a surrogate pair.")


def _missing_rationale(rationale: str, rules: Rules) -> Iterator[FieldError]:
    if rules.rationale != Asked.REQUIRED or len(rationale) >= max(1, rules.min_rationale):
        return
    if rules.min_rationale <= 1:
        yield refusal("rationale", "Say why you chose this order.")
        return
    text = "Say why you chose this order, in at least {min} characters; these are {n}."
    yield refusal("rationale", text, min=rules.min_rationale, n=len(rationale))


def _wrong_confidence(answer: RankingAnswer, rules: Rules) -> Iterator[FieldError]:
    if answer.confidence is None:
        if rules.confidence == Asked.REQUIRED:
            yield refusal("confidence", "Say how sure you are.")
    elif not MIN_CONFIDENCE <= answer.confidence <= MAX_CONFIDENCE:
        text = "How sure you are is a number from {low} to {high}."
        yield refusal("confidence", text, low=MIN_CONFIDENCE, high=MAX_CONFIDENCE)


def _wrong_strength(answer: RankingAnswer, rules: Rules) -> Iterator[FieldError]:
    if answer.strength is None:
        return
    if len(rules.letters) != MIN_PLACED:
        yield refusal("strength", "Only a comparison of two answers has a strength.")
    elif not 0 <= answer.strength <= MAX_STRENGTH:
        yield refusal("strength", "The strength is a number from 0 to {high}.", high=MAX_STRENGTH)
    elif (answer.strength == 0) != (len(order_of(answer.places)) == 1):
        yield refusal("strength", "The strength is 0 where the answers are tied, and only there.")
