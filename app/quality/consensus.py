"""One order from several people's, by a model of how reliable each of them is. Pure.

Bradley and Terry's model with reliabilities: person a prefers answer i to j with probability
sigmoid(b_a (x_i - x_j)), a tie is half of each. The x have a standard normal prior, the b a log-normal one
(docs/quality.md). Someone who ranks at random gets a reliability near 0 and counts
for nothing; one who ranks in reverse is not believed the other way round.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.quality.agreement import same_and_num
from app.quality.orders import MISSING, Bools, Floats, Ints, Judgement, Table

USUAL_RELIABILITY = 2.4
"""Of two people with it who judge answers of spread 1, each pair of answers is put in the same order about 79 times of
100."""
RELIABILITY_SD = 1.2
"""Of the logarithm of reliabilities."""
NUM_ROUNDS = 60
EVEN = 0.05
"""Answers whose x differ by no more than this are tied in the consensus."""


@dataclass(frozen=True)
class Consensus:
    """The order of one task's answers. `worths` are the x; None: nobody placed that answer."""

    worths: list[float | None]
    places: list[int | None]
    num_people: int


@dataclass(frozen=True)
class Comparisons:
    """Pairs of answers that somebody judged, C of them; answers are numbered through all tasks."""

    one_C: Ints
    other_C: Ints
    won_C: Floats
    """1 where the first is better, 0.5 for a tie, 0 where the second is."""
    weight_C: Floats
    """2 / K: the K (K - 1) / 2 pairs of one ranking say about as much as K - 1 independent ones."""
    person_C: Ints
    num_answers: int


def agree_on(judgements: Sequence[Judgement]) -> tuple[dict[Hashable, Consensus], dict[Hashable, float]]:
    """The consensus of each task, and the reliability of each person."""
    table = Table.of(judgements)
    pairs = comparisons(table)
    worth_A, reliability_U = fit(pairs, len(table.annotators))
    width = table.places_NK.shape[1]
    placed_A = np.zeros(pairs.num_answers, dtype=bool)
    placed_A[np.concatenate([pairs.one_C, pairs.other_C])] = True
    tasks = {judgement.task: row for row, judgement in enumerate(judgements)}
    people = np.bincount(table.task_N)
    found = {}
    for task, row in tasks.items():
        start = table.task_N[row] * width
        answers = range(start, start + len(judgements[row].places))
        worths = [float(worth_A[answer]) if placed_A[answer] else None for answer in answers]
        found[task] = Consensus(worths, places_of(worths), int(people[table.task_N[row]]))
    return found, {person: float(value) for person, value in zip(table.annotators, reliability_U, strict=True)}


def comparisons(table: Table) -> Comparisons:
    """All that was said of two answers; answer k of task t has the number t * K + k."""
    width = table.places_NK.shape[1]
    one, other = np.triu_indices(width, 1)
    said: Bools = table.signs_NQ != MISSING
    row, pair = np.nonzero(said)
    start = table.task_N[row] * width
    num_placed = np.maximum((~np.isnan(table.places_NK)).sum(axis=1), 2)
    return Comparisons(
        one_C=start + one[pair],
        other_C=start + other[pair],
        won_C=(1 - table.signs_NQ[said].astype(float)) / 2,
        weight_C=2 / num_placed[row],
        person_C=table.annotator_N[row],
        num_answers=(int(table.task_N.max(initial=-1)) + 1) * width,
    )


def fit(pairs: Comparisons, num_people: int) -> tuple[Floats, Floats]:
    """The most probable x and b, by turns. The median person keeps the usual reliability: left free, all b would grow
    while the x shrink towards their prior to make up for it, without end.
    """
    worth_A = np.zeros(pairs.num_answers)
    log_U = np.full(num_people, np.log(USUAL_RELIABILITY))
    for _ in range(NUM_ROUNDS):
        worth_A += step_of_worths(pairs, worth_A, np.exp(log_U)[pairs.person_C])
        log_U += step_of_reliabilities(pairs, worth_A, log_U)
        log_U += np.log(USUAL_RELIABILITY) - np.median(log_U)
    return worth_A, np.exp(log_U)


