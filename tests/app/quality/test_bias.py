"""The bias report: it finds what was planted, says nothing where nothing was, and exports what it shows."""

from __future__ import annotations

import csv
import io
import math
import random

import numpy as np
import pytest

from app.quality import bias
from app.quality.orders import Judgement
from benchmarks.position_bias import num_reported, planted


def test_a_planted_position_bias_is_reported() -> None:
    assert num_reported(0.30) >= 190


def test_none_planted_is_hardly_ever_reported() -> None:
    assert num_reported(0.25) <= 19


def test_a_bias_against_the_first_card_is_one_too() -> None:
    test = bias.position_test(*planted(1, 0.15))
    assert test is not None
    assert test.is_biased
    assert test.z < 0


def test_the_position_test_by_hand() -> None:
    """Two of three with two answers: the first card wins both, a tie says nothing. z = 1 / sqrt(1/4 + 1/4)."""
    top = np.array([[1, 0], [0, 1], [0.5, 0.5]])
    test = bias.position_test(top, np.array([[0, 1], [1, 0], [0, 1.0]]))
    assert test is not None
    assert test.rate == pytest.approx(2.5 / 3)
    assert test.expected == 0.5
    assert test.z == pytest.approx(math.sqrt(2))
    assert test.p == pytest.approx(0.1573, abs=1e-4)


def test_without_the_order_shown_there_is_no_test() -> None:
    report = bias.report_of([Judgement("t", "t", "x", [1, 2])])
    assert (report.position, report.by_seat, report.longer, report.by_version) == (None, [], None, [])
    assert bias.report_of([]).num_rankings == 0


def rankings(seed: int = 1) -> list[Judgement]:
    """Length 2:1 wins three times in four, version b wins always over a; sizes differ."""
    rng = random.Random(seed)
    found = []
    for task in range(400):
        k = 2 if task % 2 else 3
        versions = ["a", "b", None][:k]
        places = [2, 1, 3][:k]
        longer = 1 if rng.random() < 0.75 else 2
        lengths = [100 if place == longer else 50 for place in places]
        seats = rng.sample(range(k), k)
        found.append(Judgement(task, task, f"=p{task % 3}", places, seats, lengths[:k], versions))
    return found


def test_rates_by_version_length_seat_and_person() -> None:
    report = bias.report_of(rankings(), {"b": "policy v2"})
    assert [(lean.group, round(lean.rate.value, 2)) for lean in report.by_version] == [
        ("policy v2", 1.0), ("a", 0.33),
    ]  # fmt: skip
    assert [lean.group for lean in report.by_seat] == ["1", "2", "3"]
    assert report.by_seat[0].expected == pytest.approx((1 / 2 + 1 / 3) / 2)
    assert report.by_seat[2].expected == pytest.approx(1 / 3)
    assert report.by_seat[2].rate.num == 200
    assert len(report.by_annotator) == 3


def test_the_longer_answer() -> None:
    """Of two: it wins 0.75 of the time. Of three: longest first wins 2 of 2, longest second 1 of 2."""
    two = [ranking for ranking in rankings() if len(ranking.places) == 2]
    longer = bias.report_of(two).longer
    assert longer is not None
    assert longer.rate.low < 0.75 < longer.rate.high
    wins = sum(ranking.lengths[1] == 100 for ranking in two)
    assert longer.rate.value == pytest.approx(wins / len(two))
    assert [lean.group for lean in bias.report_of(two).by_length] == ["2.00–2.00×"]


def test_a_tie_is_half_a_win_and_what_was_left_out_is_none() -> None:
    rows = [Judgement(0, 0, "x", [1, 1, None], lengths=[5, 9, 20], versions=["a", "b", "c"])]
    report = bias.report_of(rows)
    assert report.longer is not None
    assert (report.longer.rate.value, report.longer.rate.num) == (0.5, 1)
    assert {lean.group: lean.rate.value for lean in report.by_version} == {"a": 0.5, "b": 0.5}


def test_the_csv_holds_every_rate_and_no_formula() -> None:
    report = bias.report_of(rankings())
    rows = list(csv.DictReader(io.StringIO(bias.as_csv(report))))
    assert len(rows) == len(bias.rows_of(report)) == 3 + 1 + 1 + 2 + 3
    assert {row["group"] for row in rows if row["by"] == "annotator"} == {"'=p0", "'=p1", "'=p2"}
    assert float(rows[0]["value"]) == pytest.approx(report.by_seat[0].rate.value)
