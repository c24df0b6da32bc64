"""What nobody had begun ends when a policy goes live that it does not ask about; what a person asked stays open."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime
from typing import Any

import pytest
from sqlalchemy import select, text, update
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import SessionMaker, make_engine, make_sessionmaker
from app.loop import arrivals, asking, comparisons, ending, service, subscriptions, training
from app.loop.comparisons import ComparisonView
from app.loop.models import ComparedPrompt, Comparison, ComparisonState, Round
from app.loop.outcomes import Outcome, figures_of
from app.projects.models import CompareNew, PolicyGate, Project
from app.registry import service as registry
from app.registry.models import Version, VersionKind
from app.runs.models import Run, RunKind, RunState
from app.tasks import service as tasks
from app.tasks.models import Lease, Task
from tests.app.loop.conftest import Loop
from tests.app.loop.test_asking import begun
from tests.app.loop.test_comparisons import answer_both, likes, make_policy, rank_by, two_each
from tests.app.loop.test_halts import version
from tests.app.loop.test_service import PPO_RESULT, REWARD_RESULT, whole_round
from tests.factories import make_project, make_prompt, make_run, make_user


async def asked_about(turned: Loop, wish: CompareNew = CompareNew.BASE) -> ComparisonView:
    """Policy v3 is live, and people are asked by themselves whether it is better than version 1."""
    for _ in range(30):
        await make_prompt(turned.session, turned.project, split="test")
    turned.project.compare_new, turned.project.compare_prompts, turned.project.compare_share = wish, 25, 1.0
    await whole_round(turned)
    await turned.work_off_sampling()
    (view,) = await begun(turned)
    return view


async def next_policy(turned: Loop) -> Version:
    """Another version that goes live: an admin delivers it."""
    new = await make_policy(turned)
    await arrivals.promote(turned.session, project=turned.project, version=new, reason="a better one")
    return new


async def open_tasks(turned: Loop, comparison: Comparison) -> int:
    query = select(Task.id).join(ComparedPrompt, ComparedPrompt.task_id == Task.id)
    query = query.where(ComparedPrompt.comparison_id == comparison.id, Task.withdrawn_at.is_(None))
    return len((await turned.session.scalars(query)).all())


# What ends


async def test_a_later_policy_ends_what_was_asked_of_an_older_one(turned: Loop) -> None:
    comparison = (await asked_about(turned)).comparison
    await answer_both(turned, two_each)
    other = await make_user(turned.session)
    held = await tasks.next_lease(turned.session, project=turned.project, annotator=other, now=datetime.now(UTC))
    assert held is not None
    done = await rank_by(turned, lambda _: 0.0, limit=3)
    assert await open_tasks(turned, comparison) == 25
    new = await next_policy(turned)
    assert (comparison.state, comparison.superseded_by_id, comparison.closed_at is None) == (
        "superseded",
        new.id,
        False,
    )
    assert comparison.figures["num_ranked"] == len(done) == await open_tasks(turned, comparison) == 3
    assert (await turned.session.get_one(Lease, held.id, populate_existing=True)).state == "expired"
    (view,) = await begun(turned)
    assert (view.superseded_by, view.figures.num_ranked) == (new, 3)


async def test_what_was_ranked_of_it_counts_as_when_somebody_stops_it(turned: Loop) -> None:
    """The interval holds at every moment, and so a policy's win rate over version 1 is kept."""
    view = await asked_about(turned)
    await answer_both(turned, two_each)
    await rank_by(turned, lambda _: 0.0, limit=3)
    await next_policy(turned)
    assert view.version.metrics["win_rate"]["num_prompts"] == 3


async def test_with_the_next_round_only_what_asks_about_its_policy_is_open(turned: Loop) -> None:
    await asked_about(turned, CompareNew.BOTH)
    await answer_both(turned, two_each)
    turned.project.compare_share = 0.0
    await rank_by(turned, lambda _: 0.0, limit=6)
    await training.start_training(turned.session, project=turned.project)
    await turned.finish(await turned.claim(), REWARD_RESULT)
    await turned.score(new=3, live=2)
    await turned.finish(await turned.claim(), PPO_RESULT)
    found = [(view.version.number, view.against.number, view.comparison.state) for view in await begun(turned)]
    assert found == [(3, 1, "superseded"), (5, 1, "sampling"), (5, 3, "sampling")]


