"""Is the policy getting better for people, or only for its reward model? And what was ranked first? Reads only."""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import at_most
from app.loop import learning
from app.plots import Measured, Plot, Point, Series, line_plot
from app.projects.models import Project
from app.quality.agreement import Estimate
from app.quality.reading import SCANNED
from app.quality.sequences import ratio_over_prompts
from app.rankings.models import Ranking, RankingPlace
from app.rankings.service import is_current
from app.registry import service as registry
from app.registry.models import Version, VersionKind
from app.runs import service as runs
from app.tasks.models import Lease, Task

Reported = Mapping[str, Sequence[tuple[int, float]]]
# What PPO reports, in the order of the page.
WATCHED = {
    "scores": ("objective/reward", "guard/score"),
    "kl": ("objective/kl",),
    "length": ("objective/length",),
    "entropy": ("objective/entropy",),
    "pretraining": ("ppo/ptx/loss",),
    "tax": ("tax/loss", "tax/reference_loss"),
}
# So many of the newest policies have a drawing of their own.
MOST_DRAWN = 3
# What was ranked by choice is looked at in so many of the newest rankings.
MOST_CHOSEN = 4_000


@dataclass(frozen=True)
class Choice:
    """Tasks that came first for one reason, and how often their reward model was right before anybody had ranked."""

    chosen_by: str
    num_rankings: int
    right: Estimate | None
    """Of the pairs that people ordered, the share that it ordered alike."""


@dataclass(frozen=True)
class PolicyLine:
    """The policies that PPO made, one after another, with all that was measured of them."""

    versions: Sequence[Version]
    plots: Mapping[str, Plot]
    """`wins` (over the root of KL), and those of `WATCHED` over all episodes."""
    gao: Sequence[tuple[Version, Plot]]
    """Scores over the root of KL of the newest policies, the newest first: each has a reward model and a scale of its
    own."""
    series: Mapping[str, Series]
    """All of it as points; Gao's of every policy."""


async def policy_line(session: AsyncSession, project: Project) -> PolicyLine:
    """Every policy that came out of PPO, oldest first, as one line of episodes."""
    versions = [
        version
        for version in reversed(await registry.list_versions(session, project.id))
        if version.kind == VersionKind.POLICY and version.reward_version_id is not None and version.run_id is not None
    ]
    curves_of = [await runs.list_metrics(session, version.run_id) for version in versions if version.run_id]
    series: dict[str, Series] = {"wins": {"wins": wins(versions)}}
    for name, metrics in WATCHED.items():
        series[name] = {metric: one_after_another(metric, curves_of) for metric in metrics}
    gao = {version: scores_over_root_kl(reported) for version, reported in zip(versions, curves_of, strict=True)}
    plots = {name: line_plot(name, lines) for name, lines in series.items()}
    drawn = [(version, line_plot("gao", lines)) for version, lines in reversed(gao.items())]
    return PolicyLine(
        versions,
        {name: plot for name, plot in plots.items() if plot is not None},
        [(version, plot) for version, plot in drawn if plot is not None][:MOST_DRAWN],
        series | {f"gao v{version.number}": lines for version, lines in gao.items()},
    )


async def all_series(session: AsyncSession, project: Project) -> dict[str, Series]:
    """The points of every plot of the page that have any."""
    found = dict((await policy_line(session, project)).series)
    found["learning"] = learning.series_of(learning.grounds_of(await registry.list_versions(session, project.id)))
    return {name: lines for name, lines in found.items() if any(lines.values())}


def one_after_another(metric: str, curves_of: Sequence[Reported]) -> list[Point]:
    """A metric over the episodes of several runs, each beginning where the one before ended."""
    points: list[Point] = []
    done = 0.0
    for reported in curves_of:
        points += [(done + step, value) for step, value in reported.get(metric, ())]
        done += max((step for curve in reported.values() for step, _ in curve), default=0)
    return points


def scores_over_root_kl(reported: Reported) -> Series:
    """One run's scores over the root of the KL, step by step."""
    kl = reported.get("objective/kl", ())
    return {metric: over_root_kl(reported.get(metric, ()), kl) for metric in WATCHED["scores"]}


def over_root_kl(values: Sequence[tuple[int, float]], kl: Sequence[tuple[int, float]]) -> list[Point]:
    """(root of the KL, value) of each step that has both: the axes of Gao et al. (arXiv 2210.10760, figure 1)."""
    at = dict(kl)
    return [(math.sqrt(max(0.0, at[step])), value) for step, value in values if step in at]


def wins(versions: Sequence[Version]) -> list[Measured]:
    """(root of the KL, win rate over the SFT policy as people see it) of the versions that people compared."""
    return [
        Measured(math.sqrt(max(0.0, version.metrics["kl"])), rate["value"], rate["low"], rate["high"])
        for version in versions
        if version.metrics.get("kl") is not None and (rate := registry.win_rate_of(version))
    ]


async def choices(session: AsyncSession, project: Project) -> list[Choice]:
    """What came of the ways to choose: the more a ranking teaches, the more often it contradicts the reward model.

    Those at random say, without bias, how good the reward model is on what it was not trained on.
    """
    ordered = func.array_agg(RankingPlace.completion_id), func.array_agg(RankingPlace.place)
    newest = select(Ranking.id).where(Ranking.project_id == project.id).order_by(Ranking.number.desc())
    query = (
        select(Task.chosen_by, Task.prompt_id, Task.judged_order, *ordered)
        .join(Ranking, Ranking.task_id == Task.id)
        .join(RankingPlace, RankingPlace.ranking_id == Ranking.id)
        # Whoever was shown the model's order may have followed it.
        .join(Lease, (Lease.id == Ranking.lease_id) & ~Lease.is_assisted)
        .where(
            Ranking.id.in_(newest.limit(at_most(SCANNED))), Task.judged_order.is_not(None), is_current(), ~Task.is_gold
        )
        .group_by(Task.id, Ranking.id)
        .order_by(Ranking.number.desc())
        .limit(at_most(MOST_CHOSEN))
    )
    said: dict[str, list[tuple[uuid.UUID, int, int]]] = {}
    for way, prompt_id, order, answers, places in await session.execute(query):
        pairs = agreed(order or (), dict(zip(answers, places, strict=True)))
        said.setdefault(way, []).append((prompt_id, *pairs))
    return [
        Choice(way, len(rows), ratio_over_prompts(*(list(column) for column in zip(*rows, strict=True))))
        for way, rows in sorted(said.items())
    ]


def agreed(order: Sequence[uuid.UUID], places: Mapping[uuid.UUID, int | None]) -> tuple[int, int]:
    """(pairs that an order and a person's places have alike, pairs that the person ordered)."""
    here = [place for answer in order if (place := places.get(answer)) is not None]
    pairs = [(one, other) for at, one in enumerate(here) for other in here[at + 1 :] if one != other]
    return sum(one < other for one, other in pairs), len(pairs)
