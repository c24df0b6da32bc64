"""What rounds cost, and what it bought: minutes of people and of workers, by themselves and a point of win rate. Reads
only.
"""

from __future__ import annotations

import math
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from sqlalchemy import ColumnElement, case, extract, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.loop import service
from app.loop.models import Round
from app.projects.models import Project
from app.quality.reading import seconds
from app.rankings.models import Ranking
from app.registry import service as registry
from app.registry.models import Version
from app.runs.models import Run
from app.tasks.models import Lease, Purpose, Task

Z_95 = 1.96
# Version 1 against itself.
EVEN = {"value": 0.5, "low": 0.5, "high": 0.5}


@dataclass(frozen=True)
class Amount:
    """A figure with its 95 % interval; a bound that nothing is known of is null."""

    value: float
    low: float | None
    high: float | None


@dataclass(frozen=True)
class RoundCost:
    """One round: what went in, what came out."""

    number: int
    num_rankings: int
    num_timed: int
    """Rankings of which it is known how long they took."""
    human_minutes: Amount | None
    """Of all rankings: those that nobody timed count as the mean of the others, whose spread is the interval."""
    worker_minutes: float
    """Of all runs that were begun in the round."""
    gain: Amount | None
    """Points of win rate over version 1 that the round's policy has over the one before, where people compared both."""
    human_per_point: Amount | None
    worker_per_point: Amount | None


async def costs_of(session: AsyncSession, project: Project) -> list[RoundCost]:
    """Every round, newest first."""
    rounds = list(reversed(await service.list_rounds(session, project.id)))
    timed = await times_of(session, project)
    spent = await worker_minutes(session, project, rounds)
    versions = {version.id: version for version in await registry.list_versions(session, project.id)}
    found = [
        cost_of(item, timed.get(item.number, (0, 0, 0.0, 0.0)), spent[item.number], gain_of(item, versions))
        for item in rounds
    ]
    return found[::-1]


async def times_of(session: AsyncSession, project: Project) -> dict[int, tuple[int, int, float, float]]:
    """round -> (rankings, those that were timed, mean of their seconds, standard deviation)."""
    taken = seconds()
    its_round = round_of_ranking().label("round")
    query = (
        select(its_round, func.count(), func.count(taken), func.avg(taken), func.stddev_samp(taken))
        .select_from(Ranking)
        .join(Task, Task.id == Ranking.task_id)
        .outerjoin(Lease, Lease.id == Ranking.lease_id)
        .where(Ranking.project_id == project.id, Ranking.supersedes_id.is_(None), round_of_ranking().is_not(None))
        .group_by(its_round)
    )
    return {
        number: (num, timed, float(mean or 0), float(deviation or 0))
        for number, num, timed, mean, deviation in await session.execute(query)
    }


def round_of_ranking() -> ColumnElement[int | None]:
    """The round that a ranking was made for. Comparisons are of no round, but buy the win rate: theirs count in the
    current one, as the runs that answered do.
    """
    current = select(func.max(Round.number)).where(
        Round.project_id == Ranking.project_id, Round.created_at <= Ranking.created_at
    )
    compared = case((Task.purpose == Purpose.COMPARE, current.correlate(Ranking).scalar_subquery()))
    return func.coalesce(Task.round, compared)


async def worker_minutes(session: AsyncSession, project: Project, rounds: Sequence[Round]) -> dict[int, float]:
    """round -> minutes from the first claim to the end of the runs that were queued while it was the current one."""
    lasted = extract("epoch", func.coalesce(Run.finished_at, func.now()) - Run.started_at)
    query = select(Run.created_at, lasted).where(Run.project_id == project.id, Run.started_at.is_not(None))
    spent = dict.fromkeys((item.number for item in rounds), 0.0)
    for created_at, taken in await session.execute(query):
        begun = [item.number for item in rounds if item.created_at <= created_at]
        if begun:
            spent[begun[-1]] += float(taken) / 60
    return spent


def gain_of(item: Round, versions: Mapping[uuid.UUID, Version]) -> Amount | None:
    """In points of win rate over version 1; the two intervals are of different prompts and people, so they add up."""
    after = registry.win_rate_of(versions[item.next_version_id]) if item.next_version_id else None
    policy = versions[item.policy_version_id]
    before = EVEN if policy.number == 1 else registry.win_rate_of(policy)
    if not after or not before:
        return None
    value = after["value"] - before["value"]
    below = math.hypot(after["value"] - after["low"], before["high"] - before["value"])
    above = math.hypot(after["high"] - after["value"], before["value"] - before["low"])
    return Amount(100 * value, 100 * (value - below), 100 * (value + above))


def cost_of(item: Round, timed: tuple[int, int, float, float], worker: float, gain: Amount | None) -> RoundCost:
    """One round's figures."""
    num, num_timed, mean, deviation = timed
    human = None
    if num_timed:
        half = Z_95 * deviation / math.sqrt(num_timed) if num_timed > 1 else math.inf
        human = Amount(num * mean / 60, num * max(0.0, mean - half) / 60, finite(num * (mean + half) / 60))
    return RoundCost(
        number=item.number,
        num_rankings=num,
        num_timed=num_timed,
        human_minutes=human,
        worker_minutes=worker,
        gain=gain,
        human_per_point=per_point(human, gain) if human else None,
        worker_per_point=per_point(Amount(worker, worker, worker), gain),
    )


def per_point(minutes: Amount, gain: Amount | None) -> Amount | None:
    """Minutes a point gained; nothing where none was, and no upper bound where perhaps none was."""
    if gain is None or gain.value <= 0:
        return None
    assert gain.low is not None
    assert gain.high is not None
    high = minutes.high / gain.low if gain.low > 0 and minutes.high is not None else None
    return Amount(minutes.value / gain.value, (minutes.low or 0.0) / gain.high, high)


def finite(value: float) -> float | None:
    """The number, or nothing where it has no end."""
    return value if math.isfinite(value) else None


# As data

COLUMNS = ("round", "num_rankings", "num_timed", "worker_minutes")
AMOUNTS = ("human_minutes", "gain", "human_per_point", "worker_per_point")


def rows_of(costs: Sequence[RoundCost]) -> list[dict[str, Any]]:
    """Flat rows, for CSV and JSON."""
    rows = []
    for cost in costs:
        told = asdict(cost)
        row = {"round": told.pop("number"), **{name: told[name] for name in COLUMNS[1:]}}
        for name in AMOUNTS:
            row |= {f"{name}{end}": (told[name] or {}).get(part) for part, end in PARTS.items()}
        rows.append(row)
    return rows


PARTS = {"value": "", "low": "_low", "high": "_high"}
ALL_COLUMNS = [*COLUMNS, *(f"{name}{end}" for name in AMOUNTS for end in PARTS.values())]
