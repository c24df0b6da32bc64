"""Rows in other words, worked by hand: which pairs, which ties, which labels."""

from __future__ import annotations

from typing import Any

import pytest

from app.formats.preferences import demonstrations, groups, pairs, unpaired
from app.formats.rows import Options, RankedRow

# a and b are best, then c, then d; e was not placed.
ROW = {
    "ranking_id": "r",
    "prompt_id": "p",
    "split": "train",
    "language": "en",
    "annotator": "ann",
    "messages": [{"role": "user", "content": "?"}],
    "completions": [{"id": key, "text": key.upper()} for key in "abcde"],
    "order": [["a", "b"], ["c"], ["d"]],
    "ratings": {"a": 7, "c": 4},
}


def ranked(**options: Any) -> RankedRow:
    return RankedRow(ROW, Options(style="standard", **options))


def said(**options: Any) -> list[str]:
    return [record["chosen"] + record["rejected"] for record in pairs(ranked(**options))]


@pytest.mark.parametrize(
    ("which", "ties", "expected"),
    [
        ("all", "drop", "AC BC AD BD CD"),
        ("adjacent", "drop", "AC BC CD"),
        ("best", "drop", "AC BC AD BD"),
        ("all", "both", "AC BC AD BD CD AB BA"),
        ("best", "keep", "AC BC AD BD AB"),
    ],
)
def test_the_pairs_asked_for(which: str, ties: str, expected: str) -> None:
    assert said(pairs=which, ties=ties) == expected.split()


def test_a_margin_is_the_distance_of_the_places_or_of_the_ratings() -> None:
    assert [record["margin"] for record in pairs(ranked(margin="places"))] == [1, 1, 2, 2, 1]
    assert [record["margin"] for record in pairs(ranked(margin="ratings"))] == [3, None, None, None, None]
    two = RankedRow(ROW | {"order": [["b"], ["a"]], "strength": 3}, Options(margin="strength"))
    assert [record["margin"] for record in pairs(two)] == [3]
    assert [record["margin"] for record in pairs(ranked(margin="places", ties="both"))][-2:] == [0, 0]


def test_a_tie_that_is_kept_is_marked() -> None:
    assert [record["tie"] for record in pairs(ranked(ties="keep"))] == [False] * 5 + [True]


def test_ids_name_the_ranking_and_its_pairs_weigh_one_together() -> None:
    records = list(pairs(ranked(ids=True)))
    assert {record["annotator"] for record in records} == {"ann"}
    assert sum(record["weight"] for record in records) == pytest.approx(1)


def test_a_group_has_a_rank_for_each_answer_and_none_for_one_nobody_placed() -> None:
    (record,) = groups(ranked())
    assert record == {"prompt": "?", "completions": ["A", "B", "C", "D", "E"], "ranks": [1, 1, 2, 3, None]}


def test_the_upper_half_is_good_and_the_lower_half_bad() -> None:
    # Two are below a and b and none above; of c, two are above and one below; d is last.
    labels = {record["completion"]: record["label"] for record in unpaired(ranked())}
    assert labels == {"A": True, "B": True, "C": False, "D": False}
    three = ROW | {"order": [["a"], ["b"], ["c"]]}
    assert [record["label"] for record in unpaired(RankedRow(three, Options()))] == [True, False]


def test_the_best_answers_are_demonstrations_unless_all_are_tied() -> None:
    assert [record["messages"][-1]["content"] for record in demonstrations(ranked())] == ["A", "B"]
    assert not list(demonstrations(RankedRow(ROW | {"order": [["a", "b", "c"]]}, Options())))
