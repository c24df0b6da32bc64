"""Arrivals: what a run that ended well leads to.

A version is registered, shows at its gate what it must, and goes live; then the next step begins. What is refused
waits, with the reason, for more rankings or for a person.
"""

from __future__ import annotations

import uuid
from contextlib import suppress

from sqlalchemy import Select, exists, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.datasets import service as datasets
from app.datasets.models import DatasetRow
from app.errors import Invalid
from app.loop import asking, choosing, comparisons, judging, sampling, service, training
from app.loop.ending import ComparisonEnded
from app.loop.gates import UNJUDGED, GateState, Judged, Reason, Verdict, judge_policy, judge_reward
from app.loop.models import ComparisonState, Round
from app.projects.models import PolicyGate, Project, RewardGate
from app.projects.service import get_project
from app.prompts.models import Prompt, Split
from app.rankings.models import Ranking
from app.registry import service as registry
from app.registry.models import Version, VersionKind
from app.runs import service as runs
from app.runs.models import Run, RunKind
from app.runs.service import RunFinished
from app.tasks.models import Lease, Task


async def run_finished(session: AsyncSession, event: RunFinished) -> None:
    """What a run that ended well leads to."""
    arrivals = {RunKind.REWARD: reward_finished, RunKind.SCORE: score_finished, RunKind.PPO: policy_finished}
    if event.run.kind in arrivals:
        await arrivals[RunKind(event.run.kind)](session, event.run)


# Reward models


async def reward_finished(session: AsyncSession, run: Run) -> None:
    """reward run -> reward version, which shows on held-out rankings that it may take the live one's place."""
    version = await registry.register(
        session,
        project_id=run.project_id,
        kind=VersionKind.REWARD,
        parent=await began_with(session, run),
        run_id=run.id,
        dataset_id=uuid.UUID(run.config["dataset"]["id"]),
        metrics=run.result or {},
    )
    name_version(run, version)
    if version.gate:
        return
    live = await registry.live_version(session, project_id=run.project_id, kind=VersionKind.REWARD)
    reason = await nothing_to_show(session, version, live)
    if reason is not None or live is None:
        await settle_reward(session, version, Verdict(GateState.OPEN, reason or Reason.NOTHING_LIVE))
        return
    await enqueue_scores(session, version, live, run)
    await keep_verdict(session, version, Verdict(GateState.WAITING, Reason.SCORING))


async def began_with(session: AsyncSession, run: Run) -> Version:
    """The version that a reward run went on from: an earlier reward model, or version 1."""
    start = run.config.get("start") or run.config["sft"]
    return await registry.get_version(session, uuid.UUID(start["version_id"]))


async def nothing_to_show(session: AsyncSession, version: Version, live: Version | None) -> Reason | None:
    """Why a reward model goes live unasked, if it does."""
    project = await get_project(session, version.project_id)
    if project.reward_gate == RewardGate.OFF:
        return Reason.OFF
    if live is None or live.id == version.id:
        return Reason.NOTHING_LIVE
    held_out = held_out_rankings(version).limit(1)
    return None if (await session.execute(held_out)).first() else Reason.NO_RANKINGS


def held_out_rankings(version: Version) -> Select[uuid.UUID, uuid.UUID, int | None]:
    """(ranking, prompt, round) of the rankings that a reward version's dataset holds out. Until migration 0042 some of
    them were made with the live reward model's order in view: these speak for it, whatever the answers are.
    """
    with_help = exists().where(Lease.id == Ranking.lease_id, Lease.is_assisted)
    return (
        select(Ranking.id, Task.prompt_id, Task.round)
        .join(DatasetRow, DatasetRow.ranking_id == Ranking.id)
        .join(Task, Task.id == Ranking.task_id)
        .join(Prompt, Prompt.id == Task.prompt_id)
        .where(DatasetRow.dataset_id == version.dataset_id, Prompt.split == Split.VALIDATION, ~with_help)
    )


async def enqueue_scores(session: AsyncSession, version: Version, live: Version, run: Run) -> Run:
    """Let a worker ask both models about the same held-out rankings."""
    assert version.dataset_id is not None
    dataset = await datasets.get_dataset(session, version.dataset_id)
    return await runs.enqueue(
        session,
        project_id=run.project_id,
        kind=RunKind.SCORE,
        config={
            "rewards": [await registry.reference(session, item) for item in (version, live)],
            "dataset": datasets.reference(dataset),
        },
        is_triggered=run.is_triggered,
        created_by=run.created_by,
        max_queued=None,
    )


