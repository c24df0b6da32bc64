"""The consensus of several orders: who is not reliable counts for less, and it beats the majority."""

from __future__ import annotations

import random

import numpy as np
import pytest

from app.quality import consensus
from app.quality.consensus import agree_on, disagreement, majority
from app.quality.orders import Judgement
from benchmarks.consensus import ours, truth, votes
from benchmarks.poisoning import Setting, simulate


def test_one_order_is_its_own_consensus() -> None:
    found, _ = agree_on([Judgement("t", "t", "x", [2, None, 1, 3])])
    assert found["t"].places == [2, None, 1, 3]
    assert found["t"].worths[1] is None


def test_a_tie_of_everybody_stays_one() -> None:
    found, _ = agree_on([Judgement("t", "t", person, [1, 1, 2]) for person in range(3)])
    assert found["t"].places == [1, 1, 2]


def test_tasks_and_people_of_different_sizes_are_not_mixed_up() -> None:
    judgements = [
        Judgement(size, size, person, list(range(1, size + 1))) for size in (2, 5, 3) for person in range(size)
    ]
    found, _ = agree_on(judgements)
    assert {task: (item.places, item.num_people) for task, item in found.items()} == {
        size: (list(range(1, size + 1)), size) for size in (2, 5, 3)
    }


def test_who_ranks_at_random_counts_for_little() -> None:
    """Two against one on one task: the two are noise everywhere else, the one agrees with the others."""
    rng = random.Random(1)
    judgements = []
    for task in range(60):
        judgements += [Judgement(task, task, person, [1, 2, 3]) for person in ("good", "fine", "right")]
        judgements += [Judgement(task, task, person, rng.sample([1, 2, 3], 3)) for person in ("noise", "hiss")]
    judgements += [Judgement("t", "t", person, [3, 2, 1]) for person in ("noise", "hiss")]
    judgements.append(Judgement("t", "t", "good", [1, 2, 3]))
    found, reliability = agree_on(judgements)
    assert found["t"].places == [1, 2, 3]
    assert majority(judgements)["t"].places == [3, 2, 1]
    assert max(reliability["noise"], reliability["hiss"]) < 0.5 * min(reliability["good"], reliability["fine"])


def test_who_turns_everything_round_is_ignored_and_not_believed_backwards() -> None:
    judgements = []
    for task in range(40):
        judgements += [Judgement(task, task, person, [1, 2, 3]) for person in ("a", "b", "c")]
        judgements.append(Judgement(task, task, "troll", [3, 2, 1]))
    judgements.append(Judgement("t", "t", "troll", [1, 2, 3]))
    found, reliability = agree_on(judgements)
    assert 0 < reliability["troll"] < 0.3
    assert found["t"].places in ([1, 2, 3], [1, 1, 1])


def test_reliabilities_are_found_relative_to_the_median_person() -> None:
    """Ten people with known b judge 400 tasks by the model itself, three of them each."""
    rng = np.random.default_rng(4)
    true = np.exp(rng.normal(np.log(consensus.USUAL_RELIABILITY), 0.8, size=10))
    true *= consensus.USUAL_RELIABILITY / np.median(true)
    judgements = []
    for task in range(400):
        worth = rng.normal(size=2)
        for person in rng.choice(10, size=3, replace=False):
            wins = rng.random() < 1 / (1 + np.exp(-true[person] * (worth[0] - worth[1])))
            judgements.append(Judgement(task, task, int(person), [1, 2] if wins else [2, 1]))
    _, found = agree_on(judgements)
    values = [found[person] for person in range(10)]
    assert np.median(values) == pytest.approx(consensus.USUAL_RELIABILITY)
    assert np.corrcoef(np.log(values), np.log(true))[0, 1] > 0.8


def test_it_beats_the_majority() -> None:
    """A slice of `benchmarks/consensus.py`: right pairs of all tasks that three people ranked, and of attacked ones."""
    worlds = [simulate(seed, Setting()) for seed in range(2)]
    (everything, attacked), (plain, attacked_plain) = truth(ours, worlds), truth(votes, worlds)
    assert everything.value > plain.value
    assert attacked.value > attacked_plain.value + 0.02


def test_disagreement_by_hand() -> None:
    """x and y differ on one of three pairs, x and z on all, y and z on two: 6 of 9. Nobody else judged `alone`."""
    orders = {"x": [1, 2, 3], "y": [1, 3, 2], "z": [3, 2, 1]}
    judgements = [Judgement("t", "t", person, places) for person, places in orders.items()]
    judgements.append(Judgement("alone", "alone", "x", [1, 2, 3]))
    assert disagreement(judgements) == {"t": pytest.approx(6 / 9)}
    assert disagreement([]) == {}
