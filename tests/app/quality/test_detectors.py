"""Sequential tests of people: their e-values are fair to the honest, and they find who does not read."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import permutations

import numpy as np
import pytest

from app.quality import detectors
from app.quality.detectors import Check, Crowd, crowd_of, evidence, examine, flags_of, read, threshold
from app.quality.orders import Judgement
from benchmarks.poisoning import Setting, noise_of, play, simulate, summary


def by_model(rng: random.Random, margins: Sequence[int], pull: float) -> list[int]:
    """Places of three answers, drawn from P ~ exp(pull * likeness) around a known order."""
    every = list(permutations([1, 2, 3]))
    return list(rng.choices(every, [math.exp(pull * like(places, margins)) for places in every])[0])


def like(one: Sequence[int], other: Sequence[int]) -> int:
    pairs = [(0, 1), (0, 2), (1, 2)]
    return sum(np.sign(one[i] - one[j]) * np.sign(other[i] - other[j]) for i, j in pairs)


def gold_rankings(num: int, pull: float, *, seed: int = 1) -> tuple[list[Judgement], dict[int, list[int]]]:
    rng = random.Random(seed)
    gold = {task: rng.sample([1, 2, 3], 3) for task in range(num)}
    return [Judgement(task, task, task % 5, by_model(rng, gold[task], pull)) for task in range(num)], gold


@pytest.mark.parametrize("pull", [0.2, 0.6, 1.2])
def test_the_pull_of_the_crowd_is_found(pull: float) -> None:
    judgements, gold = gold_rankings(2500, pull)
    assert crowd_of(read(judgements, gold)).pull["gold"] == pytest.approx(pull, abs=0.05)


@pytest.mark.parametrize("lapses", [0.0, 0.1])
def test_an_honest_person_expects_no_more_than_one(lapses: float) -> None:
    """Whoever is as the crowd, but for up to a tenth of lapses, has e-values with a mean of at most 1: a fair bet."""
    judgements, gold = gold_rankings(8_000, 0.6)
    rng = random.Random(2)
    for index, judgement in enumerate(judgements):
        if rng.random() < lapses:
            places = rng.sample([1, 2, 3], 3)
            judgements[index] = Judgement(judgement.task, judgement.task, judgement.annotator, places)
    values = detectors.e_values(read(judgements, gold), Crowd(num_people=5, pull={"gold": 0.6}))
    assert values[Check.RANDOM].mean() <= 1.01
    assert values[Check.REVERSED].mean() <= 1.01
    assert (lapses == 0.1) == (values[Check.RANDOM].mean() > 0.97)


@pytest.mark.parametrize("usual", [0.2, 0.25, 0.5])
def test_a_share_of_the_first_place_is_a_fair_bet(usual: float) -> None:
    """At the worst rate that an honest person may have, the mean is 1; at the crowd's own, it is less."""
    worst = (1 - detectors.LAPSES) * usual + detectors.LAPSES * detectors.PERSISTENCE
    hit, miss, unknown = detectors.of_share(np.array([1.0, 0.0, np.nan]), np.full(3, usual))
    assert worst * hit + (1 - worst) * miss == pytest.approx(1)
    assert usual * hit + (1 - usual) * miss < 1
    assert unknown == 1


def test_the_chance_of_a_false_flag_is_bounded() -> None:
    """Bets at fair odds on a coin, 4,000 people, 200 rankings each: at most one in 500 passes (and some do)."""
    rng = np.random.default_rng(3)
    worst = (1 - detectors.LAPSES) * 0.25 + detectors.LAPSES * detectors.PERSISTENCE
    hits = (rng.random((4000, 200)) < worst).astype(float)
    flagged = [evidence(detectors.of_share(row, np.full(200, 0.25))).flagged_after is not None for row in hits]
    assert 0 < np.mean(flagged) <= 1 / math.exp(threshold()) * 1.5


