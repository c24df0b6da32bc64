"""The queue: enqueue, claim, heartbeat, report, finish, cancel, retry. It knows no run's meaning.

Every transition of a run's state is in this file, and each says from where it may come. A run may be done twice: a
worker that fell silent is
given up, its lease number (the fence) grows with the next claim, and whatever the first one still sends is refused.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from sqlalchemy import delete, func, insert, select, tuple_
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import Conflict, NotFound, TooManyRequests, existing
from app.events import events
from app.runs.models import Artifact, Run, RunLogLine, RunMetric, RunState

OPEN_STATES = (RunState.QUEUED, RunState.RUNNING)
# A run that kills its worker every time must not go round for ever.
MAX_ATTEMPTS = 5


class FenceLost(Conflict):
    """This run was given to another worker, or is over. Drop it."""


class AlreadyOpen(Conflict):
    """Such a run waits or runs already in this project."""


class QueueFull(TooManyRequests):
    """Too many runs wait in this project's queue. Cancel some, or start a worker (`rankloop worker`), and try again."""


class NotRetryable(Conflict):
    """Only a run that failed or was cancelled can be tried again."""


@dataclass(frozen=True)
class RunFinished:
    """A run ended well, and its result and artifacts are stored."""

    run: Run


@dataclass(frozen=True)
class RunEnded:
    """A run came to its end: finished, failed or cancelled."""

    run: Run


async def enqueue(
    session: AsyncSession,
    *,
    project_id: uuid.UUID,
    kind: str,
    config: Mapping[str, Any],
    is_triggered: bool = False,
    created_by: uuid.UUID | None = None,
    max_queued: int | None = 20,
) -> Run:
    """Put a run into the queue, in the transaction of its cause.

    Raises:
        QueueFull: the project has `max_queued` waiting runs already.
        AlreadyOpen: a triggered run of this kind is open.
    """
    waiting = await session.scalar(
        select(func.count()).where(Run.project_id == project_id, Run.state == RunState.QUEUED)
    )
    if max_queued is not None and (waiting or 0) >= max_queued:
        raise QueueFull
    if is_triggered and await open_triggered_run(session, project_id=project_id, kind=kind) is not None:
        raise AlreadyOpen
    run = Run(project_id=project_id, kind=kind, config=dict(config), is_triggered=is_triggered, created_by=created_by)
    session.add(run)
    await session.flush()
    return run


async def open_triggered_run(session: AsyncSession, *, project_id: uuid.UUID, kind: str) -> Run | None:
    """The triggered run of this kind that waits or runs."""
    return await session.scalar(
        select(Run).where(Run.project_id == project_id, Run.kind == kind, Run.is_triggered, Run.state.in_(OPEN_STATES))
    )


async def claim(
    session: AsyncSession,
    *,
    worker: str,
    kinds: Sequence[str],
    project_ids: Sequence[uuid.UUID] | None,
    token_id: uuid.UUID | None,
    lease: timedelta,
) -> Run | None:
    """Give the oldest waiting run to a worker; several workers never get the same one. First takes back what fell
    silent.
    """
    await requeue_silent(session)
    query = (
        select(Run)
        .where(Run.state == RunState.QUEUED, Run.kind.in_(kinds))
        .order_by(Run.created_at, Run.id)
        .limit(1)
        .with_for_update(skip_locked=True)
    )
    if project_ids is not None:
        query = query.where(Run.project_id.in_(project_ids))
    run = await session.scalar(query)
    if run is not None:
        await hold(session, run, worker=worker, token_id=token_id, lease=lease)
    return run


async def hold(session: AsyncSession, run: Run, *, worker: str, token_id: uuid.UUID | None, lease: timedelta) -> None:
    """queued -> running, under a new fence."""
    run.state = RunState.RUNNING
    run.fence += 1
    run.attempt += 1
    run.worker = worker
    run.claimed_token_id = token_id
    run.lease_expires_at = datetime.now(UTC) + lease
    run.started_at = run.started_at or datetime.now(UTC)
    await add_log(session, run_id=run.id, lines=[("info", f"{worker} took the run, attempt {run.attempt}.")])
    await session.flush()


async def requeue_silent(session: AsyncSession) -> int:
    """Put runs whose worker fell silent back into the queue; returns how many. Workers that are there call this by
    claiming.
    """
    silent = (
        await session.scalars(
            select(Run)
            .where(Run.state == RunState.RUNNING, Run.lease_expires_at < func.now())
            .with_for_update(skip_locked=True)
        )
    ).all()
    for run in silent:
        if run.cancel_requested_at is not None:
            await end(session, run, state=RunState.CANCELLED, error="Cancelled; its worker had fallen silent.")
        elif run.attempt >= MAX_ATTEMPTS:
            await end(session, run, state=RunState.FAILED, error=f"Its worker fell silent {run.attempt} times.")
        else:
            await add_log(
                session,
                run_id=run.id,
                lines=[("warning", f"{run.worker} fell silent; the run waits for another worker.")],
            )
            put_back(run)
    await session.flush()
    return len(silent)


