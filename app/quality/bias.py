"""What rankings lean on besides the answers: where a card stood, how long it was, who wrote it, who judged. Pure."""

from __future__ import annotations

import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from app import spreadsheets
from app.quality import drafts, helped
from app.quality.agreement import Estimate, ratio
from app.quality.detectors import share_of, top_shares
from app.quality.orders import MISSING, Bools, Floats, Ints, Judgement, Table, number, padded

NUM_PARTS = 4
"""Differences of length are shown in parts of about equal size."""
MOST_PEOPLE = 30


@dataclass(frozen=True)
class Lean:
    """A rate of one group, what it would be without any lean, and how sure that is."""

    group: str
    rate: Estimate
    expected: float


@dataclass(frozen=True)
class PositionTest:
    """Whether the first card wins more or less often than chance, by the randomness of the order shown."""

    rate: float
    expected: float
    z: float
    p: float

    @property
    def is_biased(self) -> bool:
        """Reported at the 5 % level."""
        return self.p < 0.05


@dataclass(frozen=True)
class Report:
    """The leanings of a project. Parts are empty where nothing is known."""

    num_rankings: int
    position: PositionTest | None
    by_seat: list[Lean]
    """How often the card at each place of the page gets the first place."""
    longer: Lean | None
    """How often the longer of two answers is the better one; a tie is half."""
    by_length: list[Lean]
    """The same by how many times longer it is."""
    by_version: list[Lean]
    """How often a version's answer beats another one's of the same prompt; a tie is half."""
    by_annotator: list[Lean]
    """How often the first card gets the first place, by who judged: those who judged most."""
    sides: list[helped.Side]
    """Without help by a model, and with it."""
    drafted: Sequence[drafts.DraftSide] = ()
    """The same of what people write."""


def report_of(judgements: Sequence[Judgement], names: Mapping[Hashable, str] | None = None) -> Report:
    """The report of these rankings. `names`: what annotators and versions are called."""
    table = Table.of(judgements)
    width = table.places_NK.shape[1]
    seats_NK = padded([judgement.seats for judgement in judgements], width)
    top_NK = top_shares(table.places_NK)
    return Report(
        num_rankings=len(judgements),
        position=position_test(top_NK, seats_NK),
        by_seat=by_seat(table, top_NK, seats_NK),
        **by_length(table, judgements),
        by_version=by_version(table, judgements, names or {}),
        by_annotator=by_annotator(table, top_NK, seats_NK, names or {}),
        sides=helped.sides_of(judgements),
    )


# Where a card stood


def position_test(top_NK: Floats, seats_NK: Floats) -> PositionTest | None:
    """A randomisation test: given what each ranking puts first, the first card is any of its answers alike.

    The variance of each ranking's share is that of drawing one of its answers; nothing else is assumed.
    """
    known = (seats_NK == 0).any(axis=1)
    if not known.any():
        return None
    top, seats = top_NK[known], seats_NK[known]
    num_answers = (~np.isnan(seats)).sum(axis=1)
    shares = share_of(top, (seats == 0).astype(float))
    expected = top.sum(axis=1) / num_answers
    variance = (top**2).sum(axis=1) / num_answers - expected**2
    z = float((shares - expected).sum() / math.sqrt(variance.sum())) if variance.sum() > 0 else 0.0
    return PositionTest(float(shares.mean()), float(expected.mean()), z, math.erfc(abs(z) / math.sqrt(2)))


def by_seat(table: Table, top_NK: Floats, seats_NK: Floats) -> list[Lean]:
    """The share of first places of each place of the page."""
    sizes = np.maximum((~np.isnan(seats_NK)).sum(axis=1), 1)
    found = []
    for seat in range(seats_NK.shape[1]):
        shown: Bools = (seats_NK == seat).any(axis=1)
        shares = share_of(top_NK[shown], (seats_NK[shown] == seat).astype(float))
        rate = ratio(table.prompt_N[shown], shares, np.ones(len(shares)))
        if rate:
            found.append(Lean(str(seat + 1), rate, float((1 / sizes[shown]).mean())))
    return found


def by_annotator(table: Table, top_NK: Floats, seats_NK: Floats, names: Mapping[Hashable, str]) -> list[Lean]:
    """The first card's share of first places by who judged, those first who judged most."""
    found = []
    nums = np.bincount(table.annotator_N, minlength=len(table.annotators))
    for person in np.argsort(-nums, kind="stable")[:MOST_PEOPLE]:
        theirs: Bools = (table.annotator_N == person) & (seats_NK == 0).any(axis=1)
        shares = share_of(top_NK[theirs], (seats_NK[theirs] == 0).astype(float))
        rate = ratio(table.prompt_N[theirs], shares, np.ones(len(shares)))
        if rate:
            who = table.annotators[int(person)]
            sizes = (~np.isnan(seats_NK[theirs])).sum(axis=1)
            found.append(Lean(names.get(who, str(who)), rate, float((1 / sizes).mean())))
    return found