def test_the_course_of_a_test_by_hand() -> None:
    """One product that begins at once, weight 1/2; from ranking 51 on another one, weight 1/6."""
    values = np.full(51, 1.5)
    found = evidence(values)
    assert found.now == pytest.approx(math.log(1.5**51 / 2 + 1.5 / 6))
    assert found.flagged_after == math.ceil(math.log(2 * math.exp(threshold())) / math.log(1.5))
    assert found.num == 51
    assert evidence(np.empty(0)) == detectors.Evidence(0.0, 0.0, None, 0)


def test_who_turns_bad_later_is_seen() -> None:
    good, bad = np.full(100, 0.5), np.full(20, 2.0)
    assert evidence(np.concatenate([good, bad])).flagged_after is not None
    assert evidence(np.concatenate([good, np.ones(20)])).flagged_after is None


def test_the_first_place_is_shared_by_who_ties_for_it() -> None:
    seats, lengths = [1, 0, 2], [10, 10, 30]
    rows = [
        Judgement("a", "a", "x", [1, 2, 3], seats=seats, lengths=lengths),
        Judgement("b", "b", "x", [2, 1, 1], seats=seats, lengths=lengths),
        Judgement("c", "c", "x", [None, 1, None], seats=seats, lengths=[10, 30, 30]),
        Judgement("d", "d", "x", [1, 2, 3]),
    ]
    found = read(rows)
    np.testing.assert_equal(found.first_N, [0, 0.5, 1, np.nan])
    np.testing.assert_equal(found.longest_N, [0, 0.5, np.nan, np.nan])


def test_shuffles_of_few_answers_are_all_of_them() -> None:
    for size, each in ((2, 60), (3, 20), (4, 5), (5, 1)):
        rows, counts = np.unique(detectors.shuffles_of(size), axis=0, return_counts=True)
        assert len(rows) == math.factorial(size)
        assert set(counts) == {each}
    assert {tuple(sorted(row)) for row in detectors.shuffles_of(9)} == {tuple(range(9))}


def test_of_two_people_nobody_knows_who_is_wrong() -> None:
    def disagree(num_people: int) -> set[Check]:
        judgements = [
            Judgement(task, task, person, [1, 2, 3] if person else [3, 2, 1])
            for task in range(60)
            for person in range(num_people)
        ]
        readings = read(judgements)
        return set(flags_of(examine(readings, Crowd(num_people, pull={"1": 1.0, "2": 1.0}))[0]))

    assert disagree(2) == set()
    assert disagree(3) == {Check.RANDOM, Check.REVERSED}


def test_times_that_nobody_knows_say_nothing() -> None:
    judgements = [Judgement(task, task, "x", [1, 2], lengths=[5, 9], seconds=None) for task in range(9)]
    readings = read(judgements)
    assert crowd_of(readings).pace is None
    assert examine(readings, crowd_of(readings))["x"][Check.SPEEDING].num == 0


def test_simulated_people_agree_as_they_should() -> None:
    rng = np.random.default_rng(5)
    for agreement in (0.70, 0.78):
        worth = rng.normal(size=(200_000, 2, 1))
        seen = worth + rng.normal(size=(200_000, 2, 2)) * noise_of(agreement)
        signs = np.sign(seen[:, 0] - seen[:, 1])
        assert (signs[:, 0] == signs[:, 1]).mean() == pytest.approx(agreement, abs=0.005)


def test_everybody_ranks_sixty_tasks_and_none_twice() -> None:
    world = simulate(0, Setting())
    done = [(judgement.annotator, judgement.task) for judgement in world.judgements]
    assert len(done) == len(set(done)) == 6000
    assert len(world.attackers) == 8


def test_attackers_are_flagged_and_the_honest_are_not() -> None:
    """A slice of `benchmarks/poisoning.py`, whose 20 seeds flag all 160 attackers and one honest person."""
    found = summary([play(seed, Setting()) for seed in range(5)])
    assert found["caught"] >= 0.98 * found["attackers"]
    assert found["named"] >= 0.95 * found["attackers"]
    assert found["honest_flagged_a_seed"] <= 1
