"""What is said of a reward model, by hand: every figure on rankings small enough to count."""

import json
import math
from typing import Any

import pytest

from trainer.preferences import Answer, Ranking
from trainer.reward_report import make_report


def say(prompt: str, annotator: str, order: str, policies: dict[str, str] | None = None) -> Ranking:
    """`order` names the answers from the best to the worst."""
    answers = tuple(Answer(name, name, policy=(policies or {}).get(name)) for name in sorted(order))
    places = tuple(order.index(answer.id) for answer in answers)
    return Ranking(
        f"{prompt}-{annotator}", prompt, [{"role": "user", "content": prompt}], answers, places, annotator=annotator
    )


def report(
    rankings: list[Ranking], scores: list[list[float]], lengths: list[list[int]] | None = None
) -> dict[str, Any]:
    lengths = lengths or [[1] * len(score) for score in scores]
    found: dict[str, Any] = json.loads(json.dumps(make_report(rankings, scores, lengths, people=rankings)))
    return found


def test_accuracy_by_how_many_people_agree() -> None:
    # On p, three say a before b and the model agrees; on q, two against one, and it is with the one; on r, a draw.
    rankings = [say("p", who, "ab") for who in ("ann", "bob", "cy")]
    rankings += [say("q", "ann", "ab"), say("q", "bob", "ab"), say("q", "cy", "ba")]
    rankings += [say("r", "ann", "ab"), say("r", "bob", "ba")]
    found = report(rankings, [[1.0, 0.0]] * 3 + [[0.0, 1.0]] * 3 + [[0.0, 1.0]] * 2)
    by = {(row["agreeing"], row["of"]): (row["value"], row["num_pairs"]) for row in found["by_agreement"]}
    assert by == {(3, 3): (1.0, 1), (2, 3): (0.0, 1)}
    # p: 3 of 3 pairs of people agree; q: 1 of 3; r: 0 of 1.
    assert found["people"]["agreement"]["value"] == pytest.approx(4 / 7)
    assert found["people"]["agreement"]["num_prompts"] == 3
    assert found["people"]["num_annotators"] == 3
    # One pair a ranking: 3 of 3, 1 of 3, 1 of 2.
    assert found["accuracy"]["value"] == pytest.approx(5 / 8)


def test_accuracy_by_margin_and_by_length() -> None:
    rankings = [say(f"p{n}", "ann", "ab") for n in range(8)]
    gaps = [0.1, -0.2, 0.3, -0.4, 2.0, 3.0, 4.0, 5.0]
    longer = [-4, -3, -2, -1, 1, 2, 3, 4]
    found = report(rankings, [[gap, 0.0] for gap in gaps], [[5 + more, 5] for more in longer])
    assert [(row["from"], row["to"], row["value"]) for row in found["by_margin"]] == [
        (0.1, 0.2, 0.5),
        (0.3, 0.4, 0.5),
        (2.0, 3.0, 1.0),
        (4.0, 5.0, 1.0),
    ]
    assert [(row["from"], row["to"], row["value"]) for row in found["by_length_difference"]] == [
        (-4, -3, 0.5),
        (-2, -1, 0.5),
        (1, 2, 1.0),
        (3, 4, 1.0),
    ]
    assert found["length"]["longer_is_better"]["value"] == 0.5


def test_accuracy_by_the_doubt_of_an_ensemble() -> None:
    # Two heads: on p they agree about the gap (2), on q they don't (4 and -2, a deviation of 3).
    rankings, scores = [say("p", "ann", "ab"), say("q", "ann", "ba")], [[2.0, 0.0], [1.0, 0.0]]
    members = [[[2.0, 3.0], [0.0, 1.0]], [[4.0, -2.0], [0.0, 0.0]]]
    found = make_report(rankings, scores, [[1, 1]] * 2, people=[], members=members)["by_doubt"]
    assert [(row["from"], row["to"], row["value"]) for row in found] == [(0.0, 0.0, 1.0), (3.0, 3.0, 0.0)]


def test_accuracy_by_who_wrote_the_answers() -> None:
    names = {"a": "v1", "b": "v2", "c": "v1"}
    found = report([say("p", "ann", "abc", names), say("q", "ann", "ab")], [[3.0, 1.0, 2.0], [0.0, 1.0]])
    by = {tuple(row["policies"]): (row["value"], row["num_pairs"]) for row in found["by_policies"]}
    # a over b is right, b over c is not; a over c is right. Of q nobody knows who wrote it.
    assert by == {("v1", "v2"): (0.5, 2), ("v1", "v1"): (1.0, 1)}


def test_calibration_error_by_hand() -> None:
    # Four pairs at a gap of log 3 (confidence 3/4), of which two are right; four at log 9 (9/10), all right.
    rankings = [say(f"p{n}", "ann", "ab") for n in range(8)]
    gaps = [math.log(3), math.log(3), -math.log(3), -math.log(3), *[math.log(9)] * 4]
    found = report(rankings, [[gap, 0.0] for gap in gaps])["calibration"]
    assert [(row["num_pairs"], row["observed"]) for row in found["bins"]] == [(4, 0.5), (4, 1.0)]
    assert [row["predicted"] for row in found["bins"]] == pytest.approx([0.75, 0.9])
    assert found["error"] == pytest.approx((0.25 + 0.1) / 2)


def test_correlation_with_length() -> None:
    rankings = [say("p", "ann", "abc")]
    assert report(rankings, [[1.0, 2.0, 3.0]], [[2, 4, 6]])["length"]["correlation"] == pytest.approx(1.0)
    assert report(rankings, [[1.0, 2.0, 3.0]], [[4, 4, 4]])["length"]["correlation"] is None


def test_equal_scores_are_half_right_and_ties_are_left_out() -> None:
    tied = Ranking("t", "t", [{"role": "user", "content": "t"}], (Answer("a", ""), Answer("b", "")), (0, 0))
    found = report([say("p", "ann", "ab"), tied], [[1.0, 1.0], [5.0, 0.0]])
    assert (found["accuracy"]["value"], found["accuracy"]["num_pairs"]) == (0.5, 1)


def test_without_held_out_rankings_only_people_are_told() -> None:
    found = make_report([], [], [], people=[say("p", "ann", "ab"), say("p", "bob", "ab")])
    assert (found["accuracy"], found["calibration"], found["by_margin"]) == (None, None, [])
    assert found["people"]["agreement"]["value"] == 1.0
