"""Who answers without reading: sequential tests of one person's rankings against the crowd's. Pure functions.

Each check asks of every ranking how much likelier it is under the behaviour (at random, reversed, first card, longest
answer, in a hurry) than from an honest person, who is as the crowd but for a share of lapses, in which they may behave
just so. The product of these ratios is an e-process: an honest person's passes 1 / level with probability `level` at
most, however often one looks (Ville's inequality). docs/quality.md derives it.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from itertools import permutations

import numpy as np
import numpy.typing as npt

from app.quality.orders import MISSING, Bools, Floats, Ints, Judgement, Signs, Table, padded, signs_of

LEVEL = 0.01
"""Honest people who are flagged by any check, of all of them, over one window of rankings."""
LAPSES = 0.1
"""The share of rankings that an honest person may answer without reading."""
PERSISTENCE = 0.95
"""How often who ranks by first card, by length or in a hurry does so."""
RESTART = 50
"""A test begins anew after so many rankings, so that who turns bad later is seen, too."""
FEWEST_PEOPLE = 3
"""With two people, nobody can tell which of them is wrong."""
HURRY = 3.0
"""Fast is so many times faster than the crowd's median, by bytes a second."""
PAGE_BYTES = 400
"""What a task takes besides its answers, as bytes to read."""
NUM_SHUFFLES = 120
"""Shuffles of a ranking; all of them for up to five answers."""
USUAL_PULL = 1.0
USUAL_PULL_SD = 0.5
"""How closely people follow each other before there is data, see `fit_pull`."""
USUAL_HURRY = 0.05
PRIOR = 20.0
"""The weight of what is usual against the crowd's own rates, in rankings."""


class Check(StrEnum):
    """What is looked for."""

    RANDOM = "random"
    REVERSED = "reversed"
    FIRST_CARD = "first_card"
    LONGEST = "longest"
    SPEEDING = "speeding"


@dataclass(frozen=True)
class Readings:
    """What the checks look at, a row a ranking; M shuffles of each."""

    table: Table
    num_answers_N: Floats
    likeness_N: Floats
    """How far the ranking goes with the mean of the others' on its task (`likeness`); 0 without others."""
    shuffled_NM: Floats
    """The same for the ranking with its answers shuffled."""
    others_N: npt.NDArray[np.str_]
    """Who it was compared with: "gold", "1", "2", "3" people (or more), "" nobody."""
    first_N: Floats
    """The first card's share of the first place: 0, 1, or less where several tie for it; nan: not known."""
    longest_N: Floats
    """The longest answer's share of the first place."""
    pace_N: Floats
    """Logarithm of seconds a byte; nan: not known."""


@dataclass(frozen=True)
class Crowd:
    """What is usual in a project. Rates by number of answers."""

    num_people: int = 0
    pull: Mapping[str, float] = field(default_factory=dict)
    first: Mapping[int, float] = field(default_factory=dict)
    longest: Mapping[int, float] = field(default_factory=dict)
    pace: float | None = None
    hurried: float = USUAL_HURRY


@dataclass(frozen=True)
class Evidence:
    """What one check says of one person: natural logarithms of e-values."""

    now: float
    highest: float
    flagged_after: int | None
    """The ranking, counted from 1, at which the threshold was passed."""
    num: int
    """Rankings that said something."""


def threshold(level: float = LEVEL) -> float:
    """The logarithm at which a check flags: the level is shared among the checks."""
    return math.log(len(Check) / level)


# Reading


def read(judgements: Sequence[Judgement], gold: Mapping[Hashable, Sequence[int | None]] | None = None) -> Readings:
    """What the checks look at. `gold`: the known places of a task's answers, which then stand for the other people."""
    table = Table.of(judgements)
    margins_NQ, others = margins(judgements, table, gold or {})
    likeness_N, shuffled_NM = likeness(judgements, table.places_NK, margins_NQ)
    top_NK = top_shares(table.places_NK)
    return Readings(
        table=table,
        num_answers_N=np.array([len(judgement.places) for judgement in judgements], dtype=float),
        likeness_N=likeness_N,
        shuffled_NM=shuffled_NM,
        others_N=np.array(others, dtype="<U4"),
        first_N=share_of(top_NK, padded([[seat == 0 for seat in row.seats] for row in judgements], top_NK.shape[1])),
        longest_N=share_of(top_NK, longest(judgements, top_NK.shape[1])),
        pace_N=np.array([pace(judgement) for judgement in judgements], dtype=float),
    )


def margins(
    judgements: Sequence[Judgement], table: Table, gold: Mapping[Hashable, Sequence[int | None]]
) -> tuple[Floats, list[str]]:
    """Of every two answers the mean sign that the others gave, or the sign of gold; and who the others were."""
    signs_NQ = known(table.signs_NQ)
    said_NQ = (table.signs_NQ != MISSING).astype(float)
    num_tasks = int(table.task_N.max(initial=-1)) + 1
    sums, nums = np.zeros((2, num_tasks, signs_NQ.shape[1]))
    np.add.at(sums, table.task_N, signs_NQ)
    np.add.at(nums, table.task_N, said_NQ)
    margins_NQ = (sums[table.task_N] - signs_NQ) / np.maximum(nums[table.task_N] - said_NQ, 1)
    num_others_N = np.bincount(table.task_N, minlength=num_tasks)[table.task_N] - 1
    others = [str(min(num, 3)) if num else "" for num in num_others_N]
    for row, judgement in enumerate(judgements):
        if judgement.task in gold:
            right = padded([gold[judgement.task], [None] * table.places_NK.shape[1]])[:1]
            margins_NQ[row] = known(signs_of(right))[0]
            others[row] = "gold"
    return margins_NQ, others


