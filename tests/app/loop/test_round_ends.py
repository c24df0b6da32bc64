"""A round ends while its answers are still being drawn: the next policy answers at once, and what is here stays."""

from __future__ import annotations

import asyncio
import uuid

import pytest
from sqlalchemy import select

from app.db import SessionMaker, make_engine, make_sessionmaker
from app.loop import arrivals, sampling, service, subscriptions, training
from app.prompts.models import RunPrompt
from app.rankings.models import Ranking
from app.registry import service as registry
from app.runs import service as runs
from app.runs.models import Run, RunKind, RunState
from app.runs.service import FenceLost
from app.tasks.models import Task
from tests.app.loop.conftest import Loop
from tests.app.loop.test_service import PPO_RESULT, REWARD_RESULT, whole_round
from tests.app.loop.test_superseded import is_waiting
from tests.factories import make_project, make_run


async def sample_some(turned: Loop, *, limit: int | None) -> Run:
    """A worker that has answered so many prompts of the run that waits, and goes on."""
    run = await turned.claim()
    assert run.kind == RunKind.SAMPLE
    query = select(RunPrompt.prompt_id).where(RunPrompt.run_id == run.id).order_by(RunPrompt.position).limit(limit)
    for prompt_id in (await turned.session.scalars(query)).all():
        await turned.answer(run, prompt_id, [f"answer {index} of {run.id}" for index in range(turned.project.k)])
    return run


async def rounds_of_tasks(turned: Loop, run: Run) -> list[int | None]:
    query = select(Task.round).where(Task.run_id == run.id, Task.withdrawn_at.is_(None))
    return list((await turned.session.scalars(query)).all())


async def num_rankings(turned: Loop) -> int:
    return len((await turned.session.scalars(select(Ranking.id))).all())


async def test_after_a_rollback_the_next_sample_is_the_old_version_s_though_a_worker_still_drew(turned: Loop) -> None:
    await whole_round(turned)
    run = await sample_some(turned, limit=2)
    ranked = await turned.rank_all()
    assert (ranked, run.state) == (2, RunState.RUNNING)
    base = await registry.base_version(turned.session, turned.project.id)
    before = await num_rankings(turned)
    await arrivals.promote(turned.session, project=turned.project, version=base, reason="it flatters")
    assert (run.state, run.error) == (RunState.CANCELLED, "Its round is over: another policy answers now.")
    with pytest.raises(FenceLost):
        await runs.fenced_run(turned.session, run_id=run.id, fence=run.fence, token_id=turned.token.id)
    assert await rounds_of_tasks(turned, run) == [2, 2]
    assert await num_rankings(turned) == before
    following = await sampling.start_sampling(turned.session, project=turned.project)
    assert following.config["policy"]["number"] == 1
    frozen = select(RunPrompt.prompt_id).where(RunPrompt.run_id == following.id)
    assert len((await turned.session.scalars(frozen)).all()) == 6, "the old version answers every prompt"


async def test_a_new_policy_answers_at_once_though_the_one_before_was_still_answering(turned: Loop) -> None:
    turned.project.train_threshold = 4
    await sampling.start_sampling(turned.session, project=turned.project)
    run = await sample_some(turned, limit=5)
    await turned.rank_all()
    await training.start_training(turned.session, project=turned.project, is_triggered=True)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    await turned.finish(await turned.claim(), PPO_RESULT)
    assert run.state == RunState.CANCELLED
    following = await turned.claim()
    assert (following.kind, following.config["policy"]["number"]) == (RunKind.SAMPLE, 3)
    assert (await service.current_round(turned.session, turned.project)).sample_run_id == following.id


async def test_what_an_earlier_round_s_run_still_draws_stays_of_its_round(turned: Loop) -> None:
    await whole_round(turned)
    run = (await service.current_round(turned.session, turned.project)).sample_run_id
    assert run is not None
    base = await registry.base_version(turned.session, turned.project.id)
    await arrivals.promote(turned.session, project=turned.project, version=base, reason="it flatters")
    await runs.retry(turned.session, run_id=run)
    late = await sample_some(turned, limit=None)
    assert late.id == run
    assert await rounds_of_tasks(turned, late) == [2] * 6
    await turned.finish(late, {})
    following = await sampling.start_sampling(turned.session, project=turned.project)
    frozen = select(RunPrompt.prompt_id).where(RunPrompt.run_id == following.id)
    assert len((await turned.session.scalars(frozen)).all()) == 6


@pytest.mark.real_commits
async def test_somebody_rolls_back_while_a_worker_ends_a_round_that_still_samples(fresh_database_url: str) -> None:
    """Both want both runs: who took the one that samples first, the smaller id, would wait for the other for ever."""
    subscriptions.subscribe()
    engine = make_engine(fresh_database_url, pool_size=3)
    sessions: SessionMaker = make_sessionmaker(engine)
    async with sessions.begin() as session:
        project = await make_project(session)
        sample = await make_run(session, project, kind=RunKind.SAMPLE, id=uuid.UUID(int=1))
        ppo = await make_run(session, project, kind=RunKind.PPO, id=uuid.UUID(int=2))
        now = await service.current_round(session, project)
        now.sample_run_id, now.policy_run_id = sample.id, ppo.id

    async def roll_back() -> None:
        async with sessions.begin() as session:
            await service.lock_runs(session, project.id)

    async with sessions.begin() as worker:
        await worker.execute(select(Run.id).where(Run.id == ppo.id).with_for_update())
        deciding = asyncio.create_task(roll_back())
        await is_waiting(sessions)
        await service.end_round(worker, await service.current_round(worker, project))
    await asyncio.wait_for(deciding, timeout=20)
    async with sessions() as session:
        assert (await session.get_one(Run, sample.id)).state == RunState.CANCELLED
    await engine.dispose()