async def test_nobody_samples_what_nobody_will_rank(turned: Loop) -> None:
    comparison = (await asked_about(turned)).comparison
    first = await turned.claim()
    await next_policy(turned)
    assert comparison.state == "superseded"
    ours = await turned.session.get_one(Run, comparison.version_run_id)
    theirs = await turned.session.get_one(Run, comparison.against_run_id)
    waiting = theirs if first is ours else ours
    assert first.cancel_requested_at is not None
    assert waiting.state == RunState.CANCELLED


async def test_a_policy_that_waits_at_its_gate_comes_too_late(turned: Loop) -> None:
    for _ in range(30):
        await make_prompt(turned.session, turned.project, split="test")
    turned.project.policy_gate = PolicyGate.PEOPLE
    await whole_round(turned)
    waits = await version(turned, 3)
    assert waits.gate["state"] == "waiting"
    new = await next_policy(turned)
    (view,) = await begun(turned)
    assert (view.comparison.state, view.superseded_by) == ("superseded", new)
    assert (waits.gate["state"], waits.gate["reason"], waits.is_live) == ("refused", "round_over", False)


# What stays


async def test_what_a_person_began_stays_open(turned: Loop) -> None:
    view = await asked_about(turned)
    await ending.stop(turned.session, view.comparison)
    asked = await comparisons.start(
        turned.session,
        project=turned.project,
        version=view.version,
        against=view.against,
        actor_id=turned.annotator.id,
        num_prompts=10,
    )
    await next_policy(turned)
    await answer_both(turned, two_each)
    await rank_by(turned, lambda _: 0.0, limit=3)
    assert (asked.state, await open_tasks(turned, asked)) == ("ranking", 10)


@pytest.mark.parametrize("number", [1, 3])
async def test_a_policy_of_two_that_are_compared_may_go_live(turned: Loop, number: int) -> None:
    """Going back to version 1 leaves the question open whether version 3 was better."""
    comparison = (await asked_about(turned)).comparison
    back = await version(turned, number)
    await arrivals.promote(turned.session, project=turned.project, version=back, reason="I read both")
    assert comparison.state == "sampling"


async def test_a_reward_model_ends_nothing(turned: Loop) -> None:
    comparison = (await asked_about(turned)).comparison
    reward = await registry.get_version_by_number(turned.session, project_id=turned.project.id, number=2)
    assert reward.kind == VersionKind.REWARD
    await arrivals.promote(turned.session, project=turned.project, version=reward, reason="again")
    assert comparison.state == "sampling"


async def test_a_policy_that_goes_live_again_is_asked_about_again(turned: Loop) -> None:
    view = await asked_about(turned)
    assert await asking.were_compared(turned.session, view.version, view.against)
    await next_policy(turned)
    assert not await asking.were_compared(turned.session, view.version, view.against)


async def test_the_database_takes_no_person_s_question_back(turned: Loop) -> None:
    view = await asked_about(turned)
    closed = {"state": "superseded", "closed_at": datetime.now(UTC)}
    asked = {**closed, "superseded_by_id": view.version.id, "created_by": turned.annotator.id}
    for values in (asked, closed, {"superseded_by_id": view.version.id}):
        with pytest.raises(IntegrityError, match="superseded"):
            await set_all(turned.session, values)


async def set_all(session: AsyncSession, values: dict[str, Any]) -> None:
    async with session.begin_nested():
        await session.execute(update(Comparison).values(values))


# What somebody holds at that moment


async def skipped(turned: Loop) -> Version:
    """A policy went live while somebody held the comparison: nothing was heard of it."""
    new = await make_policy(turned)
    await turned.session.execute(update(Version).where(Version.is_live, Version.kind == "policy").values(is_live=False))
    new.is_live = True
    await turned.session.flush()
    return new


async def test_what_was_held_ends_with_the_next_ranking(turned: Loop) -> None:
    comparison = (await asked_about(turned)).comparison
    await answer_both(turned, two_each)
    new = await skipped(turned)
    assert comparison.state == "ranking"
    await rank_by(turned, likes(3), limit=1)
    assert (comparison.state, comparison.superseded_by_id) == ("superseded", new.id)
    assert await open_tasks(turned, comparison) == 1


async def test_what_was_held_makes_no_tasks(turned: Loop) -> None:
    comparison = (await asked_about(turned)).comparison
    new = await skipped(turned)
    await answer_both_or_one(turned)
    assert (comparison.state, comparison.superseded_by_id) == ("superseded", new.id)
    assert await open_tasks(turned, comparison) == 0