def likeness(judgements: Sequence[Judgement], places_NK: Floats, margins_NQ: Floats) -> tuple[Floats, Floats]:
    """Sums over pairs of answers of own sign times the others' margin; of the ranking, and of shuffles of it."""
    shuffled_NM = np.zeros((len(judgements), NUM_SHUFFLES))
    sizes = np.array([len(judgement.places) for judgement in judgements])
    width = places_NK.shape[1]
    for size in np.unique(sizes):
        shuffles = np.tile(np.arange(width), (NUM_SHUFFLES, 1))
        shuffles[:, :size] = shuffles_of(int(size))
        rows = np.flatnonzero((sizes == size) & margins_NQ.any(axis=1))
        # Some at a time: 500 rankings of nine answers make 2 million signs.
        for chunk in np.split(rows, range(500, len(rows), 500)):
            signs = known(signs_of(places_NK[chunk][:, shuffles].reshape(-1, width)))
            shuffled_NM[chunk] = np.einsum(
                "nmq,nq->nm", signs.reshape(len(chunk), NUM_SHUFFLES, signs.shape[1]), margins_NQ[chunk]
            )
    likeness_N: Floats = (known(signs_of(places_NK)) * margins_NQ).sum(axis=1)
    return likeness_N, shuffled_NM


def known(signs: Signs) -> Floats:
    """Signs as numbers to add up: what is missing counts as nothing."""
    return np.where(signs == MISSING, 0.0, signs)


def shuffles_of(size: int) -> Ints:
    """Orders of `size` things: all of them up to five (each equally often), else a seeded sample."""
    if size <= 5:
        every = np.array(list(permutations(range(size))))
        return np.resize(every, (NUM_SHUFFLES, size))
    rng = np.random.default_rng(size)
    return rng.permuted(np.tile(np.arange(size), (NUM_SHUFFLES, 1)), axis=1)


def top_shares(places_NK: Floats) -> Floats:
    """Each answer's share of the first place: 1, or less where several tie for it."""
    is_top: Bools = places_NK == np.nanmin(places_NK, axis=1, keepdims=True, initial=np.inf)
    shares: Floats = is_top / np.maximum(is_top.sum(axis=1, keepdims=True), 1)
    return shares


def share_of(top_NK: Floats, chosen_NK: Floats) -> Floats:
    """How much of the first place the chosen answers have; nan where none is chosen."""
    weights = np.nan_to_num(chosen_NK)
    nums = weights.sum(axis=1)
    shares: Floats = (top_NK * weights).sum(axis=1)
    return np.where(nums > 0, shares, np.nan)


def longest(judgements: Sequence[Judgement], width: int) -> Floats:
    """1 for the longest answer of each ranking; nothing where two are longest."""
    marks = []
    for judgement in judgements:
        most = max(judgement.lengths, default=0)
        is_clear = list(judgement.lengths).count(most) == 1
        marks.append([float(is_clear and length == most) for length in judgement.lengths])
    return padded(marks, width)


def pace(judgement: Judgement) -> float:
    """Logarithm of seconds a byte of what was to be read; nan where the time is not known."""
    if judgement.seconds is None or judgement.seconds <= 0 or not judgement.lengths:
        return math.nan
    return math.log(judgement.seconds / (sum(judgement.lengths) + PAGE_BYTES))


# The crowd


def crowd_of(readings: Readings) -> Crowd:
    """What is usual among these people."""
    paces = readings.pace_N[~np.isnan(readings.pace_N)]
    usual = float(np.median(paces)) if len(paces) else None
    hurried = int((paces < usual - math.log(HURRY)).sum()) if usual is not None else 0
    return Crowd(
        num_people=len(readings.table.annotators),
        pull={
            str(kind): fit_pull(readings, readings.others_N == kind) for kind in np.unique(readings.others_N) if kind
        },
        first=rates(readings.first_N, readings.num_answers_N),
        longest=rates(readings.longest_N, readings.num_answers_N),
        pace=usual,
        hurried=(hurried + PRIOR * USUAL_HURRY) / (len(paces) + PRIOR),
    )


def rates(share_N: Floats, num_answers_N: Floats) -> dict[int, float]:
    """The mean share of the first place by number of answers, drawn towards chance where there is little."""
    found = {}
    for size in np.unique(num_answers_N):
        shares = share_N[(num_answers_N == size) & ~np.isnan(share_N)]
        found[int(size)] = float((shares.sum() + PRIOR / size) / (len(shares) + PRIOR))
    return found


