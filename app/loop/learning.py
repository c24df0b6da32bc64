"""Are more rankings worth it? How often the reward models are right, over the rankings they learned from. Reads only.

Each round's answers are harder to tell apart than the last one's, and so are the rankings held out of them. So
accuracies are compared on the answers of one policy at a time, of which every reward model tells since (docs/loop.md).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.loop.models import Round
from app.plots import Measured, Plot, Series, line_plot
from app.projects.models import Project
from app.quality import curves
from app.quality import service as quality
from app.quality.agreement import Estimate
from app.quality.curves import Curve
from app.registry import service as registry
from app.registry.models import Version, VersionKind

Words = dict[str, Any]
MOST_OTHERS = 2
"""So many of the newest policies are drawn beside the one that is fitted."""


@dataclass(frozen=True)
class Ground:
    """What reward models, the oldest first, were worth on the held-out rankings of one policy's answers."""

    policy: Version | None
    """None where no reward model knows who wrote the answers, as imported ones: then each was asked about all rankings
    that were held out in its own time."""
    points: Sequence[curves.Point]

    @property
    def name(self) -> str:
        """What a download calls it."""
        return f"policy v{self.policy.number}" if self.policy else "all"


@dataclass(frozen=True)
class LearningCurve:
    """Held-out accuracy of the reward models over their rankings, how often people agree, and a forecast."""

    grounds: Sequence[Ground]
    """The oldest policy first."""
    fitted: Ground | None
    """The one that `ceiling` and `curve` are of: about which most reward models were asked."""
    ceiling: Estimate | None
    """How often two people agree on that policy's answers."""
    curve: Curve | None
    plot: Plot | None


async def learning_curve(session: AsyncSession, project: Project, words: Words) -> LearningCurve:
    """What each reward model learned from how many rankings, and what twice as many would bring."""
    grounds = grounds_of(await registry.list_versions(session, project.id))
    if not grounds:
        return LearningCurve((), None, None, None, None)
    fitted = max(grounds, key=lambda ground: (len(ground.points), ground.policy.number if ground.policy else 0))
    ceiling = await agreement_on(session, project, fitted)
    curve = curves.fit(fitted.points)
    plot = curve_plot(fitted, beside(fitted, grounds), ceiling, curve, words)
    return LearningCurve(grounds, fitted, ceiling, curve, plot)


def beside(fitted: Ground, grounds: Sequence[Ground]) -> list[Ground]:
    """The newest of the other grounds; a single point shows no way."""
    return [ground for ground in grounds if ground is not fitted and len(ground.points) > 1][-MOST_OTHERS:]


def grounds_of(versions: Sequence[Version]) -> list[Ground]:
    """The points of a project's reward models by policy; `versions` are newest first."""
    oldest_first = list(reversed(versions))
    rewards = [one for one in oldest_first if one.kind == VersionKind.REWARD and one.metrics.get("num_rankings")]
    found: dict[str, list[curves.Point]] = {}
    for reward in rewards:
        for row in (reward.metrics.get("report") or {}).get("by_policies", ()):
            one, other = row["policies"]
            if one == other:
                found.setdefault(one, []).append(point_of(reward, row))
    known = [Ground(policy, found[str(policy.id)]) for policy in oldest_first if str(policy.id) in found]
    whole = [point_of(reward, reward.metrics["accuracy"]) for reward in rewards if reward.metrics.get("accuracy")]
    return known or ([Ground(None, whole)] if whole else [])


def point_of(reward: Version, accuracy: Mapping[str, Any]) -> curves.Point:
    """A reward model's accuracy on some rankings."""
    num_rankings = int(reward.metrics["num_rankings"])
    return curves.Point(num_rankings, accuracy["value"], accuracy["low"], accuracy["high"])


async def agreement_on(session: AsyncSession, project: Project, ground: Ground) -> Estimate | None:
    """How often two people put two answers of this policy in the same order, in the newest round that it answered."""
    found = await quality.usual_overview(session, project)
    if ground.policy is None:
        return found.everything.without_ties
    answered = select(Round.number).where(Round.project_id == project.id, Round.policy_version_id == ground.policy.id)
    rounds = (await session.scalars(answered)).all()
    return next((part.without_ties for number, part in reversed(found.by_round) if number in rounds), None)


def series_of(grounds: Sequence[Ground]) -> dict[str, Sequence[Measured]]:
    """The points of the grounds, by name."""
    return {ground.name: measured(ground) for ground in grounds}


def measured(ground: Ground) -> list[Measured]:
    """The points of a ground as a plot takes them."""
    return [Measured(point.num_rankings, point.accuracy, point.low, point.high) for point in ground.points]


def curve_plot(
    fitted: Ground, others: Sequence[Ground], ceiling: Estimate | None, curve: Curve | None, words: Words
) -> Plot | None:
    """Measured accuracies, dashed the fit, and what people reach; thin, those on other policies' answers."""
    drawn: dict[str, Sequence[Any]] = {name_of(fitted, words): measured(fitted)}
    first, last = (fitted.points[index].num_rankings for index in (0, -1))
    if curve:
        last = curve.next_num
        end = Measured(curve.next_num, curve.forecast, curve.forecast_low, curve.forecast_high)
        drawn[words["_"]("fitted")] = [*curve.line[:-1], end]
    if ceiling:
        drawn[words["_"]("people")] = [Measured(x, ceiling.value, ceiling.low, ceiling.high) for x in (first, last)]
    series: Series = drawn | {name_of(ground, words): measured(ground) for ground in others}
    return line_plot("curve", series)


def name_of(ground: Ground, words: Words) -> str:
    """What a page calls a ground."""
    text: str = words["_"]("policy v{number}", number=ground.policy.number) if ground.policy else words["_"]("measured")
    return text