async def score_finished(session: AsyncSession, run: Run) -> None:
    """Scores of the new and of the live reward model -> a verdict."""
    version = await registry.get_version(session, uuid.UUID(run.config["rewards"][0]["version_id"]))
    await session.refresh(version, with_for_update=True)
    if version.gate.get("state") != GateState.WAITING:
        return
    live = await registry.live_version(session, project_id=run.project_id, kind=VersionKind.REWARD)
    if live is not None and str(live.id) != run.config["rewards"][1]["version_id"]:
        # What goes live must be better than what it replaces, and that is another one meanwhile.
        line = f"Version {live.number} went live meanwhile: asked again, against that one."
        await runs.add_log(session, run_id=run.id, lines=[("info", line)])
        await enqueue_scores(session, version, live, run)
        return
    where = {row.id: row for row in await session.execute(held_out_rankings(version))}
    judged = [
        Judged(where[key].round, where[key].prompt_id, int(item["num_pairs"]), *map(float, item["num_right"]))
        for item in (run.result or {}).get("rankings", [])
        if (key := uuid.UUID(item["ranking_id"])) in where
    ]
    await settle_reward(session, version, judge_reward(judged))


async def settle_reward(session: AsyncSession, version: Version, verdict: Verdict) -> None:
    """A reward model goes live, and its round goes on with PPO; or it waits."""
    await keep_verdict(session, version, verdict)
    if verdict.state == GateState.REFUSED:
        return
    await registry.promote(session, version=version, reason="trained on the newest rankings")
    await choosing.judge_waiting(session, await get_project(session, version.project_id))
    await train_policy(session, version)


async def train_policy(session: AsyncSession, reward: Version) -> None:
    """The PPO run of the round that trained a reward model; none where a later training took its place."""
    assert reward.run_id is not None
    run = await runs.get_run(session, reward.run_id)
    now = await service.round_of_run(session, Round.reward_run_id, run)
    if now is None:
        lines = [("info", "A later training took this one's place; no PPO run follows.")]
        await runs.add_log(session, run_id=run.id, lines=lines)
    elif now.stopped:
        lines = [("info", "People stopped this round; no PPO run follows.")]
        await runs.add_log(session, run_id=run.id, lines=lines)
    elif now.policy_run_id is None:
        now.policy_run_id = (await training.enqueue_ppo(session, now=now, reward=reward, reward_run=run)).id
        await session.flush()


# Policies


async def policy_finished(session: AsyncSession, run: Run) -> None:
    """ppo run -> policy version, which goes live, or first shows that people prefer it."""
    reward = await registry.get_version(session, uuid.UUID(run.config["reward"]["version_id"]))
    assert reward.dataset_id is not None
    version = await registry.register(
        session,
        project_id=run.project_id,
        kind=VersionKind.POLICY,
        parent=await registry.get_version(session, uuid.UUID(run.config["policy"]["version_id"])),
        run_id=run.id,
        dataset_id=reward.dataset_id,
        reward_version_id=reward.id,
        metrics=run.result or {},
    )
    name_version(run, version)
    if not version.gate:
        await ask_others(session, await get_project(session, run.project_id), version)


async def ask_others(session: AsyncSession, project: Project, version: Version) -> None:
    """Begin a comparison with the live policy, where the project wants one and has prompts for it, and a judge."""
    refusal = await came_too_late(session, version)
    if refusal is not None:
        await keep_verdict(session, version, Verdict(GateState.REFUSED, refusal))
        return
    live = await registry.live_version(session, project_id=project.id, kind=VersionKind.POLICY)
    if project.policy_gate == PolicyGate.OFF or live is None:
        await settle_policy(session, version, Verdict(GateState.OPEN, Reason.OFF))
        return
    judge = None
    if project.policy_gate == PolicyGate.SECOND_REWARD_MODEL:
        found = await judging.find_judge(session, project, version)
        if isinstance(found, Reason):
            await settle_policy(session, version, Verdict(GateState.OPEN, found))
            return
        judge = found
    try:
        await comparisons.start(session, project=project, version=version, against=live, judge=judge)
    except Invalid:
        await settle_policy(session, version, Verdict(GateState.OPEN, Reason.NO_PROMPTS))
    else:
        reason = Reason.JUDGING if judge else Reason.COMPARING
        await keep_verdict(session, version, Verdict(GateState.WAITING, reason))


