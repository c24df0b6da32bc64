"""What a new version must show before it goes live. Pure functions: from figures to a verdict.

A reward model is asked about the same held-out rankings as the live one. It must be no worse on those of every round
(the lower bound of the difference in accuracy above -1 point, by bootstrap over prompts), so that what was learned is
not forgotten, and better on the newest, which are about the answers that the policy gives now. Where all of them
together are of few prompts, that is chance, and a person decides.
"""

from __future__ import annotations

import uuid
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

from app.quality.agreement import Estimate
from app.quality.sequences import ratio_over_prompts

TOLERANCE = -0.01
FEW_PROMPTS = 100
"""A round with fewer held-out prompts says too little alone: such rounds are judged together."""
FEWEST_PROMPTS = 20
"""With fewer in all, resampling sees too little of what it does not know: one prompt's interval is a point. Of models
at 68 % against a live one at 71 %, so many passed on 1, 3, 5, 8, 12, 20 prompts: 34, 18, 10, 4, 3, 1 % (docs/loop.md).
"""


class Reason(StrEnum):
    """Why a gate let a version through or not; pages put it into words."""

    OFF = "off"
    NOTHING_LIVE = "nothing_live"
    NO_RANKINGS = "no_rankings"
    NO_PROMPTS = "no_prompts"
    SCORING = "scoring"
    COMPARING = "comparing"
    BETTER = "better"
    MAYBE_WORSE = "maybe_worse"
    NO_BETTER = "no_better"
    FEW_PROMPTS = "few_prompts"
    PREFERRED = "preferred"
    WORSE = "worse"  # the next three are states of a comparison
    UNDECIDED = "undecided"
    STOPPED = "stopped"
    NO_JUDGE = "no_judge"
    ONLY_KIN = "only_kin"
    OWN_JUDGE = "own_judge"
    JUDGING = "judging"
    JUDGED_BETTER = "judged_better"
    JUDGED_WORSE = "judged_worse"
    JUDGED_UNDECIDED = "judged_undecided"
    ROUND_STOPPED = "round_stopped"
    ROUND_OVER = "round_over"
    BY_HAND = "by_hand"


class GateState(StrEnum):
    """What became of a version at its gate."""

    OPEN = "open"  # nothing had to be shown, or there was nothing to judge by
    WAITING = "waiting"  # for a score run, or for people
    PASSED = "passed"
    REFUSED = "refused"
    FORCED = "forced"  # made live by a person, whatever the gate said


# A gate that was to be asked let a version through unheard; the first of its kind is let through as it should be.
UNJUDGED = {
    Reason.NO_RANKINGS: "no held-out ranking could be judged by",
    Reason.NO_PROMPTS: "there is no held-out prompt to compare versions on",
    Reason.NO_JUDGE: "there is no second reward model",
    Reason.ONLY_KIN: "every other reward model comes, by warm starts, from the same one as its own",
    Reason.OWN_JUDGE: "the judge that the settings name is the reward model that it was trained against",
}


@dataclass(frozen=True)
class Judged:
    """One held-out ranking, and on how many of its pairs the new and the live reward model are right."""

    round: int | None
    prompt: uuid.UUID
    num_pairs: int
    new: float
    live: float


@dataclass(frozen=True)
class Difference:
    """How much more often the new one is right on the rankings of some rounds (none: made elsewhere)."""

    rounds: Sequence[int | None]
    estimate: Estimate

    @property
    def is_no_worse(self) -> bool:
        """Whether a loss of a point or more can be ruled out."""
        return self.estimate.low > TOLERANCE


@dataclass(frozen=True)
class Verdict:
    """Whether a version may go live, why, and the figures that say so."""

    state: GateState
    reason: Reason
    differences: Sequence[Difference] = ()
    newest: Difference | None = None

    def as_json(self) -> dict[str, Any]:
        """As it is kept with the version."""
        return asdict(self)


def judge_reward(rows: Iterable[Judged]) -> Verdict:
    """Whether a new reward model may take the live one's place."""
    rows = list(rows)
    if not rows:
        return Verdict(GateState.OPEN, Reason.NO_RANKINGS)
    differences = [difference(group) for group in groups_of(rows)]
    newest = difference(of_round(rows, newest_round(rows)))
    if not all(item.is_no_worse for item in differences):
        return Verdict(GateState.REFUSED, Reason.MAYBE_WORSE, differences, newest)
    if newest.estimate.value <= 0:
        return Verdict(GateState.REFUSED, Reason.NO_BETTER, differences, newest)
    if num_prompts(rows) < FEWEST_PROMPTS:
        return Verdict(GateState.REFUSED, Reason.FEW_PROMPTS, differences, newest)
    return Verdict(GateState.PASSED, Reason.BETTER, differences, newest)


def newest_round(rows: Sequence[Judged]) -> int | None:
    """The newest round that has a held-out ranking; None where all were made elsewhere."""
    return max((row.round for row in rows if row.round is not None), default=None)


def of_round(rows: Sequence[Judged], number: int | None) -> list[Judged]:
    """The rows of one round."""
    return [row for row in rows if row.round == number]


def groups_of(rows: Sequence[Judged]) -> list[list[Judged]]:
    """The rows of each round, oldest first; rounds with few prompts are one group."""
    by_round: dict[int | None, list[Judged]] = {}
    for row in sorted(rows, key=lambda row: row.round or 0):
        by_round.setdefault(row.round, []).append(row)
    large = [group for group in by_round.values() if num_prompts(group) >= FEW_PROMPTS]
    small = [row for group in by_round.values() if num_prompts(group) < FEW_PROMPTS for row in group]
    return [*large, small] if small else large


def num_prompts(rows: Sequence[Judged]) -> int:
    """How many prompts these rows are of."""
    return len({row.prompt for row in rows})


def difference(rows: Sequence[Judged]) -> Difference:
    """The difference in accuracy on these rankings, prompts resampled."""
    estimate = ratio_over_prompts(
        [row.prompt for row in rows], [row.new - row.live for row in rows], [row.num_pairs for row in rows]
    )
    assert estimate is not None
    return Difference(sorted({row.round for row in rows}, key=lambda number: number or 0), estimate)


def judge_policy(state: str, *, by_people: bool = True) -> Verdict:
    """Whether a new policy may go live, from how its comparison with the live one has ended."""
    verdict = GateState.PASSED if state == "better" else GateState.REFUSED
    if state == "superseded":
        return Verdict(verdict, Reason.ROUND_OVER)
    if by_people or state == "stopped":
        return Verdict(verdict, Reason.PREFERRED if state == "better" else Reason(state))
    return Verdict(verdict, Reason(f"judged_{state}"))
