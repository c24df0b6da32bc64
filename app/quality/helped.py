"""Does help lead? Rankings of cards that a reward model had put in order, beside those of the control share. Pure.

Both are of the same project, and which task a person gets with help is drawn by lot, so what differs is the help.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from app.quality.agreement import Estimate, ratio, same_and_num
from app.quality.detectors import share_of, top_shares
from app.quality.orders import MISSING, Bools, Floats, Judgement, Table, padded


@dataclass(frozen=True)
class Side:
    """What rankings look like with help, or without."""

    is_assisted: bool
    num_rankings: int
    first_card: Estimate | None
    """How often the first card gets the first place."""
    as_judged: Estimate | None
    """Of the pairs of answers that people put in order, those that the reward model orders alike."""
    agreement: Estimate | None
    """Of the pairs of answers that two people of this side put in order, those on which they say the same."""
    minutes: Estimate | None
    """From opening the task to the answer, on average."""


def sides_of(judgements: Sequence[Judgement]) -> list[Side]:
    """Without and with help, of the tasks that a reward model has judged; nothing where nobody had any help."""
    asked = [judgement for judgement in judgements if judgement.judged]
    if not any(judgement.is_assisted for judgement in asked):
        return []
    return [side([item for item in asked if item.is_assisted == helped], helped) for helped in (False, True)]


def side(judgements: Sequence[Judgement], is_assisted: bool) -> Side:
    """One of the two."""
    if not judgements:
        return Side(is_assisted, 0, None, None, None, None)
    table = Table.of(judgements)
    same_P, num_P = same_and_num(table, with_ties=False)
    return Side(
        is_assisted,
        len(judgements),
        first_card=over_prompts(table, first_shares(judgements, table)),
        as_judged=as_judged(judgements, table),
        agreement=ratio(table.prompt_N[table.overlaps_P2[:, 0]], same_P, num_P),
        minutes=over_prompts(
            table, np.array([np.nan if item.seconds is None else item.seconds / 60 for item in judgements])
        ),
    )


def first_shares(judgements: Sequence[Judgement], table: Table) -> Floats:
    """The first card's share of the first place in each ranking; with help the first card is the one judged best."""
    first = [[seat == 0 for seat in (item.judged if item.is_assisted else item.seats)] for item in judgements]
    return share_of(top_shares(table.places_NK), padded(first, table.places_NK.shape[1]))


def as_judged(judgements: Sequence[Judgement], table: Table) -> Estimate | None:
    """How often a pair is in the order of the reward model."""
    judged_NK = padded([item.judged for item in judgements], table.places_NK.shape[1])
    one, other = np.triu_indices(judged_NK.shape[1], 1)
    signs_NQ = np.sign(judged_NK[:, one] - judged_NK[:, other])
    counts: Bools = (table.signs_NQ != MISSING) & (table.signs_NQ != 0) & ~np.isnan(signs_NQ)
    same = (table.signs_NQ == signs_NQ) & counts
    return ratio(table.prompt_N, same.sum(axis=1), counts.sum(axis=1))


def over_prompts(table: Table, values: Floats) -> Estimate | None:
    """The mean of what is known, with its interval."""
    known: Bools = ~np.isnan(values)
    return ratio(table.prompt_N[known], values[known], np.ones(known.sum()))


def rows_of(sides: Sequence[Side]) -> list[dict[str, Any]]:
    """All figures as flat rows, for CSV and JSON."""
    names = ("first_card", "as_judged", "agreement", "minutes")
    return [
        {"by": name, "group": "assisted" if item.is_assisted else "unassisted", "expected": None, **asdict(figure)}
        for item in sides
        for name in names
        if (figure := getattr(item, name)) is not None
    ]
