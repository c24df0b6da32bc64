"""What a ranking would teach, on scores worked out by hand."""

from __future__ import annotations

import math

import pytest
import torch

from trainer.choosing import disagreement, expected_gain, novelty

LOG_3 = math.log(3.0)


def test_heads_that_agree_have_nothing_to_learn_however_unsure_they_are() -> None:
    sure = torch.tensor([[4.0, 4.0], [0.0, 0.0], [-4.0, -4.0]])
    unsure = torch.zeros(3, 2)
    for scores in (sure, unsure, torch.tensor([[1.0], [0.0]])):
        assert disagreement(scores) == pytest.approx(0.0, abs=1e-6)
        assert expected_gain(scores) == pytest.approx(0.0, abs=1e-6)


def test_two_heads_that_differ_about_one_pair() -> None:
    """One head gives the first answer 3 to 1, the other 1 to 3: chances of 3/4 and 1/4, a standard deviation of 1/4.
    Their mean is a fair coin, log 2 nats; each alone is a coin of 3/4."""
    scores = torch.tensor([[LOG_3, 0.0], [0.0, LOG_3]])
    coin = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert disagreement(scores) == pytest.approx(0.25)
    assert expected_gain(scores) == pytest.approx(math.log(2) - coin, abs=1e-6)


def test_it_is_the_mean_over_pairs() -> None:
    """The third answer is worth what the first is, to both heads: of three pairs two are in dispute, by 1/4 each."""
    two = torch.tensor([[LOG_3, 0.0], [0.0, LOG_3]])
    three = torch.cat([two, two[:1]])
    assert disagreement(three) == pytest.approx(2 / 3 * 0.25)


def test_what_matters_is_the_distance_of_two_answers_and_not_where_a_head_has_its_zero() -> None:
    scores = torch.tensor([[1.0, -0.5, 0.3], [0.2, 0.7, -1.0], [0.0, 0.1, 2.0]])
    moved = scores + torch.tensor([5.0, -3.0, 1.0])
    assert disagreement(moved) == pytest.approx(disagreement(scores), abs=1e-6)
    assert expected_gain(moved) == pytest.approx(expected_gain(scores), abs=1e-6)


def test_novelty_is_the_way_to_the_nearest_ranked_answer() -> None:
    """Of two answers one points where a ranked one does, the other at a right angle to it."""
    answers = torch.tensor([[2.0, 0.0], [0.0, 5.0]])
    assert novelty(answers, torch.tensor([[1.0, 0.0]])) == pytest.approx(0.5)
    assert novelty(answers, torch.tensor([[1.0, 0.0], [0.0, 0.1]])) == pytest.approx(0.0, abs=1e-6)
    assert novelty(answers, torch.zeros(0, 2)) == 1.0