def put_back(run: Run) -> None:
    """running -> queued, keeping what was delivered. The fence grows at once, so that the old worker can't write any
    more.
    """
    run.state = RunState.QUEUED
    run.fence += 1
    run.worker = None
    run.claimed_token_id = None
    run.lease_expires_at = None


async def fenced_run(
    session: AsyncSession, *, run_id: uuid.UUID, fence: int, token_id: uuid.UUID | None, for_update: bool = True
) -> Run:
    """The run that this worker holds, locked until the end of the transaction.

    Raises:
        NotFound: there is no such run.
        FenceLost: the lease number is old, the run is over, or another token holds it.
    """
    query = select(Run).where(Run.id == run_id).execution_options(populate_existing=True)
    run = await session.scalar(query.with_for_update() if for_update else query)
    if run is None:
        raise NotFound("There is no such run.")
    if run.state != RunState.RUNNING or run.fence != fence or run.claimed_token_id != token_id:
        raise FenceLost
    return run


async def heartbeat(session: AsyncSession, run: Run, *, lease: timedelta, progress: Mapping[str, Any] | None) -> bool:
    """Keep the lease and note the progress; returns whether somebody asked to cancel. A longer lease stays."""
    run.lease_expires_at = max(run.lease_expires_at or datetime.now(UTC), datetime.now(UTC) + lease)
    if progress is not None:
        run.progress = dict(progress)
    await session.flush()
    return run.cancel_requested_at is not None


async def add_metrics(session: AsyncSession, run: Run, *, points: Sequence[tuple[int, str, float]]) -> None:
    """Store points of curves; the same step and name again is overwritten, as after a resume."""
    unique = {
        (name, step): {"run_id": run.id, "name": name, "step": step, "value": value} for step, name, value in points
    }
    if not unique:
        return
    statement = upsert(RunMetric).values(list(unique.values()))
    await session.execute(
        statement.on_conflict_do_update(
            index_elements=["run_id", "name", "step"], set_={"value": statement.excluded.value, "at": func.now()}
        )
    )


async def add_log(session: AsyncSession, *, run_id: uuid.UUID, lines: Sequence[tuple[str, str]]) -> None:
    """Append lines (level, text) to a run's log."""
    if lines:
        await session.execute(
            insert(RunLogLine), [{"run_id": run_id, "level": level, "text": text} for level, text in lines]
        )


async def finish(
    session: AsyncSession,
    run_id: uuid.UUID,
    *,
    fence: int,
    token_id: uuid.UUID | None,
    state: str,
    result: Mapping[str, Any] | None,
    error: str | None,
    artifacts: Sequence[str],
) -> Run:
    """End a run as its worker says. The same again is harmless; what follows from a good end happens in this
    transaction.

    Raises:
        FenceLost: the worker no longer holds the run.
        NotFound: an artifact that it names was never delivered.
    """
    run = await session.scalar(select(Run).where(Run.id == run_id).with_for_update())
    if (
        run is not None
        and run.fence == fence
        and run.state == state
        and state in {RunState.FINISHED, RunState.FAILED, RunState.CANCELLED}
    ):
        return run
    run = await fenced_run(session, run_id=run_id, fence=fence, token_id=token_id)
    if state == RunState.FINISHED:
        await keep_artifacts(session, run, names=artifacts)
        run.result = dict(result or {})
        await end(session, run, state=RunState.FINISHED, error=None)
        await events.publish(session, RunFinished(run))
    else:
        run.result = dict(result) if result else None
        await end(session, run, state=RunState(state), error=error or "The worker gave no cause.")
    return run


async def keep_artifacts(session: AsyncSession, run: Run, *, names: Sequence[str]) -> None:
    """Of what the run delivered, keep what its result names; its checkpoints have served.

    Raises:
        NotFound: a named file was never delivered.
    """
    delivered = {item.name for item in await list_artifacts(session, run.id)}
    missing = sorted(set(names) - delivered)
    if missing:
        raise NotFound(f"The run names {', '.join(missing)}, which it has not delivered.")
    await session.execute(delete(Artifact).where(Artifact.run_id == run.id, Artifact.name.not_in(names)))


async def end(session: AsyncSession, run: Run, *, state: RunState, error: str | None) -> None:
    """-> finished, failed or cancelled."""
    run.state = state
    run.error = error
    run.finished_at = datetime.now(UTC)
    run.lease_expires_at = None
    await add_log(session, run_id=run.id, lines=[("error" if error else "info", error or "Finished.")])
    await session.flush()
    await events.publish(session, RunEnded(run))


async def release(session: AsyncSession, run: Run) -> None:
    """running -> queued, as its worker is shutting down. That does not count as an attempt."""
    await add_log(session, run_id=run.id, lines=[("info", f"{run.worker} handed the run back.")])
    put_back(run)
    run.attempt -= 1
    await session.flush()


async def cancel(session: AsyncSession, *, run_id: uuid.UUID) -> Run:
    """Cancel a waiting run at once; ask a running one's worker to stop. Doing it twice, or too late, is harmless."""
    run = await session.scalar(select(Run).where(Run.id == run_id).with_for_update())
    if run is None:
        raise NotFound("There is no such run.")
    await _cancel(session, run)
    return run


