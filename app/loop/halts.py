"""People have the last word: a round stops when they like its policy less than an earlier one, whatever rewards say.

What a round trains and samples is stopped with it, and nothing starts in it any more. An admin goes on by making a
version live: an earlier one (a rollback), or the same one again, with a reason.
"""

from __future__ import annotations

from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.audit import audit
from app.loop import service
from app.loop.ending import ComparisonEnded
from app.loop.models import Comparison, ComparisonState, Round
from app.loop.outcomes import Figures
from app.projects.service import get_project
from app.registry import service as registry
from app.registry.models import Version
from app.runs import service as runs


async def comparison_ended(session: AsyncSession, event: ComparisonEnded) -> None:
    """People were asked about the policy that answers now: does its round go on?"""
    comparison = event.comparison
    now = await service.current_round(session, await get_project(session, comparison.project_id))
    # Of what is superseded, the round ends anyhow: another policy goes live.
    is_open = comparison.state != ComparisonState.SUPERSEDED and not now.stopped
    is_about_it = now.policy_version_id in (comparison.version_id, comparison.against_id)
    if is_open and is_about_it and comparison.judge_version_id is None:
        policy = await registry.get_version(session, now.policy_version_id)
        reason = await reason_to_stop(session, comparison, policy)
        if reason is not None:
            await stop(session, now, reason)


async def reason_to_stop(session: AsyncSession, comparison: Comparison, policy: Version) -> dict[str, Any] | None:
    """What speaks against a policy, whichever of the two was named first: the other one was preferred, or one before it
    was surely liked better.
    """
    is_named_first = comparison.version_id == policy.id
    other = await registry.get_version(session, comparison.against_id if is_named_first else comparison.version_id)
    if is_preferred(comparison, other, policy):
        figures = Figures.of_json(comparison.figures)
        found = figures if is_named_first else figures.turned()
        rate = {"value": found.win_rate, "low": found.low, "high": found.high}
        return {"why": "worse", "number": policy.number, "best": other.number, "win_rate": rate}
    own = registry.win_rate_of(policy)
    if other.number != 1 or own is None:
        return None
    versions = await registry.list_versions(session, comparison.project_id)
    best = best_liked([item for item in versions if item.id != policy.id])
    best_rate = registry.win_rate_of(best) if best else None
    if best is None or best_rate is None or own["high"] >= best_rate["low"]:
        return None
    return {"why": "fell", "number": policy.number, "best": best.number, "win_rate": own, "best_rate": best_rate}


def is_preferred(comparison: Comparison, other: Version, policy: Version) -> bool:
    """Whether people prefer the other one. A newer one that was asked about is what the loop is for: it goes live."""
    if comparison.version_id == policy.id:
        return comparison.state == ComparisonState.WORSE
    return comparison.state == ComparisonState.BETTER and other.number < policy.number


def best_liked(versions: list[Version]) -> Version | None:
    """The policy that people surely prefer to version 1 most often: the highest lower bound."""
    lows = [(rate["low"], item) for item in versions if (rate := registry.win_rate_of(item))]
    return max(lows, key=lambda pair: pair[0], default=(0.0, None))[1]


async def stop(session: AsyncSession, now: Round, reason: dict[str, Any]) -> None:
    """Stop a round and what runs in it; the reason stays with it. One that ended meanwhile stays as it is."""
    # Runs before their round: so a worker that finishes one locks them, too.
    await cancel_runs(session, now)
    await session.refresh(now, with_for_update=True)
    if now.closed_at is not None:
        return
    # What began while we waited. A worker that ends it all the same finds the round stopped.
    await cancel_runs(session, now)
    now.stopped = reason
    await session.flush()
    await audit(session, actor_id=None, action="round.stop", subject=str(now.id), **reason)


async def cancel_runs(session: AsyncSession, now: Round) -> None:
    """Nothing of this round waits or goes on."""
    # In the order of `service.lock_runs`.
    for run_id in (now.policy_run_id, now.reward_run_id, now.sample_run_id):
        if run_id is not None:
            await runs.cancel(session, run_id=run_id)