def fit_pull(readings: Readings, rows: Bools) -> float:
    """How closely the crowd follows others: the t in P(ranking) ~ exp(t * likeness), among all shuffles of the ranking.

    A Mallows model around a mean of orders. One step of Newton after the other on its concave log-likelihood, with a
    normal prior around what is usual; never below 0.
    """
    own, shuffled = readings.likeness_N[rows], readings.shuffled_NM[rows]
    pull = USUAL_PULL
    for _ in range(20):
        weights = np.exp(pull * (shuffled - shuffled.max(axis=1, keepdims=True, initial=0)))
        weights /= weights.sum(axis=1, keepdims=True)
        mean = (weights * shuffled).sum(axis=1)
        variance = (weights * shuffled**2).sum(axis=1) - mean**2
        slope = (own - mean).sum() - (pull - USUAL_PULL) / USUAL_PULL_SD**2
        pull = max(0.0, pull + float(slope / (variance.sum() + 1 / USUAL_PULL_SD**2)))
    return pull


# Testing


def e_values(readings: Readings, crowd: Crowd) -> dict[Check, Floats]:
    """Of each ranking, how much likelier it is under each behaviour than from an honest person; 1 says nothing."""
    pull_N = np.array([crowd.pull.get(kind, USUAL_PULL) if kind else 0.0 for kind in readings.others_N])
    if crowd.num_people < FEWEST_PEOPLE:
        pull_N = np.where(readings.others_N == "gold", pull_N, 0.0)
    limit = math.nan if crowd.pace is None else crowd.pace - math.log(HURRY)
    hurried_N = np.where(np.isnan(readings.pace_N - limit), np.nan, readings.pace_N < limit)
    return {
        Check.RANDOM: of_ratio(likelihood(pull_N, readings)),
        Check.REVERSED: of_ratio(np.exp(2 * pull_N * readings.likeness_N)),
        Check.FIRST_CARD: of_share(readings.first_N, usual_rates(crowd.first, readings)),
        Check.LONGEST: of_share(readings.longest_N, usual_rates(crowd.longest, readings)),
        Check.SPEEDING: of_share(hurried_N, np.full(len(hurried_N), crowd.hurried)),
    }


def likelihood(pull_N: Floats, readings: Readings) -> Floats:
    """How much likelier each ranking is from the crowd than any shuffle of it."""
    exponents = pull_N[:, None] * (readings.shuffled_NM - readings.likeness_N[:, None])
    ratios: Floats = 1 / np.exp(np.minimum(exponents, 500)).mean(axis=1)
    return ratios


def usual_rates(by_size: Mapping[int, float], readings: Readings) -> Floats:
    """The crowd's rate for each ranking's number of answers; chance where it is not known."""
    return np.array([by_size.get(int(size), 1 / size) for size in readings.num_answers_N])


def of_ratio(crowd_to_behaviour: Floats) -> Floats:
    """The e-value from the ratio of the two likelihoods, with lapses: q / ((1 - l) f + l q)."""
    return 1 / ((1 - LAPSES) * crowd_to_behaviour + LAPSES)


def of_share(share_N: Floats, usual_N: Floats) -> Floats:
    """The e-value of a share of the first place: that of 1 and that of 0, mixed by the share. 1 where not known."""
    honest = (1 - LAPSES) * usual_N + LAPSES * PERSISTENCE
    hit, miss = PERSISTENCE / honest, (1 - PERSISTENCE) / (1 - honest)
    return np.where(np.isnan(share_N), 1.0, np.nan_to_num(share_N) * hit + (1 - np.nan_to_num(share_N)) * miss)


def examine(readings: Readings, crowd: Crowd, *, level: float = LEVEL) -> dict[Hashable, dict[Check, Evidence]]:
    """All checks of all people, each over their rankings in the order given."""
    values = e_values(readings, crowd)
    people = readings.table.annotators
    return {
        person: {check: evidence(values[check][readings.table.annotator_N == index], level=level) for check in Check}
        for index, person in enumerate(people)
    }


def evidence(values: Floats, *, level: float = LEVEL) -> Evidence:
    """The course of one test. Its e-process is a mixture of products that begin after 0, 50, 100 … rankings, with the
    weights 1/2, 1/6, 1/12 …"""
    logs = np.log(values)
    parts = [
        np.concatenate([np.zeros(start), np.cumsum(logs[start:])]) - math.log((index + 1) * (index + 2))
        for index, start in enumerate(range(0, len(logs), RESTART))
    ]
    if not parts:
        return Evidence(0.0, 0.0, None, 0)
    course = np.logaddexp.reduce(parts, axis=0)
    passed = np.flatnonzero(course >= threshold(level))
    return Evidence(
        now=float(course[-1]),
        highest=float(course.max()),
        flagged_after=int(passed[0]) + 1 if len(passed) else None,
        num=int((values != 1).sum()),
    )


def flags_of(found: Mapping[Check, Evidence]) -> list[Check]:
    """The checks that flag a person, the strongest first."""
    flagged = [check for check in Check if found[check].flagged_after is not None]
    return sorted(flagged, key=lambda check: -found[check].highest)
