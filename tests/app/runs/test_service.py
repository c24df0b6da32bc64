"""The queue: who gets a run, who may still write, and how it ends."""

from __future__ import annotations

import asyncio
import uuid
from datetime import timedelta

import pytest
from sqlalchemy import func, select, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import ApiToken
from app.accounts.service import create_user
from app.accounts.tokens import create_token
from app.db import make_engine, make_sessionmaker
from app.errors import NotFound
from app.projects.models import Project
from app.projects.service import create_project
from app.runs import service
from app.runs.models import Run, RunKind, RunState

LEASE = timedelta(seconds=45)


@pytest.fixture
async def project(session: AsyncSession) -> Project:
    return await create_project(session, name="Queue", model_alias="tiny")


@pytest.fixture
async def token(session: AsyncSession) -> ApiToken:
    user = await create_user(session, name="Worker", email="worker@example.org", role="admin")
    made, _ = await create_token(session, user_id=user.id, name="worker", scopes=["worker"])
    return made


async def enqueue(session: AsyncSession, project: Project, kind: RunKind = RunKind.REWARD, **options: bool) -> Run:
    return await service.enqueue(session, project_id=project.id, kind=kind, config={"a": 1}, **options)


async def claim(session: AsyncSession, token: ApiToken, worker: str = "w1") -> Run | None:
    return await service.claim(
        session, worker=worker, kinds=list(RunKind), project_ids=None, token_id=token.id, lease=LEASE
    )


async def fall_silent(session: AsyncSession, run: Run) -> None:
    await session.execute(
        update(Run).where(Run.id == run.id).values(lease_expires_at=func.now() - timedelta(seconds=1))
    )


async def test_the_oldest_run_is_claimed_once(session: AsyncSession, project: Project, token: ApiToken) -> None:
    first = await enqueue(session, project)
    first.created_at = first.created_at - timedelta(hours=1)
    await enqueue(session, project)
    claimed = await claim(session, token)
    assert claimed is not None
    assert (claimed.id, claimed.state, claimed.fence, claimed.attempt) == (first.id, RunState.RUNNING, 1, 1)
    assert (await claim(session, token)) is not None
    assert await claim(session, token) is None


async def test_runs_of_one_transaction_are_claimed_in_their_order(
    session: AsyncSession, project: Project, token: ApiToken
) -> None:
    runs = [await enqueue(session, project) for _ in range(6)]
    claimed = [await claim(session, token) for _ in runs]
    assert [run.id for run in claimed if run] == [run.id for run in runs]
    listed = await service.list_runs(session, project_id=project.id)
    assert [run.id for run in listed] == [run.id for run in reversed(runs)]


async def test_a_token_of_another_project_gets_nothing(
    session: AsyncSession, project: Project, token: ApiToken
) -> None:
    await enqueue(session, project)
    claimed = await service.claim(
        session, worker="w", kinds=list(RunKind), project_ids=[uuid.uuid4()], token_id=token.id, lease=LEASE
    )
    assert claimed is None


async def test_a_silent_workers_run_goes_to_another_and_the_first_is_fenced_off(
    session: AsyncSession, project: Project, token: ApiToken
) -> None:
    await enqueue(session, project)
    first = await claim(session, token)
    assert first is not None
    old_fence = first.fence
    await fall_silent(session, first)
    second = await claim(session, token, "w2")
    assert second is not None
    assert second.id == first.id
    assert second.fence > old_fence
    assert second.attempt == 2
    with pytest.raises(service.FenceLost):
        await service.fenced_run(session, run_id=first.id, fence=old_fence, token_id=token.id)


async def test_a_run_that_silences_every_worker_fails(session: AsyncSession, project: Project, token: ApiToken) -> None:
    run = await enqueue(session, project)
    for _ in range(service.MAX_ATTEMPTS):
        assert await claim(session, token) is not None
        await fall_silent(session, run)
    assert await claim(session, token) is None
    await session.refresh(run)
    assert run.state == RunState.FAILED
    assert "fell silent" in (run.error or "")


async def test_another_token_does_not_hold_the_run(session: AsyncSession, project: Project, token: ApiToken) -> None:
    await enqueue(session, project)
    run = await claim(session, token)
    assert run is not None
    with pytest.raises(service.FenceLost):
        await service.fenced_run(session, run_id=run.id, fence=run.fence, token_id=uuid.uuid4())


async def test_finishing_twice_is_harmless_and_differently_is_refused(
    session: AsyncSession, project: Project, token: ApiToken
) -> None:
    await enqueue(session, project, RunKind.EVALUATE)
    run = await claim(session, token)
    assert run is not None
    end = {"fence": run.fence, "token_id": token.id, "artifacts": []}
    await service.finish(session, run.id, state="finished", result={"n": 1}, error=None, **end)
    again = await service.finish(session, run.id, state="finished", result={"n": 2}, error=None, **end)
    assert again.result == {"n": 1}
    with pytest.raises(service.FenceLost):
        await service.finish(session, run.id, state="failed", result=None, error="late", **end)


