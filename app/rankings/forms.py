"""How the fields of the ranking page become an answer. What can't be read is named; nothing else is checked here."""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from app.errors import FieldError, refusal
from app.rankings.answers import MAX_CONFIDENCE, MAX_RATING, MAX_STRENGTH, RankingAnswer

BETTER, WORSE = 1, 2


@dataclass
class FormAnswer:
    """What a form held: the answer, and the fields that can't be read."""

    answer: RankingAnswer
    errors: list[FieldError] = field(default_factory=list)


@dataclass
class Reader:
    """Reads one field after the other. `shown`: the completions in the order of display."""

    shown: Sequence[uuid.UUID]
    places: dict[uuid.UUID, int | None] = field(default_factory=dict)
    ratings: dict[uuid.UUID, int] = field(default_factory=dict)
    labels: dict[uuid.UUID, list[str]] = field(default_factory=dict)
    denied: dict[uuid.UUID, list[str]] = field(default_factory=dict)
    whole: dict[str, Any] = field(default_factory=dict)
    errors: list[FieldError] = field(default_factory=list)

    def take(self, name: str, value: str) -> None:
        """One field; those that are not ours are passed over."""
        kind, _, key = name.partition("_")
        if name in {"rationale", "confidence", "all_bad", "preference"}:
            getattr(self, f"take_{name}")(value)
        elif kind in {"place", "rating", "flag", "said"}:
            self.take_of_answer(name, kind, key, value)

    def take_rationale(self, value: str) -> None:
        """The reasons, with the line ends of all systems but one."""
        self.whole["rationale"] = value.replace("\r\n", "\n")

    def take_confidence(self, value: str) -> None:
        """How sure; empty: not said."""
        self.whole["confidence"] = read_number(value, MAX_CONFIDENCE)
        if value and self.whole["confidence"] is None:
            self.errors.append(
                refusal("confidence", "How sure you are is a number from {low} to {high}.", low=1, high=3)
            )

    def take_all_bad(self, value: str) -> None:
        """A hidden empty field goes before the box: that it was asked at all."""
        self.whole["all_bad"] = value == "true"

    def take_preference(self, value: str) -> None:
        """Of two answers, -3 (the first much better) to 3 (the second): an order, and its strength."""
        sign, digits = (-1, value[1:]) if value.startswith("-") else (1, value)
        strength = 0 if digits == "0" else read_number(digits, MAX_STRENGTH)
        if strength is None or len(self.shown) != 2:
            if value:
                self.errors.append(refusal("preference", "Choose one of the steps between the two answers."))
            return
        first, second = self.shown
        self.whole["strength"] = strength
        self.places |= {first: BETTER, second: BETTER}
        if strength:
            self.places[first if sign > 0 else second] = WORSE

    def take_of_answer(self, name: str, kind: str, key: str, value: str) -> None:
        """A field of one answer: `place_<id>`, `rating_<id>`, `flag_<id>` (repeated), `said_<id>_<label>`."""
        text, _, label = key.partition("_")
        completion_id = read_id(text)
        if completion_id is None:
            self.errors.append(refusal(name[:60], "This field names no answer."))
        elif kind == "flag":
            self.labels.setdefault(completion_id, []).append(value)
        elif kind == "said":
            if value in {"yes", "no"}:
                (self.labels if value == "yes" else self.denied).setdefault(completion_id, []).append(label)
        elif kind == "place":
            self.take_place(completion_id, value)
        else:
            self.take_rating(completion_id, value)

    def take_place(self, completion_id: uuid.UUID, value: str) -> None:
        """A place; empty: none yet."""
        worst = len(self.shown)
        self.places[completion_id] = read_number(value, worst)
        if value and self.places[completion_id] is None:
            self.errors.append(refusal(f"places.{completion_id}", "A place is a number from 1 to {n}.", n=worst))

    def take_rating(self, completion_id: uuid.UUID, value: str) -> None:
        """A rating; empty: none."""
        rating = read_number(value, MAX_RATING)
        if rating is not None:
            self.ratings[completion_id] = rating
        elif value:
            self.errors.append(refusal(f"ratings.{completion_id}", "A rating is a number from 1 to {n}.", n=MAX_RATING))


def read_form(fields: Iterable[tuple[str, str]], shown: Sequence[uuid.UUID]) -> FormAnswer:
    """The answer in a form's fields. A field that can't be read is named in `errors` and left out."""
    reader = Reader(shown)
    for name, value in fields:
        reader.take(name, value)
    answer = RankingAnswer(
        places=reader.places, ratings=reader.ratings, labels=reader.labels, denied=reader.denied, **reader.whole
    )
    return FormAnswer(answer, reader.errors)


def read_id(text: str) -> uuid.UUID | None:
    """A completion's id, if it is one."""
    try:
        return uuid.UUID(text)
    except ValueError:
        return None


def read_number(text: str, highest: int) -> int | None:
    """A whole number from 1 to `highest`, if it is one."""
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 4 else 0
    return number if 1 <= number <= highest else None
