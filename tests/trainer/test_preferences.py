"""Rankings from rows and files: pairs, ties, missing answers, what is refused; accuracy, its interval, and folds."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from trainer.preferences import (
    Answer,
    Ranking,
    agreements,
    annotator_weights,
    liked,
    make_folds,
    pairwise_accuracy,
    read_rankings,
    replayed,
    to_rankings,
)

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def make_row(order: list[list[str]], **changes: Any) -> dict[str, Any]:
    completions = [{"id": name, "text": f"answer {name}", "finish_reason": "stop"} for name in "abcd"]
    return {
        "ranking_id": "r1",
        "prompt_id": "p1",
        "split": "train",
        "messages": [{"role": "user", "content": "Hello"}],
        "completions": completions,
        "order": order,
    } | changes


def make_ranking(order: list[list[str]], **changes: Any) -> Ranking:
    return to_rankings([make_row(order, **changes)])[0]


def test_a_tie_orders_nothing_and_a_missing_answer_is_not_last() -> None:
    # b over {a, c}, d has no place: b>a and b>c are ordered, a=c is tied, and d is in no pair.
    ranking = make_ranking([["b"], ["a", "c"]])
    assert ranking.places == (1, 0, 1, None)
    assert sorted(ranking.ordered_pairs) == [(1, 0), (1, 2)]
    assert ranking.tied_pairs == [(0, 2)]


def test_ties_are_dropped_or_count_one_half_both_ways() -> None:
    ranking = make_ranking([["b"], ["a", "c"]])
    dropped = [[0, 0, 0, 0], [1, 0, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    assert ranking.weights("drop") == dropped
    halved = [[0, 0, 0.5, 0], [1, 0, 1, 0], [0.5, 0, 0, 0], [0, 0, 0, 0]]
    assert ranking.weights("half") == halved
    assert (ranking.num_pairs("drop"), ranking.num_pairs("half")) == (2, 3)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (make_row([["a"], ["x"]]), "Row 1: order: x is none of the completions"),
        (make_row([["a"], ["a"]]), "Row 1: order: a has two places"),
        (make_row([["a"]], split="test"), "Row 1: split: must be train or validation"),
        (make_row([["a"]], messages=[]), "Row 1: messages: must hold at least one turn"),
        (make_row([["a"]], completions=[{"id": "a", "text": 3}]), "Row 1: text: must be a string"),
        ({"prompt_id": "p"}, "Row 1: must have `completions`"),
        ({"completions": [], "prompt_id": "p", "order": []}, "Row 1: the field 'ranking_id' is missing"),
    ],
)
def test_a_bad_row_names_its_number_field_and_rule(row: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        to_rankings([row])


def test_a_malformed_line_names_its_number(tmp_path: Path) -> None:
    file = tmp_path / "rankings.jsonl"
    file.write_text(json.dumps(make_row([["a"], ["b"]])) + "\n{oops\n", encoding="utf-8")
    with pytest.raises(ValueError, match=r"rankings\.jsonl, line 2: not valid JSON"):
        read_rankings(file)


def test_a_merged_order_of_the_interchange_shape() -> None:
    item = {
        "id": "i1",
        "prompt": "Hello",
        "responses": [{"id": "r0", "text": "hi"}, {"id": "r1", "text": "no"}],
        "annotations": [],
        "aggregate": {"kind": "human_rank", "ranking": [["r1"], ["r0"]]},
    }
    (ranking,) = to_rankings([item])
    assert (ranking.ranking_id, ranking.prompt_id, ranking.places) == ("i1", "i1", (1, 0))
    assert ranking.messages == [{"role": "user", "content": "Hello"}]


@pytest.mark.parametrize(
    ("annotation", "places"),
    [
        ({"ranks": {"r0": 2, "r1": 1, "r2": 2}}, [(1, 0, 1)]),
        ({"scores": {"r0": 0.5, "r1": 3, "r2": 9}}, [(2, 1, 0)]),
        ({"pairs": [{"a": "r0", "b": "r2", "pref": "r2"}]}, [(1, None, 0)]),
        ({"pairs": [{"a": "r0", "b": "r2", "pref": "tie"}]}, [(0, None, 0)]),
    ],
)
def test_annotations_of_the_interchange_shape(annotation: dict[str, Any], places: list[tuple[int | None, ...]]) -> None:
    responses = [{"id": f"r{number}", "text": "t"} for number in range(3)]
    item = {"id": "i1", "prompt": "Hello", "responses": responses, "annotations": [{"annotator": "x"} | annotation]}
    assert [ranking.places for ranking in to_rankings([item])] == places


def test_the_liked_answer_of_a_task_is_the_one_preferred_to_most_others() -> None:
    # Alone, the first person would have a, with three; over both, b has 2 + 3 and a 3 + 1.
    rankings = [
        make_ranking([["a"], ["b"], ["c"], ["d"]]),
        make_ranking([["b"], ["c"], ["a"], ["d"]], ranking_id="r2"),
        make_ranking([["c"], ["a", "b"]], ranking_id="r3", prompt_id="p2", messages=[{"role": "user", "content": "2"}]),
    ]
    texts = [[turn["content"] for turn in row["messages"]] for row in liked(rankings)]
    assert texts == [["Hello", "answer b"], ["2", "answer c"]]


def test_the_liked_answers_to_a_prompt_are_those_of_its_newest_policy() -> None:
    def ranked(best: str, policy: str, prompt: str = "Hello") -> Ranking:
        answers = [{"id": f"{policy} {name}", "text": f"{policy} {name}", "version_id": policy} for name in "abcd"]
        order = [[f"{policy} {best}"], [item["id"] for item in answers if item["id"] != f"{policy} {best}"]]
        return make_ranking(order, completions=answers, messages=[{"role": "user", "content": prompt}])

    # Only the first prompt was asked in both rounds: what people liked there in the first is superseded.
    rankings = [ranked("a", "v1"), ranked("b", "v1", "Bye"), ranked("c", "v2"), ranked("c", "v2")]
    assert [row["messages"][-1]["content"] for row in liked(rankings)] == ["v1 b", "v2 c"]
    # Who ranks the first round's answers late makes them no newer.
    late = [ranked("b", "v1", "Bye"), ranked("d", "v2", "Hm"), ranked("d", "v1", "Hm")]
    assert [row["messages"][-1]["content"] for row in liked(late)] == ["v1 b", "v2 d"]
    # A newer policy's answers that teach nothing supersede none.
    untold = replace(ranked("a", "v3", "Bye"), places=(0, 0, 0, 0))
    assert liked([*rankings, untold]) == liked(rankings)


def ranked_by_rounds(num_prompts: int, *rounds: str) -> list[list[Ranking]]:
    """Tasks of the same prompts, answered by one policy after another."""
    tasks = []
    for policy in rounds:
        answers = [{"id": f"{policy} {name}", "text": name, "version_id": policy} for name in "ab"]
        for number in range(num_prompts):
            messages = [{"role": "user", "content": f"prompt {number}"}]
            order = [[item["id"]] for item in answers]
            tasks.append([make_ranking(order, completions=answers, messages=messages)])
    return tasks


def test_of_older_policies_a_share_of_the_prompts_is_read_again() -> None:
    tasks = ranked_by_rounds(12, "v1", "v2", "v3")
    kept = replayed(tasks, 0.25, seed=17)
    assert [sum(index // 12 == number for index in kept) for number in range(3)] == [3, 3, 12]
    assert replayed(tasks, 1.0, seed=17) == list(range(36))
    assert replayed(tasks, 0.0, seed=17) == list(range(24, 36))
    assert replayed(tasks[:12], 0.25, seed=17) == list(range(12)), "where there is one policy, nothing is old"


def test_what_is_read_again_is_drawn_by_seed_and_anew_in_each_round() -> None:
    def drawn(tasks: list[list[Ranking]], seed: int = 17) -> set[str]:
        """The first policy's prompts that are read."""
        kept = [tasks[index][0] for index in replayed(tasks, 0.25, seed=seed)]
        return {ranking.asked for ranking in kept if ranking.answers[0].policy == "v1"}

    two = ranked_by_rounds(40, "v1", "v2")
    assert len(drawn(two)) == 10
    # Whoever reads the rankings in another order draws the same, as long as the policies stand in theirs.
    assert drawn([*two[:40][::-1], *two[40:][::-1]]) == drawn(two)
    assert drawn(two, seed=18) != drawn(two)
    assert drawn(ranked_by_rounds(40, "v1", "v2", "v3")) != drawn(two)


