"""How a comparison ends, decided, stopped or superseded: its figures are fixed, what nobody has ranked is withdrawn."""

from __future__ import annotations

import uuid
from dataclasses import dataclass
from datetime import UTC, datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.audit import audit
from app.errors import Conflict
from app.events import events
from app.loop import service
from app.loop.measuring import measure
from app.loop.models import ComparedPrompt, Comparison, ComparisonState
from app.loop.outcomes import Figures
from app.registry import service as registry
from app.registry.models import Version, VersionKind
from app.registry.service import VersionPromoted
from app.runs import service as runs
from app.tasks import making

OPEN_STATES = (ComparisonState.SAMPLING, ComparisonState.RANKING)
# Ended before anybody knew.
BROKEN_OFF = (ComparisonState.STOPPED, ComparisonState.SUPERSEDED)


class ComparisonClosed(Conflict):
    """This comparison has ended."""


@dataclass(frozen=True)
class ComparisonEnded:
    """A comparison was decided, or stopped."""

    comparison: Comparison


async def close(session: AsyncSession, comparison: Comparison, state: ComparisonState, found: Figures) -> None:
    """End a comparison that the caller has locked by what was found, which may stop the round."""
    # Runs before versions: so a worker that finishes one locks them, too.
    await service.lock_runs(session, comparison.project_id)
    await fix(session, comparison, state, found)


async def fix(session: AsyncSession, comparison: Comparison, state: ComparisonState, found: Figures) -> None:
    """Write down the figures for good, and take back what nobody has ranked."""
    comparison.state, comparison.figures, comparison.closed_at = state, found.as_json(), datetime.now(UTC)
    await session.flush()
    await withdraw_rest(session, comparison)
    version = await registry.get_version(session, comparison.version_id)
    against = await registry.get_version(session, comparison.against_id)
    if comparison.judge_version_id is None:
        keep_win_rate(version, against, found)
        await session.flush()
    await events.publish(session, ComparisonEnded(comparison))


def keep_win_rate(version: Version, against: Version, found: Figures) -> None:
    """Write down how often people prefer a policy to version 1, whichever of the two was named first.

    What is known better stays: the narrower interval. So a second comparison that is broken off at once takes nothing
    away. All intervals hold at every moment; which of several is kept does not depend on who won.
    """
    if found.win_rate is None or 1 not in (version.number, against.number):
        return
    policy, seen = (against, found.turned()) if version.number == 1 else (version, found)
    known = registry.win_rate_of(policy)
    if known is None or seen.high - seen.low <= known["high"] - known["low"]:
        rate = {"value": seen.win_rate, "low": seen.low, "high": seen.high, "num_prompts": seen.num_ranked}
        policy.metrics = {**policy.metrics, "win_rate": rate}


async def withdraw_rest(session: AsyncSession, comparison: Comparison) -> None:
    """Hand out no more what nobody has ranked."""
    query = select(ComparedPrompt.task_id).where(
        ComparedPrompt.comparison_id == comparison.id, ComparedPrompt.task_id.is_not(None)
    )
    await making.withdraw_unranked(session, [key for key in await session.scalars(query) if key is not None])


async def stop(session: AsyncSession, comparison: Comparison, *, actor_id: uuid.UUID | None = None) -> None:
    """End a comparison by hand. What was ranked stays, and is shown.

    Raises:
        ComparisonClosed: it has ended.
    """
    # Runs before their comparison: so a worker that finishes one locks them, too.
    for run_id in (comparison.version_run_id, comparison.against_run_id):
        await runs.cancel(session, run_id=run_id)
    await session.refresh(comparison, with_for_update=True)
    if comparison.state not in OPEN_STATES:
        raise ComparisonClosed
    await close(session, comparison, ComparisonState.STOPPED, await measure(session, comparison))
    await audit(session, actor_id=actor_id, action="comparison.stop", subject=str(comparison.id))


# When nobody asks any more


async def version_promoted(session: AsyncSession, event: VersionPromoted) -> None:
    """A policy goes live: end the comparisons that nobody began and that are about neither it nor against it.

    What is locked is being ranked or sampled right now, and who holds it may wait for the caller: it is left alone, and
    ends with that run, or with the next ranking.
    """
    live = event.version
    if live.kind != VersionKind.POLICY:
        return
    query = select(Comparison).where(
        Comparison.project_id == live.project_id,
        Comparison.state.in_(OPEN_STATES),
        Comparison.created_by.is_(None),
        Comparison.version_id != live.id,
        Comparison.against_id != live.id,
    )
    query = query.order_by(Comparison.number).execution_options(populate_existing=True)
    for comparison in (await session.scalars(query.with_for_update(skip_locked=True))).all():
        await supersede(session, comparison, live)


async def successor(session: AsyncSession, comparison: Comparison) -> Version | None:
    """The live policy, where a comparison that nobody began is about neither it nor against it."""
    if comparison.created_by is not None:
        return None
    live = await registry.live_version(session, project_id=comparison.project_id, kind=VersionKind.POLICY)
    is_about_it = live is None or live.id in (comparison.version_id, comparison.against_id)
    return None if is_about_it else live


async def supersede(session: AsyncSession, comparison: Comparison, live: Version) -> None:
    """End a comparison that the caller has locked. What was ranked stays, and is shown."""
    await runs.cancel_idle(session, run_ids=(comparison.version_run_id, comparison.against_run_id))
    found = await measure(session, comparison)
    comparison.superseded_by_id = live.id
    await fix(session, comparison, ComparisonState.SUPERSEDED, found)
    await audit(session, actor_id=None, action="comparison.supersede", subject=str(comparison.id), version=live.number)