async def cancel_idle(session: AsyncSession, *, run_ids: Sequence[uuid.UUID]) -> None:
    """As `cancel`, without waiting: a run that somebody changes right now goes on."""
    query = select(Run).where(Run.id.in_(run_ids)).order_by(Run.id).execution_options(populate_existing=True)
    for run in (await session.scalars(query.with_for_update(skip_locked=True))).all():
        await _cancel(session, run)


async def _cancel(session: AsyncSession, run: Run) -> None:
    if run.state == RunState.QUEUED:
        await end(session, run, state=RunState.CANCELLED, error="Cancelled before it began.")
    elif run.state == RunState.RUNNING:
        run.cancel_requested_at = run.cancel_requested_at or datetime.now(UTC)
    await session.flush()


async def retry(session: AsyncSession, *, run_id: uuid.UUID) -> Run:
    """failed, cancelled -> queued. It goes on from its last checkpoint.

    Raises:
        NotRetryable: it is open or finished, or a triggered run of its kind took its place.
    """
    run = await session.scalar(select(Run).where(Run.id == run_id).with_for_update())
    if run is None:
        raise NotFound("There is no such run.")
    if run.state not in {RunState.FAILED, RunState.CANCELLED}:
        raise NotRetryable
    if run.is_triggered and await open_triggered_run(session, project_id=run.project_id, kind=run.kind) is not None:
        raise NotRetryable("Another run of this kind is open in this project; wait for it or cancel it.")
    run.state = RunState.QUEUED
    run.fence += 1
    run.attempt = 0
    run.error = run.finished_at = run.cancel_requested_at = run.worker = run.claimed_token_id = None
    await add_log(session, run_id=run.id, lines=[("info", "Queued again.")])
    await session.flush()
    return run


# Reading


async def get_run(session: AsyncSession, run_id: uuid.UUID) -> Run:
    """A run by id.

    Raises:
        NotFound: there is none.
    """
    return existing(await session.get(Run, run_id), "There is no such run.")


async def list_runs(
    session: AsyncSession,
    *,
    project_id: uuid.UUID,
    kind: str | None = None,
    before: uuid.UUID | None = None,
    limit: int = 50,
) -> Sequence[Run]:
    """A project's runs, newest first; `before`: the last one seen. Several are made in one moment: it is not enough to
    go on from the moment.

    Raises:
        NotFound: the project has no run `before`.
    """
    place = (Run.created_at, Run.id)
    query = select(Run).where(Run.project_id == project_id).limit(limit)
    query = query.order_by(*(column.desc() for column in place))
    if kind is not None:
        query = query.where(Run.kind == kind)
    if before is not None:
        last = (
            await session.execute(select(*place).where(Run.id == before, Run.project_id == project_id))
        ).one_or_none()
        if last is None:
            raise NotFound("There is no such run.")
        query = query.where(tuple_(*place) < tuple_(*last))
    return (await session.scalars(query)).all()


async def list_metrics(session: AsyncSession, run_id: uuid.UUID) -> dict[str, list[tuple[int, float]]]:
    """All curves of a run: name -> points (step, value)."""
    rows = await session.execute(
        select(RunMetric.name, RunMetric.step, RunMetric.value)
        .where(RunMetric.run_id == run_id)
        .order_by(RunMetric.name, RunMetric.step)
    )
    curves: dict[str, list[tuple[int, float]]] = {}
    for name, step, value in rows:
        curves.setdefault(name, []).append((step, value))
    return curves


async def list_log(session: AsyncSession, run_id: uuid.UUID, *, limit: int = 500) -> Sequence[RunLogLine]:
    """The newest lines of a run's log, in the order in which they came."""
    newest = select(RunLogLine).where(RunLogLine.run_id == run_id).order_by(RunLogLine.id.desc()).limit(limit)
    return list(reversed((await session.scalars(newest)).all()))


async def list_artifacts(session: AsyncSession, run_id: uuid.UUID) -> Sequence[Artifact]:
    """What a run delivered, by name."""
    return (await session.scalars(select(Artifact).where(Artifact.run_id == run_id).order_by(Artifact.name))).all()


async def last_finished(session: AsyncSession, *, project_id: uuid.UUID, kind: str) -> Run | None:
    """The newest run of a kind that ended well."""
    return await session.scalar(
        select(Run)
        .where(Run.project_id == project_id, Run.kind == kind, Run.state == RunState.FINISHED)
        .order_by(Run.finished_at.desc())
        .limit(1)
    )


async def record_artifact(session: AsyncSession, run: Run, *, name: str, size: int, sha256: str) -> None:
    """Note a complete file. A later attempt's file takes the place of an earlier one's of the same name."""
    values = {"run_id": run.id, "name": name, "fence": run.fence, "size": size, "sha256": sha256}
    await session.execute(
        upsert(Artifact)
        .values(values)
        .on_conflict_do_update(index_elements=["run_id", "name"], set_=values | {"created_at": func.now()})
    )
