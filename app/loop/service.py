"""Rounds: which policy answers, what was trained in them, and which version is live.

    sample run -> tasks -> rankings -> dataset -> reward run -> reward version -> ppo run -> policy version -> next
    round

Each arrow is a function of `sampling` or `training`. What follows from a run is queued in the transaction that ends
it, so no step is ever lost between two.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import case, func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.datasets.models import DatasetRow
from app.errors import Conflict, Invalid
from app.loop.models import Round
from app.projects.models import Project
from app.projects.service import ProjectCreated
from app.prompts.models import Prompt
from app.registry import service as registry
from app.registry.models import Version, VersionKind
from app.runs import service as runs
from app.runs.models import Run, RunKind, RunState


class RoundStopped(Conflict):
    """People like an earlier policy better: this round has stopped. Make a version live, and the next one begins."""


class RoundChanging(Conflict):
    """The current round is changing at this moment. Try again."""


def require_going(now: Round) -> None:
    """Refuse to begin anything in a round that stopped.

    Raises:
        RoundStopped: people said so.
    """
    if now.stopped:
        raise RoundStopped


async def begin(session: AsyncSession, event: ProjectCreated) -> None:
    """A new project's version 1 is the model that it names, and answers in its first round."""
    project = event.project
    policy = await registry.register_base(session, project_id=project.id, alias=project.model_alias)
    await open_round(session, project_id=project.id, number=1, policy=policy)


async def current_round(session: AsyncSession, project: Project) -> Round:
    """The newest round of a project."""
    newest = select(Round).where(Round.project_id == project.id).order_by(Round.number.desc()).limit(1)
    return (await session.scalars(newest)).one()


async def lock_round(session: AsyncSession, project: Project, *, waits: bool = True) -> Round:
    """The newest round, locked: of two who begin something in it at once, one waits, and sees what the other began.

    Args:
        waits: for whoever holds it. Not if the caller has locked the project: who ends a round asks for that then.

    Raises:
        RoundChanging: somebody holds it, and the caller does not wait.
    """
    newest = select(Round).where(Round.project_id == project.id).order_by(Round.number.desc()).limit(1)
    newest = newest.with_for_update(skip_locked=not waits).execution_options(populate_existing=True)
    await session.execute(newest)
    # Once more: whoever was waited for may have ended that round and begun the next one.
    now = (await session.scalars(newest)).one_or_none()
    if now is None:
        raise RoundChanging
    return now


async def lock_runs(session: AsyncSession, project_id: uuid.UUID) -> None:
    """Wait for who ends a run of the newest round right now: what follows from that is known then."""
    newest = select(Round).where(Round.project_id == project_id).order_by(Round.number.desc()).limit(1).subquery()
    its_runs = (newest.c.sample_run_id, newest.c.reward_run_id, newest.c.policy_run_id)
    # Sampling last: a worker that ends a PPO run ends the round, and with it what the round still samples.
    place = case({RunKind.PPO: 0, RunKind.REWARD: 1}, value=Run.kind, else_=2)
    query = select(Run.id).join(newest, Run.id.in_(its_runs)).order_by(place)
    await session.execute(query.with_for_update(of=Run))


async def open_round(session: AsyncSession, *, project_id: uuid.UUID, number: int, policy: Version) -> Round:
    """Begin a round with the policy that answers in it."""
    begun = Round(project_id=project_id, number=number, policy_version_id=policy.id)
    session.add(begun)
    await session.flush()
    return begun


async def end_round(session: AsyncSession, now: Round) -> None:
    """Another policy answers from here on: nothing more is sampled for this round. The answers that are here stay, and
    so do their tasks and rankings.

    A worker that samples is not asked to stop, as the next policy would have to wait until it hears that: the run is
    over, and what it still delivers is refused.
    """
    now.closed_at = func.now()
    is_open = (Run.kind == RunKind.SAMPLE, Run.state.in_(runs.OPEN_STATES))
    query = select(Run).where(Run.project_id == now.project_id, *is_open).order_by(Run.id)
    query = query.with_for_update().execution_options(populate_existing=True)
    for run in (await session.scalars(query)).all():
        await runs.end(session, run, state=RunState.CANCELLED, error="Its round is over: another policy answers now.")


async def list_rounds(session: AsyncSession, project_id: uuid.UUID) -> Sequence[Round]:
    """All rounds, newest first."""
    return (
        await session.scalars(select(Round).where(Round.project_id == project_id).order_by(Round.number.desc()))
    ).all()


async def open_run(session: AsyncSession, project_id: uuid.UUID, *, kinds: Sequence[RunKind]) -> Run | None:
    """The oldest run of these kinds that waits or runs."""
    return await session.scalar(
        select(Run)
        .where(Run.project_id == project_id, Run.kind.in_(kinds), Run.state.in_(runs.OPEN_STATES))
        .order_by(Run.created_at)
        .limit(1)
    )


async def round_of_run(session: AsyncSession, column: Any, run: Run) -> Round | None:
    """The open round whose run this is, locked and as it is now; none when a later run took its place."""
    query = select(Round).where(column == run.id, Round.closed_at.is_(None)).with_for_update()
    return await session.scalar(query.execution_options(populate_existing=True))


async def promote(
    session: AsyncSession, *, project: Project, version: Version, reason: str, actor_id: uuid.UUID | None = None
) -> None:
    """Make a version live. A policy that is not the current round's begins a round of its own.

    Raises:
        Invalid: the version is of another project.
    """
    if version.project_id != project.id:
        raise Invalid.field("version", "belongs to another project")
    await registry.promote(session, version=version, actor_id=actor_id, reason=reason)
    if version.kind == VersionKind.POLICY:
        await require_round_of(session, project=project, policy=version)


async def require_round_of(session: AsyncSession, *, project: Project, policy: Version) -> None:
    """The current round is one in which this policy answers, and goes on; else such a round begins."""
    now = await lock_round(session, project)
    if now.policy_version_id != policy.id or now.stopped:
        await end_round(session, now)
        await open_round(session, project_id=project.id, number=now.number + 1, policy=policy)


async def versions_of_ranking(session: AsyncSession, ranking_id: uuid.UUID) -> Sequence[Version]:
    """Every version that learned from a ranking, oldest first: its dataset holds it, or it went on from one of them or
    was trained against one.
    """
    direct = select(Version.id).join(DatasetRow, DatasetRow.dataset_id == Version.dataset_id)
    learned = direct.where(DatasetRow.ranking_id == ranking_id).cte("learned", recursive=True)
    came_of_it = (Version.parent_id == learned.c.id) | (Version.reward_version_id == learned.c.id)
    learned = learned.union(select(Version.id).join(learned, came_of_it))
    query = select(Version).where(Version.id.in_(select(learned.c.id))).order_by(Version.number)
    return (await session.scalars(query)).all()


async def num_prompts(session: AsyncSession, project_id: uuid.UUID) -> int:
    """Prompts that were not withdrawn."""
    return (
        await session.scalar(select(func.count()).where(Prompt.project_id == project_id, Prompt.withdrawn_at.is_(None)))
        or 0
    )
