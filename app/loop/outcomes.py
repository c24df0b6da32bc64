"""What rankings of a comparison say: who wins how often, with intervals, and which labels. Pure functions.

Each prompt counts once: its value is the share of pairs (an answer of the one, an answer of the other) that the one
wins, a tie being half a win. Prompts are independent, so intervals are over prompts.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from statistics import fmean
from typing import Any

from app.quality.sequences import confidence_sequence, mean_over_prompts

Places = Mapping[uuid.UUID, int | None]
Marks = Mapping[uuid.UUID, Sequence[str]]

Z_95 = 1.96
# InstructGPT (Ouyang et al. 2022), section 4.1: how often labelers preferred the 175B model's answers to GPT-3's.
INSTRUCTGPT = {"value": 0.85, "margin": 0.03}


@dataclass(frozen=True)
class Outcome:
    """What one ranking says of two versions, each with one entry an answer."""

    win_share: float
    of_version: Mapping[str, float]
    """For each label, the share of the version's answers that it was marked on."""
    of_against: Mapping[str, float]


@dataclass(frozen=True)
class LabelShare:
    """How often a label was marked on the one's answers and on the other's, and the difference, each with its interval.
    These are of somebody who looks once (95 %): unlike the win rate's they do not hold at every moment.
    """

    key: str
    of_version: float
    of_version_low: float
    of_version_high: float
    of_against: float
    of_against_low: float
    of_against_high: float
    difference: float
    low: float
    """Of the difference, as `high`: resampling prompts."""
    high: float


@dataclass(frozen=True)
class Figures:
    """A comparison in numbers. `low` and `high` of the win rate hold at every moment (a confidence sequence): looking
    does no harm. Those of labels do not.
    """

    num_prompts: int
    num_ranked: int
    win_rate: float | None
    low: float
    high: float
    bootstrap: tuple[float, float] | None
    """The interval of somebody who had fixed the number of rankings before: 95 %, resampling prompts."""
    labels: Sequence[LabelShare]

    def turned(self) -> Figures:
        """How often the other one wins, with its interval; nothing else."""
        value = None if self.win_rate is None else 1 - self.win_rate
        return replace(self, win_rate=value, low=1 - self.high, high=1 - self.low, bootstrap=None, labels=[])

    def as_json(self) -> dict[str, Any]:
        """As it is stored and sent."""
        return asdict(self)

    @classmethod
    def of_json(cls, said: Mapping[str, Any]) -> Figures:
        """From where it was stored."""
        labels = [LabelShare(**label) for label in said["labels"]]
        bootstrap = tuple(said["bootstrap"]) if said["bootstrap"] else None
        return cls(**{**said, "labels": labels, "bootstrap": bootstrap})


def outcome(
    places: Places, marks: Marks, *, of_version: Sequence[uuid.UUID], of_against: Sequence[uuid.UUID]
) -> Outcome | None:
    """What a ranking says; None where it puts no answer of the one beside one of the other."""
    pairs = [(places.get(ours), places.get(theirs)) for ours in of_version for theirs in of_against]
    points = [
        1.0 if ours < theirs else 0.5 if ours == theirs else 0.0
        for ours, theirs in pairs
        if ours is not None and theirs is not None
    ]
    if not points:
        return None
    return Outcome(sum(points) / len(points), label_shares(marks, of_version), label_shares(marks, of_against))


def label_shares(marks: Marks, answers: Sequence[uuid.UUID]) -> dict[str, float]:
    """For each label, on which share of these answers it was marked."""
    keys = {key for answer in answers for key in marks.get(answer, ())}
    return {key: sum(key in marks.get(answer, ()) for answer in answers) / len(answers) for key in sorted(keys)}


def figures_of(outcomes: Sequence[Outcome], *, num_prompts: int, num_ties: int = 0) -> Figures:
    """The figures of the outcomes in the order in which they came; `num_ties` prompts had nothing to rank.

    These ties are known before anybody ranks. They come first, so that the order stays one that was fixed before.
    """
    values = [0.5] * num_ties + [item.win_share for item in outcomes]
    low, high = confidence_sequence(values)
    spread = mean_over_prompts(values)
    return Figures(
        num_prompts=num_prompts,
        num_ranked=len(outcomes),
        win_rate=sum(values) / len(values) if values else None,
        low=low,
        high=high,
        bootstrap=(spread.low, spread.high) if spread else None,
        labels=labels_of(outcomes),
    )


def labels_of(outcomes: Sequence[Outcome]) -> list[LabelShare]:
    """Of each label that was marked at all: how often on whose answers."""
    keys = sorted({key for item in outcomes for key in (*item.of_version, *item.of_against)})
    return [label_share(key, outcomes) for key in keys]


def label_share(key: str, outcomes: Sequence[Outcome]) -> LabelShare:
    """One label's shares."""
    ours = [item.of_version.get(key, 0.0) for item in outcomes]
    theirs = [item.of_against.get(key, 0.0) for item in outcomes]
    spread = mean_over_prompts([one - other for one, other in zip(ours, theirs, strict=True)])
    assert spread is not None
    one, other = fmean(ours), fmean(theirs)
    bounds_of_one, bounds_of_other = wilson(one, len(ours)), wilson(other, len(theirs))
    return LabelShare(key, one, *bounds_of_one, other, *bounds_of_other, spread.value, spread.low, spread.high)


def wilson(mean: float, num: int) -> tuple[float, float]:
    """The 95 % interval of a mean of so many values in [0, 1], of who looks once (Wilson 1927, as for a share).

    No values in [0, 1] vary more than those that are 0 or 1, so it is not too narrow for means of several answers. Of
    none that were marked in 40 prompts it says 0 to 9 %, where resampling would be sure of 0.
    """
    spread = Z_95 * math.sqrt(mean * (1 - mean) / num + Z_95**2 / (4 * num**2))
    middle, scale = mean + Z_95**2 / (2 * num), 1 + Z_95**2 / num
    return max(0.0, (middle - spread) / scale), min(1.0, (middle + spread) / scale)
