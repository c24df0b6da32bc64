"""Whether help leads: rankings with it beside those without, counted by hand."""

from __future__ import annotations

import pytest

from app.quality.bias import report_of, rows_of
from app.quality.detectors import read
from app.quality.helped import sides_of
from app.quality.orders import Judgement


def judgement(task: int, person: str, places: list[int], *, is_assisted: bool, seconds: float) -> Judgement:
    """Of three answers of which the model takes the first for the best, then the second."""
    seats = [] if is_assisted else [2, 1, 0]
    return Judgement(
        task, task, person, places, seats=seats, judged=[0, 1, 2], is_assisted=is_assisted, seconds=seconds
    )


ROWS = [
    # With help: both as the model has it, but for one pair of the second.
    judgement(1, "a", [1, 2, 3], is_assisted=True, seconds=30),
    judgement(1, "b", [2, 1, 3], is_assisted=True, seconds=90),
    # Without: as the model has it, and quite the other way round, where the first card wins.
    judgement(2, "a", [1, 2, 3], is_assisted=False, seconds=120),
    judgement(2, "b", [3, 2, 1], is_assisted=False, seconds=240),
]


def test_both_sides_are_counted_apart() -> None:
    without, assisted = sides_of(ROWS)
    assert (without.is_assisted, without.num_rankings, assisted.num_rankings) == (False, 2, 2)
    assert [side.as_judged and side.as_judged.value for side in (without, assisted)] == [3 / 6, pytest.approx(5 / 6)]
    assert [side.first_card and side.first_card.value for side in (without, assisted)] == [0.5, 0.5]
    assert [side.agreement and side.agreement.value for side in (without, assisted)] == [0.0, pytest.approx(2 / 3)]
    assert [side.minutes and side.minutes.value for side in (without, assisted)] == [3.0, 1.0]


def test_ties_and_answers_without_a_place_are_in_no_order() -> None:
    rows = [Judgement(3, 3, "a", [1, 1, None], judged=[0, 1, 2], is_assisted=True), *ROWS]
    assert sides_of(rows)[1].as_judged == sides_of(ROWS)[1].as_judged


def test_a_project_without_help_has_nothing_to_compare() -> None:
    assert sides_of(ROWS[2:]) == []
    assert sides_of([]) == []


def test_who_follows_a_model_s_order_is_not_taken_for_somebody_who_prefers_the_first_card() -> None:
    """The seats of a card that a model put first say nothing of the annotator: no detector sees them."""
    first = read(ROWS).first_N
    assert [value != value for value in first] == [True, True, False, False]


def test_the_download_has_both_sides() -> None:
    rows = [row for row in rows_of(report_of(ROWS)) if row["group"] in {"assisted", "unassisted"}]
    assert [(row["by"], row["group"]) for row in rows][:2] == [
        ("first_card", "unassisted"),
        ("as_judged", "unassisted"),
    ]
    assert len(rows) == 8
