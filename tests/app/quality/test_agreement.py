"""Coefficients of agreement: worked cases, slow references from their definitions, and figures that were published."""

from __future__ import annotations

import json
import random
from collections import Counter, defaultdict
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import krippendorff
import numpy as np
import pytest
from scipy.stats import kendalltau

from app.quality import agreement
from app.quality.orders import MISSING, Judgement, Table, mid_ranks, padded

PANDALM = Path(__file__).resolve().parents[4] / "shared/data/pairs_pandalm_3annotators.jsonl"


def generated(seed: int, *, num_tasks: int = 40) -> list[Judgement]:
    """K-way rankings with ties, answers that were left out, and one to four people a task."""
    rng = random.Random(seed)
    judgements = []
    for task in range(num_tasks):
        k = rng.randint(2, 6)
        quality = [rng.gauss(0, 1) for _ in range(k)]
        for annotator in rng.sample(range(8), rng.randint(1, 4)):
            seen = [round(2 * (value + rng.gauss(0, 0.7))) for value in quality]
            steps = sorted(set(seen), reverse=True)
            places = [None if rng.random() < 0.15 else steps.index(value) + 1 for value in seen]
            labels = [frozenset({"rude"}) if rng.random() < 0.3 else frozenset() for _ in range(k)]
            judgements.append(Judgement(task, task // 2, annotator, places, labels=labels))
    return judgements


def pandalm() -> list[Judgement]:
    if not PANDALM.exists():
        pytest.skip("shared/data is not there")
    judgements = []
    for line in PANDALM.read_text(encoding="utf-8").splitlines():
        item: dict[str, Any] = json.loads(line)
        for annotation in item["annotations"]:
            for pair in annotation["pairs"]:
                places = [1, 1] if pair["pref"] == "tie" else [1, 2] if pair["pref"] == pair["a"] else [2, 1]
                task = (item["id"], pair["a"], pair["b"])
                judgements.append(Judgement(task, item["id"], annotation["annotator"], places))
    return judgements


DATA = [*(pytest.param(seed, id=f"generated {seed}") for seed in range(3)), pytest.param(None, id="PandaLM")]


@pytest.fixture(params=DATA)
def judgements(request: pytest.FixtureRequest) -> list[Judgement]:
    return pandalm() if request.param is None else generated(request.param)


# References, written from the definitions


def relation(judgement: Judgement, i: int, j: int) -> str | None:
    one, other = judgement.places[i], judgement.places[j]
    return None if one is None or other is None else "<" if one < other else ">" if one > other else "="


def two_people(judgements: Sequence[Judgement]) -> list[tuple[Judgement, Judgement]]:
    return [(a, b) for a, b in combinations(judgements, 2) if a.task == b.task and a.annotator != b.annotator]


def slow_pairwise(judgements: Sequence[Judgement], *, with_ties: bool) -> float:
    said = []
    for a, b in two_people(judgements):
        for i, j in combinations(range(len(a.places)), 2):
            both = (relation(a, i, j), relation(b, i, j))
            if None not in both and (with_ties or "=" not in both):
                said.append(both[0] == both[1])
    return sum(said) / len(said)


def slow_alpha(units: Sequence[Sequence[float]], level: str) -> float:
    """Krippendorff (2011), "Computing Krippendorff's alpha-reliability", as loops over ordered pairs."""
    units = [unit for unit in units if len(unit) > 1]
    totals = Counter(value for unit in units for value in unit)
    n = sum(totals.values())

    def distance(c: float, k: float) -> float:
        if level == "nominal":
            return float(c != k)
        low, high = sorted((c, k))
        between = sum(count for value, count in totals.items() if low <= value <= high)
        return (between - (totals[low] + totals[high]) / 2) ** 2 if low != high else 0.0

    observed = sum(
        distance(unit[i], unit[j]) / (len(unit) - 1)
        for unit in units
        for i in range(len(unit))
        for j in range(len(unit))
        if i != j
    )
    expected = sum(totals[c] * (totals[k] - (c == k)) * distance(c, k) / (n - 1) for c in totals for k in totals)
    return 1 - observed / expected


def units_of_pairs(judgements: Sequence[Judgement], *, both_ways: bool = True) -> list[list[float]]:
    units: dict[Any, list[float]] = defaultdict(list)
    value = {"<": -1.0, "=": 0.0, ">": 1.0}
    for judgement in judgements:
        for i, j in combinations(range(len(judgement.places)), 2):
            said = relation(judgement, i, j)
            if said is not None:
                units[judgement.task, i, j].append(value[said])
                if both_ways:
                    units[judgement.task, j, i].append(-value[said])
    return list(units.values())


def units_of_ranks(judgements: Sequence[Judgement]) -> list[list[float]]:
    units: dict[Any, list[float]] = defaultdict(list)
    for judgement in judgements:
        placed = [place for place in judgement.places if place is not None]
        for answer, place in enumerate(judgement.places):
            if place is not None:
                better, tied = sum(p < place for p in placed), placed.count(place)
                units[judgement.task, answer].append(better + (tied + 1) / 2)
    return list(units.values())


def slow_taus(judgements: Sequence[Judgement]) -> list[float]:
    taus = []
    for a, b in two_people(judgements):
        both = [(x, y) for x, y in zip(a.places, b.places, strict=True) if x is not None and y is not None]
        if len(both) > 1 and all(len(set(column)) > 1 for column in zip(*both, strict=True)):
            taus.append(kendalltau(*zip(*both, strict=True), variant="b").statistic)
    return taus


def slow_fleiss(judgements: Sequence[Judgement], key: str) -> float:
    marks: dict[Any, list[bool]] = defaultdict(list)
    for judgement in judgements:
        for answer, labels in enumerate(judgement.labels):
            marks[judgement.task, answer].append(key in labels)
    units = [unit for unit in marks.values() if len(unit) > 1]
    agree = [np.mean([a == b for a, b in combinations(unit, 2)]) for unit in units]
    share = np.mean([mark for unit in units for mark in unit])
    chance = share**2 + (1 - share) ** 2
    return float((np.mean(agree) - chance) / (1 - chance))


# Equal to the references


@pytest.mark.parametrize("with_ties", [True, False])
def test_pairwise_agreement_is_the_slow_loops(judgements: list[Judgement], with_ties: bool) -> None:
    found = agreement.pairwise(Table.of(judgements), with_ties=with_ties)
    assert found is not None
    assert found.value == pytest.approx(slow_pairwise(judgements, with_ties=with_ties), abs=1e-9)
    assert found.low < found.value < found.high


def test_alpha_of_pairs_is_krippendorffs_definition(judgements: list[Judgement]) -> None:
    expected = slow_alpha(units_of_pairs(judgements), "ordinal")
    assert agreement.alpha_of_pairs(Table.of(judgements)) == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("level", ["nominal", "ordinal"])
@pytest.mark.parametrize("seed", range(5))
def test_alpha_is_the_librarys(level: agreement.Level, seed: int) -> None:
    counts = np.random.default_rng(seed).multinomial(4, [0.6, 0.2, 0.15, 0.05, 0.0], size=30)
    counts[:10] //= 2  # some units have one value, or none
    several = counts[counts.sum(axis=1) > 1][:, :4]
    expected = krippendorff.alpha(value_counts=several, level_of_measurement=level)
    assert agreement.alpha(counts, level) == pytest.approx(expected, abs=1e-9)


def test_alpha_of_ranks_is_krippendorffs_definition(judgements: list[Judgement]) -> None:
    expected = slow_alpha(units_of_ranks(judgements), "ordinal")
    assert agreement.alpha_of_ranks(Table.of(judgements)) == pytest.approx(expected, abs=1e-9)


def test_tau_b_is_scipys(judgements: list[Judgement]) -> None:
    found = agreement.tau_b(Table.of(judgements))
    expected = slow_taus(judgements)
    assert sorted(found[~np.isnan(found)]) == pytest.approx(sorted(expected), abs=1e-9)
    mean = agreement.kendall(Table.of(judgements))
    assert mean is not None
    assert mean.value == pytest.approx(np.mean(expected), abs=1e-9)


@pytest.mark.parametrize("seed", range(3))
def test_kappa_is_the_slow_loops(seed: int) -> None:
    judgements = generated(seed)
    assert agreement.kappa_of_labels(judgements) == {"rude": pytest.approx(slow_fleiss(judgements, "rude"), abs=1e-9)}


# Published figures


def test_pandalms_published_figures() -> None:
    """Zheng and others publish Cohen's kappa; ../shared/data/README.md has alpha and unanimity from the same file."""
    judgements = pandalm()
    table = Table.of(judgements)
    counts = agreement.count_values(table, table.signs_NQ, [-1, 0, 1], missing=MISSING)
    assert agreement.alpha(counts, "nominal") == pytest.approx(0.8642, abs=5e-5)
    assert np.mean(counts.max(axis=1) == 3) == pytest.approx(0.8799, abs=5e-5)
    assert [round(cohen(judgements, a, b), 2) for a, b in combinations(sorted(table.annotators, key=str), 2)] == [
        0.85, 0.88, 0.86,
    ]  # fmt: skip


def cohen(judgements: Sequence[Judgement], one: Any, other: Any) -> float:
    """Cohen's kappa, from the agreement that `pairwise` finds between the two and the shares of what each says."""
    theirs = [judgement for judgement in judgements if judgement.annotator in (one, other)]
    observed = agreement.pairwise(Table.of(theirs))
    assert observed is not None
    said = [Counter(relation(j, 0, 1) for j in theirs if j.annotator == who) for who in (one, other)]
    total = sum(said[0].values())
    chance = sum(said[0][value] * said[1][value] for value in "<=>") / total**2
    return (observed.value - chance) / (1 - chance)


def test_fleiss_own_example() -> None:
    """14 raters, ten subjects, five values: kappa 0.210 (the example of Fleiss 1971 in its common abridged form)."""
    counts = [
        [0, 0, 0, 0, 14], [0, 2, 6, 4, 2], [0, 0, 3, 5, 6], [0, 3, 9, 2, 0], [2, 2, 8, 1, 1],
        [7, 7, 0, 0, 0], [3, 2, 6, 3, 0], [2, 5, 3, 2, 2], [6, 5, 2, 1, 0], [0, 2, 2, 3, 7],
    ]  # fmt: skip
    assert agreement.fleiss(np.array(counts)) == pytest.approx(0.2099307, abs=1e-7)


# By hand


def test_two_people_by_hand() -> None:
    """A>B>C>D and A>C=B>D: AB, AC, AD, BD, CD agree, BC does not: 5 of 6 with ties, 5 of 5 without."""
    table = Table.of([Judgement("t", "p", "x", [1, 2, 3, 4]), Judgement("t", "p", "y", [1, 2, 2, 3])])
    with_ties, without = agreement.pairwise(table), agreement.pairwise(table, with_ties=False)
    assert with_ties is not None
    assert without is not None
    assert with_ties.value == pytest.approx(5 / 6)
    assert without.value == 1
    assert (with_ties.num, without.num) == (6, 5)


def test_who_judged_the_same_twice_is_not_two_people() -> None:
    table = Table.of([Judgement("t", "p", "x", [1, 2]), Judgement("t", "p", "x", [2, 1])])
    assert agreement.pairwise(table) is None


def test_nothing_in_common_is_no_figure() -> None:
    for judgements in ([], [Judgement("t", "p", "x", [1, 2])], [Judgement(n, "p", n, [1, 2]) for n in range(3)]):
        found = agreement.measure(judgements)
        assert (found.num_rankings, found.with_ties, found.tau_b, found.alpha_pairs) == (0, None, None, None)


def test_which_answer_comes_first_does_not_matter(judgements: list[Judgement]) -> None:
    turned = [Judgement(j.task, j.prompt, j.annotator, list(reversed(j.places)), labels=j.labels) for j in judgements]
    one, other = agreement.measure(judgements), agreement.measure(turned)
    assert one.alpha_pairs == pytest.approx(other.alpha_pairs)
    assert one.with_ties == other.with_ties


def test_the_interval_is_seeded_and_covers() -> None:
    """Two people agree on each of 200 prompts with probability 0.7: about 19 of 20 intervals hold 0.7."""
    covered = 0
    for seed in range(40):
        rng = np.random.default_rng(seed)
        estimate = agreement.ratio(np.arange(200), (rng.random(200) < 0.7).astype(float), np.ones(200))
        assert estimate is not None
        covered += estimate.low <= 0.7 <= estimate.high
    assert 34 <= covered <= 40
    again = agreement.ratio(np.arange(200), (rng.random(200) < 2).astype(float), np.ones(200))
    assert again == agreement.Estimate(1, 1, 1, 200, 200)


@pytest.mark.parametrize("num_kinds", [2, 12, 500])
def test_rows_that_are_alike_are_drawn_together_as_they_would_be_one_by_one(num_kinds: int) -> None:
    rng = np.random.default_rng(num_kinds)
    kinds = np.stack([rng.random(num_kinds), 1 + rng.random(num_kinds)], axis=1)
    rows = kinds[rng.integers(num_kinds, size=500)]
    drawn = agreement.resample(rows, seed=17)
    slowly = np.array([rows[rng.integers(500, size=500)].sum(axis=0) for _ in range(4000)])
    assert drawn.shape == (agreement.NUM_RESAMPLES, 2)
    assert np.mean(drawn, axis=0) == pytest.approx(np.mean(slowly, axis=0), rel=0.01)
    assert np.std(drawn, axis=0) == pytest.approx(np.std(slowly, axis=0), rel=0.1)
    shares, slow_shares = drawn[:, 0] / drawn[:, 1], slowly[:, 0] / slowly[:, 1]
    assert np.quantile(shares, [0.025, 0.975]) == pytest.approx(np.quantile(slow_shares, [0.025, 0.975]), abs=0.01)


def test_ties_share_the_mean_of_their_ranks() -> None:
    found = mid_ranks(padded([[1, 2, 2, 3], [None, 1, None, 2]]))
    np.testing.assert_equal(found, [[1, 2.5, 2.5, 4], [np.nan, 1, np.nan, 2]])