async def answer_both_or_one(turned: Loop) -> None:
    """The worker of the first run; the second one waits no more then."""
    run = await turned.claim()
    assert run.kind == RunKind.EVALUATE
    await turned.finish(run, {"tokens_per_second": 50.0})
    assert await service.open_run(turned.session, turned.project.id, kinds=(RunKind.EVALUATE,)) is None


async def two_policies(session: AsyncSession) -> tuple[Project, Comparison, Version]:
    """An open comparison that nobody began, and a policy that is about to go live."""
    project = await make_project(session)
    await make_prompt(session, project, split="test")
    loop = Loop(session, project, await make_user(session), None)
    older, newer = await make_policy(loop), await make_policy(loop)
    base = await registry.base_version(session, project.id)
    return project, await comparisons.start(session, project=project, version=older, against=base), newer


@pytest.mark.real_commits
async def test_a_policy_goes_live_while_somebody_holds_the_comparison_or_its_runs(fresh_database_url: str) -> None:
    """Who holds them may wait for what the caller has locked: two that waited for each other would be an error."""
    subscriptions.subscribe()
    engine = make_engine(fresh_database_url, pool_size=2)
    sessions: SessionMaker = make_sessionmaker(engine)
    async with sessions.begin() as session:
        project, comparison, newer = await two_policies(session)
    for held in (Comparison, Run):
        async with sessions.begin() as holder, sessions() as session:
            await holder.execute(select(held.id).with_for_update())
            new = await session.get_one(Version, newer.id)
            promoted = arrivals.promote(session, project=project, version=new, reason="at once")
            await asyncio.wait_for(promoted, timeout=20)
            found = await session.get_one(Comparison, comparison.id, populate_existing=True)
            states = set(await session.scalars(select(Run.state).where(Run.kind == RunKind.EVALUATE)))
            assert (found.state, states) == (("sampling" if held is Comparison else "superseded"), {RunState.QUEUED})
            await session.rollback()
    await engine.dispose()


@pytest.mark.real_commits
@pytest.mark.parametrize("deed", ["worse", "stopped", "rollback"])
async def test_people_decide_while_a_worker_ends_the_run_of_the_round(fresh_database_url: str, deed: str) -> None:
    """All of them want that run, its round and the live version: the worker to make another one live, people to stop
    the run or to go back."""
    subscriptions.subscribe()
    engine = make_engine(fresh_database_url, pool_size=3)
    sessions: SessionMaker = make_sessionmaker(engine)
    async with sessions.begin() as session:
        project, comparison, newer = await two_policies(session)
        live = await registry.get_version(session, comparison.version_id)
        await arrivals.promote(session, project=project, version=live, reason="answers now")
        now = await service.current_round(session, project)
        run = await make_run(session, project, kind=RunKind.PPO)
        now.policy_run_id = run.id

    async def decide() -> None:
        async with sessions.begin() as session:
            if deed == "rollback":
                base = await registry.base_version(session, project.id)
                await arrivals.promote(session, project=project, version=base, reason="better")
                return
            found = figures_of([Outcome(0.0, {}, {})] * 200, num_prompts=200)
            query = select(Comparison).where(Comparison.id == comparison.id).with_for_update()
            held = (await session.scalars(query)).one()
            await ending.close(session, held, ComparisonState(deed), found)

    async with sessions.begin() as worker:
        await worker.execute(select(Run.id).where(Run.id == run.id).with_for_update())
        assert await service.round_of_run(worker, Round.policy_run_id, run)
        deciding = asyncio.create_task(decide())
        await is_waiting(sessions)
        await registry.promote(worker, version=await worker.get_one(Version, newer.id), reason="trained")
    await asyncio.wait_for(deciding, timeout=20)
    async with sessions() as session:
        current = await registry.live_version(session, project_id=project.id, kind=VersionKind.POLICY)
        assert current is not None
        assert current.number == (1 if deed == "rollback" else newer.number)
        state = (await session.get_one(Comparison, comparison.id)).state
        assert state == ("superseded" if deed == "rollback" else deed)
    await engine.dispose()


async def is_waiting(sessions: SessionMaker) -> None:
    """Until somebody waits for what another transaction holds."""
    waits = text("select count(*) from pg_stat_activity where wait_event_type = 'Lock'")
    async with asyncio.timeout(20):
        while True:
            async with sessions() as session:
                if await session.scalar(waits):
                    return
            await asyncio.sleep(0.05)