def test_what_is_held_out_cut_empty_or_tied_with_all_is_not_learned_as_liked() -> None:
    cut = [{"id": name, "text": "t", "finish_reason": "length"} for name in "abcd"]
    empty = [{"id": name, "text": " ", "finish_reason": "stop"} for name in "abcd"]
    best_first = [["a"], ["b", "c", "d"]]
    assert liked([make_ranking(best_first)])
    assert not liked([make_ranking(best_first, split="validation")])
    assert not liked([make_ranking(best_first, completions=cut)])
    assert not liked([make_ranking(best_first, completions=empty)])
    assert not liked([make_ranking([["a", "b", "c", "d"]])])


def test_prompts_of_one_conversation_share_a_root() -> None:
    one, other = make_ranking([["a"]]), make_ranking([["a"]], messages=[{"role": "user", "content": "Other"}])
    turns = [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Hi"},
        {"role": "user", "content": "Why?"},
    ]
    assert make_ranking([["a"]], messages=turns).root == one.root != other.root


def test_accuracy_by_hand() -> None:
    # b > a > c by people. Scores put b over a (right), b over c (right) and a equal to c (one half): 2.5 of 3.
    found = pairwise_accuracy([make_ranking([["b"], ["a"], ["c"]])], [[0.0, 2.0, 0.0, 9.0]])
    assert found is not None
    assert found.value == pytest.approx(2.5 / 3)
    assert (found.num_pairs, found.num_prompts) == (3, 1)