# How long an answer was, and who wrote it


def by_length(table: Table, judgements: Sequence[Judgement]) -> dict[str, Any]:
    """How often the longer of two answers is the better one: at all, and by how many times longer it is."""
    lengths_NK = padded([judgement.lengths for judgement in judgements], table.places_NK.shape[1])
    one, other = np.triu_indices(lengths_NK.shape[1], 1)
    logs_NK = np.log(np.maximum(lengths_NK, 1))
    ratio_NQ = logs_NK[:, one] - logs_NK[:, other]
    counts: Bools = (table.signs_NQ != MISSING) & (np.nan_to_num(ratio_NQ) != 0)
    prompts = np.broadcast_to(table.prompt_N[:, None], counts.shape)[counts]
    # The sign is -1 where the first is better: the longer one wins where it is of the other sign than the ratio.
    won = (1 - table.signs_NQ[counts] * np.sign(ratio_NQ[counts])) / 2
    size = np.abs(ratio_NQ[counts])
    everything = ratio(prompts, won, np.ones(len(won)))
    return {
        "longer": Lean("", everything, 0.5) if everything else None,
        "by_length": list(in_parts(prompts, won, size)),
    }


def in_parts(prompts: Ints, won: Floats, size: Floats) -> Iterator[Lean]:
    """Rates in parts of about equal size, from the smallest differences to the largest."""
    if not len(size):
        return
    edges = np.unique(np.quantile(size, np.linspace(0, 1, NUM_PARTS + 1)[1:-1]))
    part = np.searchsorted(edges, size, side="left")
    for index in np.unique(part):
        chosen = part == index
        rate = ratio(prompts[chosen], won[chosen], np.ones(chosen.sum()))
        low, high = math.exp(size[chosen].min()), math.exp(size[chosen].max())
        if rate:
            yield Lean(f"{low:.2f}–{high:.2f}×", rate, 0.5)


def by_version(table: Table, judgements: Sequence[Judgement], names: Mapping[Hashable, str]) -> list[Lean]:
    """How often the answers of each version beat those of others, against which they were ranked."""
    codes, versions = number(version for judgement in judgements for version in judgement.versions)
    lengths = [len(judgement.versions) for judgement in judgements]
    if not sum(lengths):
        return []
    parts = np.split(codes.astype(float), np.cumsum(lengths)[:-1])
    version_NK = padded([list(part) for part in parts], table.places_NK.shape[1])
    one, other = np.triu_indices(version_NK.shape[1], 1)
    first, second = version_NK[:, one], version_NK[:, other]
    counts: Bools = (table.signs_NQ != MISSING) & (first != second) & ~np.isnan(first - second)
    prompts = np.broadcast_to(table.prompt_N[:, None], counts.shape)[counts]
    won = (1 - table.signs_NQ[counts].astype(float)) / 2
    found = []
    for code, version in enumerate(versions):
        mine, theirs = first[counts] == code, second[counts] == code
        wins = np.concatenate([won[mine], 1 - won[theirs]])
        rate = ratio(np.concatenate([prompts[mine], prompts[theirs]]), wins, np.ones(len(wins)))
        if rate and version is not None:
            found.append(Lean(names.get(version, str(version)), rate, 0.5))
    return sorted(found, key=lambda lean: -lean.rate.value)


# As data


def rows_of(report: Report) -> list[dict[str, Any]]:
    """All rates as flat rows, for CSV and JSON."""
    groups = {
        "position": report.by_seat,
        "longer": [report.longer] if report.longer else [],
        "length": report.by_length,
        "version": report.by_version,
        "annotator": report.by_annotator,
    }
    return [
        {"by": kind, "group": lean.group, "expected": lean.expected, **asdict(lean.rate)}
        for kind, leans in groups.items()
        for lean in leans
    ] + [*helped.rows_of(report.sides), *drafts.rows_of(report.drafted)]


def as_csv(report: Report) -> str:
    """The rows as CSV."""
    return spreadsheets.as_csv(
        ["by", "group", "value", "low", "high", "expected", "num", "num_prompts"], rows_of(report)
    )
