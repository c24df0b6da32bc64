"""Answers as plain values: places and order, what is refused, and what counts as the same."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.i18n import template_words
from app.rankings.answers import (
    RankingAnswer,
    Rules,
    body_hash,
    errors_of,
    errors_of_order,
    make_dense,
    order_of,
    places_of,
    tidy,
)

A, B, C, D = (uuid.UUID(int=number) for number in range(1, 5))
STRANGER = uuid.UUID(int=99)
ANY_PLACES = st.dictionaries(st.sampled_from([A, B, C, D]), st.none() | st.integers(-3, 12))


def rules(**changes: Any) -> Rules:
    settings: dict[str, Any] = {
        "letters": {A: "A", B: "B", C: "C"},
        "ties_allowed": True,
        "partial_allowed": False,
        "label_keys": frozenset({"rude"}),
    }
    return Rules(**settings | changes)


def refused(answer: RankingAnswer, **changes: Any) -> list[tuple[str, str]]:
    return [(error.field, error.rule) for error in errors_of(tidy(answer), rules(**changes))]


def test_places_become_cells_best_first() -> None:
    assert order_of({A: 2, B: 1, C: 2, D: None}) == [[B], [A, C]]


def test_cells_become_places() -> None:
    assert places_of([[B], [A, C]]) == {B: 1, A: 2, C: 2}


@given(ANY_PLACES)
def test_order_and_places_say_the_same(places: dict[uuid.UUID, int | None]) -> None:
    placed = {key: place for key, place in make_dense(places).items() if place is not None}
    assert places_of(order_of(places)) == placed


@given(ANY_PLACES)
def test_dense_places_keep_the_order_and_have_no_gap(places: dict[uuid.UUID, int | None]) -> None:
    dense = make_dense(places)
    assert order_of(dense) == order_of(places)
    assert sorted({p for p in dense.values() if p}) == list(range(1, len(order_of(places)) + 1))


def test_a_whole_order_with_a_tie_is_fine() -> None:
    assert refused(RankingAnswer({A: 1, B: 2, C: 2}, {A: 7, B: 1}, {C: ["rude"]}, "B is vague.")) == []


def test_an_answer_without_a_place_is_named_by_its_letter() -> None:
    assert refused(RankingAnswer({A: 1, C: 2})) == [(f"places.{B}", "Answer B has no place yet. Give it one.")]


def test_a_partial_order_is_fine_where_the_project_allows_it() -> None:
    assert refused(RankingAnswer({A: 1, C: 2}), partial_allowed=True) == []


def test_a_partial_order_places_at_least_two() -> None:
    assert refused(RankingAnswer({A: 1}), partial_allowed=True) == [("places", "Place at least 2 answers.")]


def test_a_tie_is_refused_where_the_project_has_none() -> None:
    found = refused(RankingAnswer({A: 1, B: 2, C: 2}), ties_allowed=False)
    rule = "Answer C has the same place as B. This project has no ties: move one of them."
    assert found == [(f"places.{C}", rule)]


@pytest.mark.parametrize("field", ["places", "ratings", "labels"])
def test_an_answer_of_another_task_is_refused(field: str) -> None:
    value: Any = ["rude"] if field == "labels" else 1
    parts: dict[str, Any] = {"places": {A: 1, B: 2, C: 3}, "ratings": {}, "labels": {}}
    parts[field] = parts[field] | {STRANGER: value}
    assert (f"{field}.{STRANGER}", f"{STRANGER} is no answer of this task.") in refused(RankingAnswer(**parts))


@pytest.mark.parametrize(("rating", "is_fine"), [(0, False), (1, True), (7, True), (8, False)])
def test_ratings_go_from_1_to_7(rating: int, is_fine: bool) -> None:
    found = refused(RankingAnswer({A: 1, B: 2, C: 3}, {B: rating}))
    assert found == ([] if is_fine else [(f"ratings.{B}", "The rating of B must be 1 to 7.")])


def test_labels_are_those_of_the_project() -> None:
    found = refused(RankingAnswer({A: 1, B: 2, C: 3}, {}, {A: ["rude", "ugly"]}))
    assert found == [(f"labels.{A}", "This project has no label 'ugly'.")]


@pytest.mark.parametrize("text", ["a\0b", "a\ud800b"])
def test_text_that_no_database_stores_is_refused(text: str) -> None:
    assert [name for name, _ in refused(RankingAnswer({A: 1, B: 2, C: 3}, rationale=text))] == ["rationale"]


@pytest.mark.parametrize(("length", "num_errors"), [(10_000, 0), (10_001, 1)])
def test_reasons_have_a_longest_length(length: int, num_errors: int) -> None:
    assert len(refused(RankingAnswer({A: 1, B: 2, C: 3}, rationale="x" * length))) == num_errors


@pytest.mark.parametrize(
    ("order", "fields"),
    [
        ([[A], [B, C]], []),
        ([[A], [B], [A]], ["order[2][0]"]),
        ([[A], [B, B]], ["order[1][1]"]),
        ([[A], [], [B]], ["order[1]"]),
    ],
)
def test_cells_name_each_answer_once_and_are_not_empty(order: Sequence[Sequence[uuid.UUID]], fields: list[str]) -> None:
    assert [error.field for error in errors_of_order(order)] == fields


def test_the_same_answer_has_the_same_hash_however_it_is_spelled() -> None:
    one = RankingAnswer({A: 1, B: 2, C: None}, {A: 5}, {A: ["x", "y"], B: []}, " why ")
    other = RankingAnswer({B: 9, A: 4}, {A: 5}, {A: ["y", "x", "x"]}, "why")
    assert body_hash(tidy(one)) == body_hash(tidy(other))


@pytest.mark.parametrize(
    "other",
    [
        RankingAnswer({A: 2, B: 1}, {A: 5}, {A: ["x"]}, "why"),
        RankingAnswer({A: 1, B: 1}, {A: 5}, {A: ["x"]}, "why"),
        RankingAnswer({A: 1, B: 2}, {A: 4}, {A: ["x"]}, "why"),
        RankingAnswer({A: 1, B: 2}, {A: 5}, {B: ["x"]}, "why"),
        RankingAnswer({A: 1, B: 2}, {A: 5}, {A: ["x"]}, "so"),
    ],
)
def test_another_answer_has_another_hash(other: RankingAnswer) -> None:
    assert body_hash(tidy(other)) != body_hash(tidy(RankingAnswer({A: 1, B: 2}, {A: 5}, {A: ["x"]}, "why")))


# The questions of a project


RUDE = {"rude": {"en": "Rude", "zh": "粗鲁"}}
ORDERED = {A: 1, B: 2, C: 3}


@pytest.mark.parametrize(
    ("rationale", "minimum", "rule"),
    [
        ("", 0, "Say why you chose this order."),
        ("   ", 1, "Say why you chose this order."),
        ("short", 20, "Say why you chose this order, in at least 20 characters; these are 5."),
        ("回答甲更清楚，也更短", 11, "Say why you chose this order, in at least 11 characters; these are 10."),
    ],
)
def test_reasons_that_are_required_and_missing_are_named(rationale: str, minimum: int, rule: str) -> None:
    asked: dict[str, Any] = {"rationale": "required", "min_rationale": minimum}
    assert refused(RankingAnswer(ORDERED, rationale=rationale), **asked) == [("rationale", rule)]


def test_reasons_of_the_asked_length_are_fine_and_none_are_where_they_are_optional() -> None:
    asked: dict[str, Any] = {"rationale": "required", "min_rationale": 5}
    assert refused(RankingAnswer(ORDERED, rationale="12345"), **asked) == []
    assert refused(RankingAnswer(ORDERED), min_rationale=5) == []


def test_confidence_is_asked_for_where_it_is_required() -> None:
    assert refused(RankingAnswer(ORDERED), confidence="required") == [("confidence", "Say how sure you are.")]
    assert refused(RankingAnswer(ORDERED, confidence=3), confidence="required") == []
    assert refused(RankingAnswer(ORDERED), confidence="optional") == []


@pytest.mark.parametrize("confidence", [0, 4, -1])
def test_a_confidence_that_is_none_is_refused(confidence: int) -> None:
    assert [field for field, _ in refused(RankingAnswer(ORDERED, confidence=confidence))] == ["confidence"]


def test_a_required_label_needs_a_yes_or_a_no_on_every_answer() -> None:
    answer = RankingAnswer(ORDERED, labels={A: ["rude"]}, denied={C: ["rude"]})
    named = [(f"labels.{B}", "Answer B: say yes or no to “Rude”.")]
    assert refused(answer, required_labels=RUDE) == named
    assert refused(RankingAnswer(ORDERED, denied={key: ["rude"] for key in ORDERED}), required_labels=RUDE) == []


def test_a_label_is_named_in_the_readers_language() -> None:
    error = errors_of(tidy(RankingAnswer(ORDERED)), rules(required_labels=RUDE))[0]
    assert "“粗鲁”" in error.in_words(template_words("zh"))


def test_yes_and_no_to_one_label_is_refused() -> None:
    both = RankingAnswer(ORDERED, labels={A: ["rude"]}, denied={A: ["rude"]})
    assert [field for field, _ in refused(both)] == [f"labels.{A}"]


def test_a_denied_label_is_one_of_the_projects_and_of_an_answer_of_the_task() -> None:
    assert [field for field, _ in refused(RankingAnswer(ORDERED, denied={A: ["kind"]}))] == [f"denied.{A}"]
    assert [field for field, _ in refused(RankingAnswer(ORDERED, denied={STRANGER: ["rude"]}))] == [
        f"denied.{STRANGER}"
    ]


@pytest.mark.parametrize(
    ("places", "strength", "is_fine"),
    [
        ((1, 2), 3, True),
        ((2, 1), 1, True),
        ((1, 1), 0, True),
        ((1, 1), 2, False),
        ((1, 2), 0, False),
        ((1, 2), 4, False),
    ],
)
def test_a_strength_fits_the_order_of_two(places: tuple[int, int], strength: int, is_fine: bool) -> None:
    answer = RankingAnswer(dict(zip((A, B), places, strict=True)), strength=strength)
    assert (refused(answer, letters={A: "A", B: "B"}) == []) is is_fine


def test_three_answers_have_no_strength() -> None:
    assert [field for field, _ in refused(RankingAnswer(ORDERED, strength=1))] == ["strength"]


def test_an_answer_without_the_questions_has_the_hash_that_it_had_before_there_were_any() -> None:
    known = "24bda78f"
    assert body_hash(tidy(RankingAnswer({A: 1, B: 2}, rationale="B"))).hex()[:8] == known


@pytest.mark.parametrize(
    "changes", [{"confidence": 1}, {"all_bad": False}, {"strength": 1}, {"denied": {A: ["rude"]}}], ids=str
)
def test_whatever_is_said_counts_in_the_hash(changes: dict[str, Any]) -> None:
    assert body_hash(tidy(RankingAnswer({A: 1, B: 2}, **changes))) != body_hash(tidy(RankingAnswer({A: 1, B: 2})))