async def test_a_result_names_only_what_was_delivered(session: AsyncSession, project: Project, token: ApiToken) -> None:
    await enqueue(session, project, RunKind.EVALUATE)
    run = await claim(session, token)
    assert run is not None
    end = {"fence": run.fence, "token_id": token.id, "result": {}, "error": None}
    with pytest.raises(NotFound, match=r"model\.safetensors"):
        await service.finish(session, run.id, state="finished", artifacts=["model.safetensors"], **end)


async def test_checkpoints_go_when_the_run_has_ended_well(
    session: AsyncSession, project: Project, token: ApiToken
) -> None:
    await enqueue(session, project, RunKind.EVALUATE)
    run = await claim(session, token)
    assert run is not None
    for name in ("checkpoint/manifest.json", "manifest.json"):
        await service.record_artifact(session, run, name=name, size=1, sha256="0" * 64)
    await service.finish(
        session,
        run.id,
        fence=run.fence,
        token_id=token.id,
        state="finished",
        result={},
        error=None,
        artifacts=["manifest.json"],
    )
    assert [item.name for item in await service.list_artifacts(session, run.id)] == ["manifest.json"]


async def test_one_open_triggered_run_a_kind(session: AsyncSession, project: Project) -> None:
    await enqueue(session, project, is_triggered=True)
    with pytest.raises(service.AlreadyOpen):
        await enqueue(session, project, is_triggered=True)
    await enqueue(session, project)
    session.add(Run(project_id=project.id, kind=RunKind.REWARD, config={}, is_triggered=True))
    with pytest.raises(IntegrityError, match="uq_runs_triggered"):
        await session.flush()


async def test_a_full_queue_says_what_to_do(session: AsyncSession, project: Project) -> None:
    for _ in range(2):
        await service.enqueue(session, project_id=project.id, kind="sample", config={}, max_queued=2)
    with pytest.raises(service.QueueFull, match="start a worker"):
        await service.enqueue(session, project_id=project.id, kind="sample", config={}, max_queued=2)


async def test_a_waiting_run_is_cancelled_at_once_and_a_running_one_is_asked(
    session: AsyncSession, project: Project, token: ApiToken
) -> None:
    waiting = await enqueue(session, project)
    assert (await service.cancel(session, run_id=waiting.id)).state == RunState.CANCELLED
    await enqueue(session, project)
    run = await claim(session, token)
    assert run is not None
    assert not await service.heartbeat(session, run, lease=LEASE, progress=None)
    assert (await service.cancel(session, run_id=run.id)).state == RunState.RUNNING
    assert await service.heartbeat(session, run, lease=LEASE, progress={"step": 1})


async def test_only_what_failed_or_was_cancelled_is_retried(
    session: AsyncSession, project: Project, token: ApiToken
) -> None:
    run = await enqueue(session, project)
    with pytest.raises(service.NotRetryable):
        await service.retry(session, run_id=run.id)
    await service.cancel(session, run_id=run.id)
    assert (await service.retry(session, run_id=run.id)).state == RunState.QUEUED
    assert (await claim(session, token)) is not None


async def test_handing_back_costs_no_attempt(session: AsyncSession, project: Project, token: ApiToken) -> None:
    await enqueue(session, project)
    run = await claim(session, token)
    assert run is not None
    await service.release(session, run)
    again = await claim(session, token)
    assert again is not None
    assert again.attempt == 1


async def test_the_same_point_again_is_overwritten(session: AsyncSession, project: Project, token: ApiToken) -> None:
    run = await enqueue(session, project)
    await service.add_metrics(session, run, points=[(1, "loss/reward", 0.7), (2, "loss/reward", 0.6)])
    await service.add_metrics(session, run, points=[(2, "loss/reward", 0.5), (2, "loss/reward", 0.4)])
    assert await service.list_metrics(session, run.id) == {"loss/reward": [(1, 0.7), (2, 0.4)]}


@pytest.mark.real_commits
async def test_workers_at_once_never_get_the_same_run(fresh_database_url: str) -> None:
    """20 runs, 8 workers that claim until nothing is left: every run is held by exactly one."""
    engine = make_engine(fresh_database_url)
    make_session = make_sessionmaker(engine)
    async with make_session.begin() as session:
        project = await create_project(session, name="Race", model_alias="tiny")
        user = await create_user(session, name="W", email="w@example.org", role="admin")
        token, _ = await create_token(session, user_id=user.id, name="w", scopes=["worker"])
        for _ in range(20):
            await enqueue(session, project)

    async def work(name: str) -> list[uuid.UUID]:
        held: list[uuid.UUID] = []
        while True:
            async with make_session.begin() as session:
                run = await claim(session, token, name)
                if run is None:
                    return held
                held.append(run.id)

    held = [run_id for ids in await asyncio.gather(*(work(f"w{i}") for i in range(8))) for run_id in ids]
    async with make_session() as session:
        total = await session.scalar(select(func.count()).select_from(Run).where(Run.state == RunState.RUNNING))
    await engine.dispose()
    assert len(held) == len(set(held)) == total == 20
