"""How well people agree: pairwise agreement, Krippendorff's alpha, Kendall's tau-b, Fleiss' kappa. Pure functions.

Formulae, units and sources are in docs/quality.md. None stands for a coefficient that is not defined, as where nobody
ranked the same task.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from app.quality.orders import MISSING, Bools, Floats, Ints, Judgement, Signs, Table, mid_ranks, number

Level = Literal["nominal", "ordinal"]
NUM_RESAMPLES = 1_000
SEED = 17


@dataclass(frozen=True)
class Estimate:
    """A figure with its 95 % interval, by resampling prompts."""

    value: float
    low: float
    high: float
    num: int
    """What was counted: pairs of answers, or pairs of rankings."""
    num_prompts: int


@dataclass(frozen=True)
class Agreement:
    """How well the people agree who ranked the same tasks."""

    num_rankings: int
    num_tasks: int
    num_annotators: int
    with_ties: Estimate | None
    """A tie is a third answer: two people agree on two answers when both say <, both = or both >."""
    without_ties: Estimate | None
    """Of the pairs of answers that both people put in order."""
    tau_b: Estimate | None
    alpha_pairs: float | None
    alpha_ranks: float | None


def measure(judgements: Sequence[Judgement]) -> Agreement:
    """All coefficients of rankings, from those tasks that two people or more ranked."""
    table = Table.of(judgements)
    counted = np.unique(table.overlaps_P2)
    return Agreement(
        num_rankings=len(counted),
        num_tasks=len(np.unique(table.task_N[counted])),
        num_annotators=len(np.unique(table.annotator_N[counted])),
        with_ties=pairwise(table),
        without_ties=pairwise(table, with_ties=False),
        tau_b=kendall(table),
        alpha_pairs=alpha_of_pairs(table),
        alpha_ranks=alpha_of_ranks(table),
    )


# Pairwise agreement


def pairwise(table: Table, *, with_ties: bool = True) -> Estimate | None:
    """The share of (two people, two answers) on which the two say the same; without ties, where both order the two."""
    same_P, num_P = same_and_num(table, with_ties=with_ties)
    return ratio(table.prompt_N[table.overlaps_P2[:, 0]], same_P, num_P)


def same_and_num(table: Table, *, with_ties: bool) -> tuple[Ints, Ints]:
    """Of every two rankings of a task: on how many pairs of answers they say the same, and how many both judged."""
    one, other = table.signs_NQ[table.overlaps_P2[:, 0]], table.signs_NQ[table.overlaps_P2[:, 1]]
    counts: Bools = (one != MISSING) & (other != MISSING)
    if not with_ties:
        counts &= (one != 0) & (other != 0)
    return ((one == other) & counts).sum(axis=1), counts.sum(axis=1)


def ratio(cluster: Ints, parts: Floats | Ints, wholes: Floats | Ints, *, seed: int = SEED) -> Estimate | None:
    """Sum of parts over sum of wholes, with an interval that resamples clusters (prompts), seeded."""
    _, cluster = np.unique(cluster, return_inverse=True)
    sums = np.stack([np.bincount(cluster, parts), np.bincount(cluster, wholes)], axis=1)
    sums = sums[sums[:, 1] > 0]
    if not len(sums):
        return None
    drawn = resample(sums, seed)
    low, high = np.quantile(drawn[:, 0] / drawn[:, 1], [0.025, 0.975])
    part, whole = sums.sum(axis=0)
    return Estimate(float(part / whole), float(low), float(high), num=round(whole), num_prompts=len(sums))


def resample(sums_CS: Floats | Ints, seed: int) -> Floats:
    """Sums over as many rows as there are, drawn with replacement, `NUM_RESAMPLES` times: shape (resamples, sums).

    Rows that are alike are drawn together: how often each kind of row comes is multinomial, so the cost is that of the
    kinds, which are few, and not that of the rows.
    """
    kinds, counts = np.unique(sums_CS, axis=0, return_counts=True)
    rng = np.random.default_rng(seed)
    # Some resamples at a time, so that a million numbers are in memory, however many kinds there are.
    at_once = max(1, 1_000_000 // len(kinds))
    sizes = [min(at_once, NUM_RESAMPLES - done) for done in range(0, NUM_RESAMPLES, at_once)]
    shares = counts / len(sums_CS)
    return np.concatenate([rng.multinomial(len(sums_CS), shares, size=size) @ kinds for size in sizes])


# Kendall's tau-b


def kendall(table: Table) -> Estimate | None:
    """The mean over every two rankings of a task; left out are those in which one of the two ties everything."""
    tau_P = tau_b(table)
    defined = ~np.isnan(tau_P)
    return ratio(table.prompt_N[table.overlaps_P2[:, 0]][defined], tau_P[defined], np.ones(defined.sum()))


def tau_b(table: Table) -> Floats:
    """Kendall's tau-b of every two rankings of a task, over the answers that both placed; nan where not defined.

    (C - D) / sqrt((n - t1)(n - t2)): C, D pairs in the same and in opposite order, n all pairs, t1, t2 those that tie
    in the one and in the other (Kendall 1945).
    """
    one = table.signs_NQ[table.overlaps_P2[:, 0]].astype(np.int64)
    other = table.signs_NQ[table.overlaps_P2[:, 1]].astype(np.int64)
    both = (one != MISSING) & (other != MISSING)
    untied = ((one != 0) & both).sum(axis=1) * ((other != 0) & both).sum(axis=1)
    difference = (one * other * both).sum(axis=1)
    return np.where(untied > 0, difference / np.sqrt(np.maximum(untied, 1)), np.nan)


# Krippendorff's alpha


def alpha_of_pairs(table: Table, *, level: Level = "ordinal") -> float | None:
    """Unit: two answers of a task; values: <, =, >. Each unit counts both ways round, so that it does not matter which
    answer is called the first."""
    counts = count_values(table, table.signs_NQ, [-1, 0, 1], missing=MISSING)
    return alpha(np.concatenate([counts, counts[:, ::-1]]), level)


def alpha_of_ranks(table: Table, *, level: Level = "ordinal") -> float | None:
    """Unit: an answer of a task; values: its rank within each ranking, ties sharing the mean of their ranks."""
    ranks_NK = mid_ranks(table.places_NK)
    halves = np.where(np.isnan(ranks_NK), MISSING * 2 + 1, np.nan_to_num(ranks_NK) * 2).astype(np.int64)
    return alpha(count_values(table, halves, range(2, MISSING * 2 + 1), missing=MISSING * 2 + 1), level)


def count_values(table: Table, values_NU: Ints | Signs, domain: Sequence[int], *, missing: int) -> Ints:
    """How many rankings of a task give each value of the domain to each of its units: shape (units, values)."""
    num_tasks = int(table.task_N.max(initial=-1)) + 1
    counts = np.zeros((num_tasks, values_NU.shape[1], len(domain)), dtype=np.int64)
    for index, value in enumerate(domain):
        np.add.at(counts[:, :, index], table.task_N, (values_NU == value) & (values_NU != missing))
    return counts.reshape(-1, len(domain))


def alpha(counts_UV: Ints, level: Level = "ordinal") -> float | None:
    """Krippendorff's alpha of units by values, from how many raters gave each; None where all values are the same.

    1 - observed / expected disagreement, from the matrix of coincidences (Krippendorff, Computing Krippendorff's
    Alpha-Reliability, 2011, sections C and D).
    """
    counts_UV = counts_UV[counts_UV.sum(axis=1) > 1]
    weights_UV = counts_UV / (counts_UV.sum(axis=1, keepdims=True) - 1)
    coincidences_VV = weights_UV.T @ counts_UV - np.diag(weights_UV.sum(axis=0))
    totals_V = coincidences_VV.sum(axis=0)
    distances_VV = squared_distances(totals_V, level)
    expected = totals_V @ distances_VV @ totals_V / max(totals_V.sum() - 1, 1)
    return float(1 - (coincidences_VV * distances_VV).sum() / expected) if expected > 0 else None


def squared_distances(totals_V: Floats, level: Level) -> Floats:
    """How far apart two values are: 1 or 0, or, of ordered values, by how many of all values lie from one to the other,
    half of their own number at both ends."""
    if level == "nominal":
        return 1.0 - np.eye(len(totals_V))
    middles_V = np.cumsum(totals_V) - totals_V / 2
    return np.square(middles_V[:, None] - middles_V[None, :])


# Fleiss' kappa


def kappa_of_labels(judgements: Sequence[Judgement]) -> dict[str, float | None]:
    """Fleiss' kappa of each label that was used. Unit: an answer of a task; values: marked or not."""
    task_N, tasks = number(judgement.task for judgement in judgements)
    keys = sorted({key for judgement in judgements for marks in judgement.labels for key in marks})
    widest = max((len(judgement.places) for judgement in judgements), default=0)
    kappas = {}
    for key in keys:
        counts = np.zeros((len(tasks), widest, 2), dtype=np.int64)
        for task, judgement in zip(task_N, judgements, strict=True):
            for answer, marks in enumerate(judgement.labels):
                counts[task, answer, int(key in marks)] += 1
        kappas[key] = fleiss(counts.reshape(-1, 2))
    return kappas


def fleiss(counts_UV: Ints) -> float | None:
    """Fleiss' kappa of units by values, from how many raters gave each (Fleiss 1971).

    Units may have different numbers of raters: each counts by its share of agreeing pairs of raters, and the values'
    shares are those among all ratings. None where chance alone would agree on everything.
    """
    counts_UV = counts_UV[counts_UV.sum(axis=1) > 1]
    if not len(counts_UV):
        return None
    raters = counts_UV.sum(axis=1)
    observed = ((counts_UV * (counts_UV - 1)).sum(axis=1) / (raters * (raters - 1))).mean()
    expected = ((counts_UV.sum(axis=0) / counts_UV.sum()) ** 2).sum()
    return None if expected == 1 else float((observed - expected) / (1 - expected))


# Groups


def by(judgements: Sequence[Judgement], key: Callable[[Judgement], object]) -> list[tuple[object, list[Judgement]]]:
    """Judgements by round, by language and so on, in the order of the key; those without one come last."""
    groups: dict[object, list[Judgement]] = {}
    for judgement in judgements:
        groups.setdefault(key(judgement), []).append(judgement)
    return sorted(groups.items(), key=lambda item: (item[0] is None, item[0]))