def test_accuracy_of_nothing_is_none() -> None:
    assert pairwise_accuracy([make_ranking([["a", "b"]])], [[0.0, 1.0, 2.0, 3.0]]) is None


def test_the_interval_resamples_prompts_and_not_pairs() -> None:
    # 50 prompts, each all right or all wrong in its 6 pairs: there are 50 facts here, not 300. The binomial interval of
    # 50 draws at one half is +-0.139; that of 300 would be +-0.057.
    rankings = [make_ranking([["a"], ["b"], ["c"], ["d"]], prompt_id=f"p{number}") for number in range(50)]
    scores = [[3.0, 2.0, 1.0, 0.0] if number % 2 else [0.0, 1.0, 2.0, 3.0] for number in range(50)]
    found = pairwise_accuracy(rankings, scores)
    assert found is not None
    assert found.value == 0.5
    assert found.high - found.low == pytest.approx(2 * 1.96 * np.sqrt(0.25 / 50), abs=0.04)


def test_folds_hold_every_ranking_once_and_part_no_conversation() -> None:
    rankings = [
        make_ranking(
            [["a"], ["b"]], prompt_id=f"p{number}", messages=[{"role": "user", "content": f"topic {number % 7}"}]
        )
        for number in range(30)
    ]
    folds = make_folds(rankings, 5)
    assert sorted(index for fold in folds for index in fold) == list(range(30))
    roots = [{rankings[index].root for index in fold} for fold in folds]
    assert sum(len(names) for names in roots) == len(set.union(*roots)) == 7


def test_more_folds_than_conversations_are_refused() -> None:
    with pytest.raises(ValueError, match="folds: must be between 2 and 1"):
        make_folds([make_ranking([["a"], ["b"]])], 5)


@pytest.mark.skipif(not SHARED.is_dir(), reason="the shared data is not here")
def test_real_rankings_are_read() -> None:
    rankings = read_rankings(SHARED / "rank_oasst_en.jsonl")
    assert len(rankings) == 212
    assert sum(len(ranking.ordered_pairs) for ranking in rankings) == 754
    assert len({ranking.root for ranking in rankings}) == 100


# --- Agreement of people with each other ---


def say(prompt: str, annotator: str | None, order: str, k: int = 4) -> Ranking:
    """`order` lists answers from the best, ties by a slash-free pair such as "a=b"."""
    cells = [cell.split("=") for cell in order.split()]
    answers = tuple(Answer(name, name) for name in "abcd"[:k])
    places = tuple(next((n for n, cell in enumerate(cells) if answer.id in cell), None) for answer in answers)
    messages = [{"role": "user", "content": prompt}]
    return Ranking(f"{prompt}-{annotator}", prompt, messages, answers, places, annotator=annotator)


def test_agreements_are_of_pairs_that_two_people_put_in_order() -> None:
    rankings = [say("p", "ann", "a b c"), say("p", "bob", "b a c=d"), say("p", None, "a b c d"), say("q", "cy", "a b")]
    # ann: ab, ac, bc; bob: ba, bc, bd, ac, ad. Both: ab (not the same), ac, bc.
    assert sorted(same for _, _, same in agreements(rankings)) == [False, True, True]


def test_one_persons_two_rankings_are_no_agreement() -> None:
    assert list(agreements([say("p", "ann", "a b"), say("p", "ann", "a b")])) == []


def test_reliability_by_hand() -> None:
    rankings = [say(f"p{n}", who, "a b" if who != "cy" else "b a") for n in range(10) for who in ("ann", "bob", "cy")]
    rankings += [say(f"q{n}", who, "a b") for n in range(30) for who in ("ann", "bob")]
    # Of 10 + 30 comparisons ann and bob agree in all; each of them disagrees with cy in 10; cy agrees in 0 of 20.
    # mean = 80 / 120 = 2/3; ann: (40 + 20/3) / 60 = 7/9, so (5/9) / (1/3) = 5/3; cy: (20/3) / 30, under one half: 0.
    weights = annotator_weights(rankings)
    assert weights == pytest.approx({"ann": 5 / 3, "bob": 5 / 3, "cy": 0.0})


def test_people_who_agree_no_better_than_by_chance_all_count_the_same() -> None:
    rankings = [say("p", "ann", "a b"), say("p", "bob", "b a")]
    assert annotator_weights(rankings) == {"ann": 1.0, "bob": 1.0}
    assert annotator_weights([say("p", "ann", "a b")]) == {}


def test_rows_and_annotations_name_their_annotator() -> None:
    row = {"id": "x", "prompt": "p", "responses": [{"id": "a", "text": "1"}, {"id": "b", "text": "2"}]}
    noted = [{"annotator": "ann", "pairs": [{"a": "a", "b": "b", "pref": "a"}]}, {"ranks": {"a": 2, "b": 1}}]
    assert [ranking.annotator for ranking in to_rankings([row | {"annotations": noted}])] == ["ann", None]
    merged = row | {"aggregate": {"ranking": [["a"], ["b"]]}, "annotations": noted}
    assert [ranking.annotator for ranking in to_rankings([merged])] == [None]
