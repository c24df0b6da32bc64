"""What is said of one annotator: pace, agreement, ties, lean towards cards and length, weekdays, checks. Pure."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from app.quality import detectors
from app.quality.agreement import Estimate, pairwise, ratio
from app.quality.detectors import Check, Crowd, Evidence, Readings
from app.quality.orders import MISSING, Floats, Ints, Judgement, Table

Gold = Mapping[Hashable, Sequence[int | None]]
WEEKDAYS = 7


@dataclass(frozen=True)
class Day:
    """What was done on one weekday (0 is Monday), UTC."""

    weekday: int
    num: int
    seconds: float | None
    agreement: float | None


@dataclass(frozen=True)
class Portrait:
    """One annotator over a window of rankings; None where there is nothing to tell it from."""

    num: int
    seconds: float | None
    """The median time of a ranking."""
    pace: float | None
    """Times as fast as the crowd's median, by bytes a second."""
    agreement: Estimate | None
    """With whoever ranked the same tasks, ties as a third answer; of pairs of answers."""
    gold: Estimate | None
    ties: float | None
    """The share of pairs of answers that are tied."""
    first: Estimate | None
    """How often the first card gets the first place; `usual_first` is the crowd's rate on such tasks."""
    usual_first: float | None
    longest: Estimate | None
    usual_longest: float | None
    days: list[Day]
    checks: dict[Check, Evidence]


def portray(
    theirs: Sequence[Judgement], others: Sequence[Judgement], crowd: Crowd, gold: Gold
) -> dict[Hashable, Portrait]:
    """Portraits of all who are in `theirs`. `others`: what else was said of the same tasks."""
    readings = detectors.read([*theirs, *others], gold)
    checks = detectors.examine(readings, crowd)
    people = dict.fromkeys(judgement.annotator for judgement in theirs)
    return {person: portrait(person, [*theirs, *others], readings, crowd, gold, checks[person]) for person in people}


def portrait(
    person: Hashable,
    judgements: Sequence[Judgement],
    readings: Readings,
    crowd: Crowd,
    gold: Gold,
    checks: dict[Check, Evidence],
) -> Portrait:
    """One person among all that was read."""
    table = readings.table
    mine = np.flatnonzero(table.annotator_N == table.annotators.index(person))
    rows = [judgements[int(row)] for row in mine]
    times = np.array([row.seconds for row in rows if row.seconds is not None])
    pace_N = readings.pace_N[mine][~np.isnan(readings.pace_N[mine])]
    same_N, both_N = with_others(table, mine)
    return Portrait(
        num=len(rows),
        seconds=float(np.median(times)) if len(times) else None,
        pace=float(np.exp(crowd.pace - np.median(pace_N))) if len(pace_N) and crowd.pace is not None else None,
        agreement=ratio(table.prompt_N[mine], same_N, both_N),
        gold=with_gold(rows, gold),
        ties=tie_share(table, mine),
        first=mean(table.prompt_N[mine], readings.first_N[mine]),
        usual_first=usual(readings, mine, readings.first_N, crowd.first),
        longest=mean(table.prompt_N[mine], readings.longest_N[mine]),
        usual_longest=usual(readings, mine, readings.longest_N, crowd.longest),
        days=by_weekday(rows, same_N, both_N),
        checks=checks,
    )


def with_others(table: Table, mine: Ints) -> tuple[Ints, Ints]:
    """Of each of these rankings: on how many (other person, two answers) both say the same, and of how many."""
    mates = table.overlaps_P2
    one, other = table.signs_NQ[mates[:, 0]], table.signs_NQ[mates[:, 1]]
    both_PQ = (one != MISSING) & (other != MISSING)
    same_P, both_P = ((one == other) & both_PQ).sum(axis=1), both_PQ.sum(axis=1)
    num = len(table.task_N)
    same_N, both_N = np.zeros(num, dtype=np.int64), np.zeros(num, dtype=np.int64)
    for side in (0, 1):
        np.add.at(same_N, mates[:, side], same_P)
        np.add.at(both_N, mates[:, side], both_P)
    return same_N[mine], both_N[mine]


def with_gold(rows: Sequence[Judgement], gold: Gold) -> Estimate | None:
    """Pairwise agreement with known orders."""
    known = [row for row in rows if row.task in gold]
    if not known:
        return None
    pairs = [
        judgement
        for index, row in enumerate(known)
        for judgement in (
            Judgement(index, row.prompt, "person", row.places),
            Judgement(index, row.prompt, "gold", gold[row.task]),
        )
    ]
    return pairwise(Table.of(pairs))


def tie_share(table: Table, mine: Ints) -> float | None:
    """The share of judged pairs of answers that are tied."""
    signs = table.signs_NQ[mine]
    judged = (signs != MISSING).sum()
    return float((signs == 0).sum() / judged) if judged else None


def mean(prompt_N: Ints, share_N: Floats) -> Estimate | None:
    """The mean of what is known, with its interval."""
    known = ~np.isnan(share_N)
    return ratio(prompt_N[known], share_N[known], np.ones(known.sum()))


def usual(readings: Readings, mine: Ints, share_N: Floats, rates: Mapping[int, float]) -> float | None:
    """The crowd's mean rate over tasks of the same sizes."""
    known = mine[~np.isnan(share_N[mine])]
    sizes = readings.num_answers_N[known]
    return float(np.mean([rates.get(int(size), 1 / size) for size in sizes])) if len(known) else None


def by_weekday(rows: Sequence[Judgement], same_N: Ints, both_N: Ints) -> list[Day]:
    """What was done on each weekday on which anything was done."""
    weekdays = np.array([row.at.weekday() if row.at else -1 for row in rows])
    days = []
    for weekday in range(WEEKDAYS):
        chosen = np.flatnonzero(weekdays == weekday)
        times = [seconds for index in chosen if (seconds := rows[int(index)].seconds) is not None]
        both = both_N[chosen].sum()
        if len(chosen):
            days.append(
                Day(
                    weekday,
                    len(chosen),
                    float(np.median(times)) if times else None,
                    float(same_N[chosen].sum() / both) if both else None,
                )
            )
    return days