async def comparison_ended(session: AsyncSession, event: ComparisonEnded) -> None:
    """A policy that waited for people is let through or not."""
    version = await registry.get_version(session, event.comparison.version_id)
    await session.refresh(version, with_for_update=True)
    live = await registry.live_version(session, project_id=version.project_id, kind=VersionKind.POLICY)
    is_over = event.comparison.state == ComparisonState.SUPERSEDED
    is_its_gate = is_over or (live is not None and event.comparison.against_id == live.id)
    if version.gate.get("state") == GateState.WAITING and is_its_gate:
        by_people = event.comparison.judge_version_id is None
        await settle_policy(session, version, judge_policy(event.comparison.state, by_people=by_people))


async def settle_policy(session: AsyncSession, version: Version, verdict: Verdict) -> None:
    """A policy goes live and the next round is sampled at once; or it waits."""
    refusal = await came_too_late(session, version)
    if verdict.state != GateState.REFUSED and refusal is not None:
        verdict = Verdict(GateState.REFUSED, refusal)
    await keep_verdict(session, version, verdict)
    if verdict.state == GateState.REFUSED:
        return
    await registry.promote(session, version=version, reason="improved against the newest reward model")
    await next_round(session, version)


async def came_too_late(session: AsyncSession, version: Version) -> Reason | None:
    """Why a policy may not go live by itself any more, whatever its gate says: meanwhile people stopped its round, or
    an admin began another one, or trained again. Only a person undoes what people decided.
    """
    assert version.run_id is not None
    now = await service.round_of_run(session, Round.policy_run_id, await runs.get_run(session, version.run_id))
    if now is None:
        return Reason.ROUND_OVER
    return Reason.ROUND_STOPPED if now.stopped else None


async def next_round(session: AsyncSession, version: Version) -> None:
    """The round that a policy came out of ends, and the next begins with it."""
    assert version.run_id is not None
    run = await runs.get_run(session, version.run_id)
    now = await service.round_of_run(session, Round.policy_run_id, run)
    if now is None:
        return
    now.next_version_id = version.id
    await service.end_round(session, now)
    await session.flush()
    await service.open_round(session, project_id=run.project_id, number=now.number + 1, policy=version)
    project = await get_project(session, run.project_id)
    # Nothing to sample, or a run that somebody queued again just now, is no reason to refuse what the worker delivered.
    with suppress(sampling.NothingToSample, sampling.SamplingUnderWay):
        async with session.begin_nested():
            await sampling.start_sampling(
                session, project=project, is_triggered=run.is_triggered, actor_id=run.created_by
            )
    await asking.ask_about(
        session, project, version, previous=await registry.get_version(session, now.policy_version_id)
    )


# By hand


async def promote(
    session: AsyncSession, *, project: Project, version: Version, reason: str, actor_id: uuid.UUID | None = None
) -> None:
    """Make a version live, whatever its gate said; the round that waited for it goes on.

    Raises:
        Invalid: the version is of another project.
    """
    # Runs before versions and rounds: so a worker that finishes one locks them, too.
    await service.lock_runs(session, project.id)
    was_waiting = version.gate.get("state") in (GateState.WAITING, GateState.REFUSED)
    if was_waiting and version.project_id == project.id:
        await keep_verdict(session, version, Verdict(GateState.FORCED, Reason.BY_HAND))
    if was_waiting and version.kind == VersionKind.POLICY and version.project_id == project.id:
        await registry.promote(session, version=version, actor_id=actor_id, reason=reason)
        await next_round(session, version)
        await service.require_round_of(session, project=project, policy=version)
        return
    await service.promote(session, project=project, version=version, actor_id=actor_id, reason=reason)
    if was_waiting:
        await train_policy(session, version)


async def keep_verdict(session: AsyncSession, version: Version, verdict: Verdict) -> None:
    """Write down what became of a version at its gate; figures of an earlier verdict stay."""
    said = verdict.as_json()
    if not said["differences"]:
        said |= {name: version.gate[name] for name in ("differences", "newest") if version.gate.get(name)}
    version.gate = said
    await session.flush()
    if verdict.reason in UNJUDGED and version.run_id is not None:
        line = f"Version {version.number} goes live unjudged: {UNJUDGED[verdict.reason]}."
        await runs.add_log(session, run_id=version.run_id, lines=[("warning", line)])


def name_version(run: Run, version: Version) -> None:
    """A run's page can name what came of it."""
    run.result = {**(run.result or {}), "version": {"number": version.number, "kind": version.kind}}
