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
from app.projects.service import get_project
from app.registry import service as registry
from app.registry.models import Version, VersionKind
from app.runs import service as runs


async def comparison_ended(session: AsyncSession, event: ComparisonEnded) -> None:
    """People were asked about the policy that answers now: does its round go on?"""
    comparison = event.comparison
    now = await service.current_round(session, await get_project(session, comparison.project_id))
    # Of what is superseded, the round ends anyhow: another policy goes live.
    is_open = comparison.state != ComparisonState.SUPERSEDED and not now.stopped
    is_about_it = comparison.version_id == now.policy_version_id and comparison.judge_version_id is None
    reason = await reason_to_stop(session, comparison) if is_about_it and is_open else None
    if reason is not None:
        await stop(session, now, reason)


async def reason_to_stop(session: AsyncSession, comparison: Comparison) -> dict[str, Any] | None:
    """What speaks against a policy: the other one was preferred, or one before it was surely liked better."""
    version = await registry.get_version(session, comparison.version_id)
    against = await registry.get_version(session, comparison.against_id)
    if comparison.state == ComparisonState.WORSE:
        figures = comparison.figures
        rate = {name: figures.get(source) for name, source in (("value", "win_rate"), ("low", "low"), ("high", "high"))}
        return {"why": "worse", "number": version.number, "best": against.number, "win_rate": rate}
    if against.number != 1 or not version.metrics.get("win_rate"):
        return None
    versions = await registry.list_versions(session, comparison.project_id)
    best = best_liked([item for item in versions if item.id != version.id])
    if best is None or version.metrics["win_rate"]["high"] >= best.metrics["win_rate"]["low"]:
        return None
    rates = {"win_rate": version.metrics["win_rate"], "best_rate": best.metrics["win_rate"]}
    return {"why": "fell", "number": version.number, "best": best.number, **rates}


def best_liked(versions: list[Version]) -> Version | None:
    """The policy that people surely prefer to version 1 most often: the highest lower bound."""
    known = [item for item in versions if item.kind == VersionKind.POLICY and item.metrics.get("win_rate")]
    return max(known, key=lambda item: float(item.metrics["win_rate"]["low"]), default=None)


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
