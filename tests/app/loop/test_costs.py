"""What rounds cost: sums by hand, and what is not known."""

from __future__ import annotations

import csv
import io
import math
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from httpx import AsyncClient
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession

from app.loop import service
from app.loop.cost_pages import POINT, points_of
from app.loop.costs import Amount, cost_of, gain_of, per_point, times_of
from app.loop.models import Round
from app.plots import Measured
from app.registry.models import Version
from app.registry.service import base_version
from app.runs.models import RunState
from app.tasks.models import Lease, Purpose, Task
from tests.factories import make_project, make_prompt, make_ranking, make_run, make_task, sign_in


def version(number: int, rate: tuple[float, float, float] | None) -> Version:
    metrics = {"win_rate": dict(zip(("value", "low", "high"), rate, strict=True))} if rate else {}
    return Version(id=uuid.UUID(int=number), number=number, metrics=metrics)


def a_round(before: Version, after: Version) -> Round:
    return Round(number=1, policy_version_id=before.id, next_version_id=after.id)


def test_four_rankings_of_which_two_were_timed() -> None:
    """Half a minute and one and a half: four take about four minutes, give or take 1.96 standard errors."""
    timed = (4, 2, 60.0, math.sqrt(1800))
    cost = cost_of(Round(number=1), timed, 30.0, Amount(10.0, 5.0, 20.0))
    assert cost.human_minutes is not None
    assert cost.human_minutes.value == pytest.approx(4.0)
    assert cost.human_minutes.high == pytest.approx(4 * (60 + 1.96 * 30) / 60)
    assert cost.worker_per_point == Amount(3.0, 1.5, 6.0)
    assert cost.human_per_point is not None
    assert cost.human_per_point.value == pytest.approx(0.4)


def test_the_first_round_begins_at_one_half_and_the_next_where_it_ended() -> None:
    base, second, third = version(1, None), version(3, (0.6, 0.5, 0.7)), version(5, (0.7, 0.6, 0.8))
    versions = {item.id: item for item in (base, second, third)}
    first = gain_of(a_round(base, second), versions)
    assert first is not None
    assert (first.value, first.low, first.high) == pytest.approx((10, 0, 20))
    later = gain_of(a_round(second, third), versions)
    assert later is not None
    assert (later.value, later.low, later.high) == pytest.approx(
        (10, 10 - 100 * math.hypot(0.1, 0.1), 10 + 100 * math.hypot(0.1, 0.1))
    )
    assert gain_of(a_round(base, version(7, None)), versions | {uuid.UUID(int=7): version(7, None)}) is None


def test_a_win_rate_that_came_with_a_version_from_elsewhere_is_no_gain() -> None:
    """Its metrics are whatever somebody sent (docs/api.md, 7)."""
    base, theirs = version(1, None), version(3, None)
    theirs.metrics = {"win_rate": 0.58}
    assert gain_of(a_round(base, theirs), {item.id: item for item in (base, theirs)}) is None


def test_no_gain_has_no_price_and_a_doubtful_one_no_upper_bound() -> None:
    assert per_point(Amount(60, 50, 70), Amount(-1, -5, 3)) is None
    assert per_point(Amount(60, 50, 70), None) is None
    doubtful = per_point(Amount(60, 50, 70), Amount(5, -5, 10))
    assert doubtful == Amount(12, 5, None)


def test_a_point_goes_out_with_its_interval_where_that_is_known() -> None:
    plots = {"wins": {"wins": [Measured(1.0, 0.7, 0.6, 0.8)]}, "kl": {"objective/kl": [(4.0, 2.0)]}}
    measured, plain = points_of(plots)
    assert [measured[name] for name in POINT] == ["wins", "wins", 1.0, 0.7, 0.6, 0.8]
    assert plain == {"plot": "kl", "series": "objective/kl", "x": 4.0, "y": 2.0}


async def test_rankings_of_a_comparison_count_in_the_round_in_which_they_were_made(session: AsyncSession) -> None:
    """They buy the win rate that the other columns divide by. What is of no round for other reasons stays out."""
    project = await make_project(session)
    now = await service.current_round(session, project)
    now.created_at = datetime.now(UTC) - timedelta(hours=2)
    prompt = await make_prompt(session, project, split="test")
    for purpose in (Purpose.COMPARE, Purpose.LEARN):
        await make_ranking(session, await make_task(session, prompt, k=2, purpose=purpose), active_seconds=60)
    assert {number: row[0] for number, row in (await times_of(session, project)).items()} == {1: 1}
    await service.open_round(session, project_id=project.id, number=2, policy=await base_version(session, project.id))
    await make_ranking(session, await make_task(session, prompt, k=2, purpose=Purpose.COMPARE))
    # In one transaction all moments are one: the second round has begun before both.
    assert {number: row[0] for number, row in (await times_of(session, project)).items()} == {2: 2}


async def test_the_page_and_its_files_say_the_same(client: AsyncClient, session: AsyncSession) -> None:
    await sign_in(client, session)
    project = await make_project(session)
    begun = datetime.now(UTC) - timedelta(hours=1)
    now = await service.current_round(session, project)
    now.created_at = begun
    for seconds in (30, 90):
        task = await make_task(session, None, k=2, round=1)
        await session.execute(update(Task).where(Task.id == task.id).values(project_id=project.id))
        ranking = await make_ranking(session, task, active_seconds=seconds, project_id=project.id)
        await session.execute(update(Lease).where(Lease.id == ranking.lease_id).values(created_at=begun))
    started = begun + timedelta(minutes=10)
    ended = {"state": RunState.FINISHED, "started_at": started, "finished_at": started + timedelta(minutes=6)}
    await make_run(session, project, **ended)
    await make_run(session, project, **ended)
    await session.commit()
    page = await client.get(f"/projects/{project.slug}/costs")
    assert page.status_code == 200
    (row,) = (await client.get(f"/projects/{project.slug}/costs.json")).json()
    assert (row["num_rankings"], row["num_timed"], row["worker_minutes"]) == (2, 2, 12.0)
    assert row["human_minutes"] == pytest.approx(2.0)
    assert row["gain"] is None
    answer = await client.get(f"/projects/{project.slug}/costs.csv")
    (cells,) = list(csv.DictReader(io.StringIO(answer.text)))
    assert (cells["round"], cells["gain"]) == ("1", "")
    assert float(cells["human_minutes"]) == pytest.approx(2.0)
    assert (await client.get(f"/projects/{project.slug}/watch.json")).json() == {}
    assert (await client.get(f"/projects/{project.slug}/watch.csv")).text == "plot,series,x,y,low,high\r\n"
    assert (await client.get(f"/projects/{project.slug}/rounds")).status_code == 200
