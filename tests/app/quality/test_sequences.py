"""The confidence sequence: how often it errs when it is looked at after every ranking, and how soon it decides."""

from __future__ import annotations

import numpy as np
import pytest

from app.quality.orders import Floats
from app.quality.sequences import capital, confidence_sequence, excludes, plug_in_bets

NUM_TESTS, NUM_RANKINGS = 2_000, 300


def win_shares(*, answers_each: int, advantage: float, seed: int, num_tests: int = NUM_TESTS) -> Floats:
    """What rankings say of answers whose worth is normal, the one's better by `advantage`; near ones tie."""
    rng = np.random.default_rng(seed)
    shape = (num_tests, NUM_RANKINGS, answers_each)
    differences = (rng.normal(size=shape) + advantage)[..., :, None] - rng.normal(size=shape)[..., None, :]
    points = np.where(differences > 0.15, 1.0, np.where(differences < -0.15, 0.0, 0.5))
    shares: Floats = points.mean(axis=(2, 3))
    return shares


@pytest.mark.parametrize("answers_each", [1, 2])
def test_equal_versions_are_told_apart_in_at_most_one_test_of_twenty(answers_each: int) -> None:
    """A/A. A fixed 95 % interval, looked at from the tenth ranking on, rules one half out in 44 % of these tests."""
    when = excludes(win_shares(answers_each=answers_each, advantage=0.0, seed=2026))
    assert np.isfinite(when).mean() <= 0.05


def test_a_better_version_is_found_and_four_answers_find_it_sooner_than_two() -> None:
    two = excludes(win_shares(answers_each=1, advantage=0.5, seed=1))
    four = excludes(win_shares(answers_each=2, advantage=0.5, seed=1))
    assert np.isfinite(four).mean() >= 0.99
    assert np.median(four) < np.median(two) / 2


def test_bets_and_capital_by_hand() -> None:
    """First bet: sqrt(2 ln 40 / (0.25 ln 2)) = 6.525, cut to c/m = 1: 1 + 1 (1 - 0.5) = 1.5, staked is one half."""
    values = np.array([[1.0, 1.0]])
    assert plug_in_bets(values)[0, 0] == pytest.approx(6.525, abs=1e-3)
    made = capital(values, np.array([0.5]))[0, 0]
    assert made == pytest.approx([0.75, 1.125])


def test_bets_know_nothing_of_what_they_are_laid_on() -> None:
    values = win_shares(answers_each=2, advantage=0.3, seed=3, num_tests=1)
    later = values.copy()
    later[0, 100:] = 0.0
    assert (plug_in_bets(values)[0, :101] == plug_in_bets(later)[0, :101]).all()


def test_the_interval_shrinks_and_never_takes_back_what_it_ruled_out() -> None:
    values = list(win_shares(answers_each=2, advantage=0.5, seed=4, num_tests=1)[0])
    bounds = [confidence_sequence(values[:count]) for count in range(0, NUM_RANKINGS, 10)]
    assert bounds[0] == (0.0, 1.0)
    lows, highs = zip(*bounds, strict=True)
    assert list(lows) == sorted(lows)
    assert list(highs) == sorted(highs, reverse=True)
    assert bounds[-1][0] < np.mean(values) < bounds[-1][1]


def test_the_interval_decides_when_the_test_does() -> None:
    values = win_shares(answers_each=2, advantage=0.5, seed=5, num_tests=1)
    when = int(excludes(values)[0])
    low, _ = confidence_sequence(list(values[0, : when + 15]))
    assert low > 0.5
    low, _ = confidence_sequence(list(values[0, : when - 15]))
    assert low < 0.5