def step_of_worths(pairs: Comparisons, worth_A: Floats, b_C: Floats) -> Floats:
    """A step towards the most probable x: gradient over a bound of the second derivative (sigmoid' <= 1/4)."""
    surprise_C = pairs.weight_C * b_C * (pairs.won_C - sigmoid(b_C * (worth_A[pairs.one_C] - worth_A[pairs.other_C])))
    slope = total(pairs.one_C, surprise_C, pairs.num_answers) - total(pairs.other_C, surprise_C, pairs.num_answers)
    # Each comparison's curvature acts on two answers: doubled, the diagonal bounds the whole matrix.
    step: Floats = (slope - worth_A) / (per_answer(pairs, pairs.weight_C * b_C**2 / 2) + 1)
    return step


def step_of_reliabilities(pairs: Comparisons, worth_A: Floats, log_U: Floats) -> Floats:
    """A step of Newton's towards the most probable log b, no longer than 1/2, beside the median person's."""
    size = len(log_U)
    scaled_C = np.exp(log_U)[pairs.person_C] * (worth_A[pairs.one_C] - worth_A[pairs.other_C])
    chance_C = sigmoid(scaled_C)
    slope = total(pairs.person_C, pairs.weight_C * (pairs.won_C - chance_C) * scaled_C, size)
    curve = total(pairs.person_C, pairs.weight_C * chance_C * (1 - chance_C) * scaled_C**2, size)
    prior = (log_U - np.log(USUAL_RELIABILITY)) / RELIABILITY_SD**2
    step: Floats = (slope - prior) / (curve + 1 / RELIABILITY_SD**2)
    return np.clip(step - np.median(step), -0.5, 0.5)


def per_answer(pairs: Comparisons, value_C: Floats) -> Floats:
    """The sum of a value of comparisons over those of each answer."""
    return total(pairs.one_C, value_C, pairs.num_answers) + total(pairs.other_C, value_C, pairs.num_answers)


def total(codes: Ints, values: Floats, size: int) -> Floats:
    """The sum of the values of each code."""
    return np.bincount(codes, values, size).astype(np.float64)


def sigmoid(value: Floats) -> Floats:
    """1 / (1 + exp(-value)), without overflow."""
    return 0.5 * (1 + np.tanh(value / 2))


def places_of(worths: Sequence[float | None]) -> list[int | None]:
    """Places by worth, best first; those within `EVEN` of the one before share its place."""
    order = sorted((worth, index) for index, worth in enumerate(worths) if worth is not None)[::-1]
    places: list[int | None] = [None] * len(worths)
    place, before = 0, None
    for worth, index in order:
        if before is None or before - worth > EVEN:
            place += 1
        places[index], before = place, worth
    return places


def majority(judgements: Sequence[Judgement]) -> dict[Hashable, Consensus]:
    """What to beat: every pair by the majority, the order by how many pairs each answer wins (Copeland), everybody
    counting alike.
    """
    table = Table.of(judgements)
    pairs = comparisons(table)
    width = table.places_NK.shape[1]
    key_C = pairs.one_C * width + pairs.other_C % width
    keys, where = np.unique(key_C, return_inverse=True)
    mean = np.bincount(where, pairs.won_C) / np.bincount(where)
    score_A = np.zeros(pairs.num_answers)
    first = keys // width
    second = first - first % width + keys % width
    np.add.at(score_A, first, np.sign(mean - 0.5))
    np.add.at(score_A, second, -np.sign(mean - 0.5))
    found = {}
    for row, judgement in enumerate(judgements):
        start = int(table.task_N[row]) * width
        worths: list[float | None] = [float(value) for value in score_A[start : start + len(judgement.places)]]
        found[judgement.task] = Consensus(worths, places_of(worths), 0)
    return found


def disagreement(judgements: Sequence[Judgement]) -> Mapping[Hashable, float]:
    """Of each task that two people or more ranked: the share of (two people, two answers) on which they differ."""
    table = Table.of(judgements)
    same_P, num_P = same_and_num(table, with_ties=True)
    task_P = table.task_N[table.overlaps_P2[:, 0]]
    same, num = np.bincount(task_P, same_P), np.bincount(task_P, num_P)
    names = {int(code): judgement.task for code, judgement in zip(table.task_N, judgements, strict=True)}
    return {names[int(task)]: float(1 - same[task] / num[task]) for task in np.flatnonzero(num)}
