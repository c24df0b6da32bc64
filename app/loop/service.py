"""Rounds: what starts a run, and what a finished run leads to.

    sample run -> tasks -> rankings -> dataset -> reward run -> reward version -> ppo run -> policy version -> next
    round

Each arrow is a function here. What follows from a run is queued in the transaction that ends it, so no step is ever
lost between two.
"""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.service import audit
from app.corpora import service as corpora
from app.datasets import service as datasets
from app.datasets.models import Dataset, DatasetRow
from app.errors import Conflict, Invalid, RankloopError
from app.events import events
from app.loop.models import Round
from app.projects.models import Project
from app.projects.service import ProjectCreated, get_project
from app.prompts import service as prompts
from app.prompts.models import Completion, Prompt, RunPrompt, Split
from app.prompts.service import CompletionsStored
from app.rankings import service as rankings
from app.rankings.importing import RankingsImported
from app.rankings.service import RankingStored
from app.registry import service as registry
from app.registry.models import Version, VersionKind
from app.runs import service as runs
from app.runs.models import Run, RunKind
from app.runs.service import RunFinished
from app.tasks import service as tasks
from app.tasks.models import Task, TaskCompletion

# In the settings of PPO: the number of a reward version that watches it. The trainer's own settings have no such key.
GUARD = "guard"
RANKED_SPLITS = (Split.TRAIN, Split.VALIDATION)
# Answers of a later round are drawn with other seeds than those of an earlier one.
SEED_STRIDE = 100_003
# More rankings than this are never being stored at the same moment.
MOST_AT_ONCE = 64


class TrainingUnderWay(Conflict):
    """A reward or PPO run of this project is open. Wait for it, or cancel it first."""


class SamplingUnderWay(Conflict):
    """A sampling run of this project is open already. Its answers become tasks as they come in."""


class NothingToSample(Invalid):
    """Every prompt of this project has its answers of this round. Import more prompts first."""


@dataclass(frozen=True)
class TrainingPlan:
    """What *Train* would do now, for people to read before they press it."""

    num_rankings: int
    num_new_rankings: int
    num_episodes: int | None
    seconds: float | None


def subscribe() -> None:
    """Hear what earlier domains publish."""
    events.subscribe(ProjectCreated, begin)
    events.subscribe(CompletionsStored, make_tasks)
    events.subscribe(RankingStored, train_at_threshold)
    events.subscribe(RankingsImported, train_at_threshold)
    events.subscribe(RunFinished, run_finished)


# Rounds


async def begin(session: AsyncSession, event: ProjectCreated) -> None:
    """A new project's version 1 is the model that it names, and answers in its first round."""
    project = event.project
    policy = await registry.register_base(session, project_id=project.id, alias=project.model_alias)
    await open_round(session, project_id=project.id, number=1, policy=policy)


async def current_round(session: AsyncSession, project: Project) -> Round:
    """The newest round of a project."""
    newest = select(Round).where(Round.project_id == project.id).order_by(Round.number.desc()).limit(1)
    return (await session.scalars(newest)).one()


async def open_round(session: AsyncSession, *, project_id: uuid.UUID, number: int, policy: Version) -> Round:
    """Begin a round with the policy that answers in it."""
    begun = Round(project_id=project_id, number=number, policy_version_id=policy.id)
    session.add(begun)
    await session.flush()
    return begun


async def list_rounds(session: AsyncSession, project_id: uuid.UUID) -> Sequence[Round]:
    """All rounds, newest first."""
    return (
        await session.scalars(select(Round).where(Round.project_id == project_id).order_by(Round.number.desc()))
    ).all()


# Sampling


async def start_sampling(
    session: AsyncSession,
    *,
    project: Project,
    is_triggered: bool = False,
    actor_id: uuid.UUID | None = None,
    max_queued: int | None = None,
) -> Run:
    """Draw K answers of the round's policy to every prompt that has none yet in this round.

    Raises:
        SamplingUnderWay: a sampling run is open.
        NothingToSample: all prompts have theirs.
        QueueFull: too many runs wait already.
    """
    if await open_run(session, project.id, kinds=(RunKind.SAMPLE,)) is not None:
        raise SamplingUnderWay
    now = await current_round(session, project)
    policy = await registry.get_version(session, now.policy_version_id)
    run = await enqueue_sampling(
        session,
        project=project,
        kind=RunKind.SAMPLE,
        policy=policy,
        seed_offset=now.number * SEED_STRIDE,
        is_triggered=is_triggered,
        actor_id=actor_id,
        max_queued=max_queued,
    )
    answered = select(Task.prompt_id).where(Task.project_id == project.id, Task.round == now.number)
    if not await prompts.freeze_run_prompts(
        session, run_id=run.id, project_id=project.id, splits=RANKED_SPLITS, exclude=answered
    ):
        raise NothingToSample
    now.sample_run_id = run.id
    await session.flush()
    return run


async def start_evaluation(
    session: AsyncSession,
    *,
    project: Project,
    policy: Version,
    actor_id: uuid.UUID | None = None,
    max_queued: int | None = None,
) -> Run:
    """Draw K answers of a version to the held-out test prompts. Nobody is asked to rank them and nothing learns from
    them.

    Raises:
        Invalid: the project has no test prompts.
        QueueFull: too many runs wait already.
    """
    run = await enqueue_sampling(
        session,
        project=project,
        kind=RunKind.EVALUATE,
        policy=policy,
        seed_offset=0,
        actor_id=actor_id,
        max_queued=max_queued,
    )
    if not await prompts.freeze_run_prompts(session, run_id=run.id, project_id=project.id, splits=(Split.TEST,)):
        raise Invalid(
            "This project has no test prompts. Import more prompts, or choose a larger test share for a new project."
        )
    return run


async def enqueue_sampling(
    session: AsyncSession,
    *,
    project: Project,
    kind: RunKind,
    policy: Version,
    seed_offset: int,
    is_triggered: bool = False,
    actor_id: uuid.UUID | None = None,
    max_queued: int | None = None,
) -> Run:
    """A `sample` or `evaluate` run with its settings frozen."""
    sampling = {**project.sampling, "seed": (int(project.sampling["seed"]) + seed_offset) % 2**31}
    config = {"policy": await registry.reference(session, policy), "k": project.k, "sampling": sampling}
    return await runs.enqueue(
        session,
        project_id=project.id,
        kind=kind,
        config=config,
        is_triggered=is_triggered,
        created_by=actor_id,
        max_queued=max_queued,
    )


async def make_tasks(session: AsyncSession, event: CompletionsStored) -> None:
    """Answers -> tasks, as they come in. Answers of an `evaluate` run make none."""
    project = await get_project(session, event.project_id)
    run = await runs.get_run(session, event.run_id) if event.run_id else None
    if run is not None and run.kind != RunKind.SAMPLE:
        return
    number = (await current_round(session, project)).number
    for prompt_id in event.prompt_ids:
        await make_task(session, project=project, prompt_id=prompt_id, run_id=event.run_id, round_number=number)


async def make_task(
    session: AsyncSession, *, project: Project, prompt_id: uuid.UUID, run_id: uuid.UUID | None, round_number: int
) -> None:
    """One task from the different answers to a prompt that are in no task yet; fewer than two make none."""
    in_a_task = select(TaskCompletion.completion_id).join(Task).where(Task.prompt_id == prompt_id)
    answers = (
        await session.scalars(
            select(Completion)
            .where(
                Completion.prompt_id == prompt_id,
                Completion.run_id == run_id if run_id else Completion.run_id.is_(None),
                Completion.id.not_in(in_a_task),
                ~Completion.is_demonstration,
            )
            .order_by(Completion.index, Completion.created_at, Completion.id)
        )
    ).all()
    different = list({answer.content_hash: answer for answer in reversed(answers)}.values())[::-1]
    if len(different) >= 2:
        await tasks.create_task(
            session,
            project=project,
            prompt_id=prompt_id,
            completion_ids=[answer.id for answer in different[:9]],
            run_id=run_id,
            round=round_number,
        )


# Training


async def start_training(
    session: AsyncSession,
    *,
    project: Project,
    is_triggered: bool = False,
    actor_id: uuid.UUID | None = None,
    max_queued: int | None = None,
) -> Run:
    """Freeze the current rankings of all rounds, and queue a reward run that starts from the SFT version.

    Raises:
        TrainingUnderWay: a reward or PPO run is open.
        Invalid: no ranking can be learned from yet.
        QueueFull: too many runs wait already.
    """
    if await training_run(session, project.id) is not None:
        raise TrainingUnderWay
    if project.training.get("ppo", {}).get("ptx_coefficient") and not await pretraining_text(session, project):
        raise Invalid.field("training.ppo.ptx_coefficient", "is above 0 and needs text to learn: import a corpus first")
    await guard_version(session, project)
    now = await current_round(session, project)
    dataset = await datasets.freeze(session, project=project, created_by=actor_id)
    require_pairs(dataset)
    base = await registry.base_version(session, project.id)
    config = {
        "sft": await registry.reference(session, base),
        "dataset": datasets.reference(dataset),
        "training": project.training.get("reward", {}),
    }
    run = await runs.enqueue(
        session,
        project_id=project.id,
        kind=RunKind.REWARD,
        config=config,
        is_triggered=is_triggered,
        created_by=actor_id,
        max_queued=max_queued,
    )
    now.dataset_id, now.reward_run_id, now.policy_run_id = dataset.id, run.id, None
    await audit(session, actor_id=actor_id, action="training.start", subject=str(run.id), dataset=str(dataset.id))
    await session.flush()
    return run


def require_pairs(dataset: Dataset) -> None:
    """Something can be learned from a dataset.

    Raises:
        Invalid: no answer of a training prompt stands above another.
    """
    if not dataset.counts.get("num_pairs") or not dataset.counts.get("train"):
        raise Invalid(
            "Rank some tasks first: there must be at least one answer that was placed above another, "
            "on a training prompt."
        )


async def training_run(session: AsyncSession, project_id: uuid.UUID) -> Run | None:
    """The reward or PPO run that waits or runs."""
    return await open_run(session, project_id, kinds=(RunKind.REWARD, RunKind.PPO))


async def open_run(session: AsyncSession, project_id: uuid.UUID, *, kinds: Sequence[RunKind]) -> Run | None:
    """The oldest run of these kinds that waits or runs."""
    return await session.scalar(
        select(Run)
        .where(Run.project_id == project_id, Run.kind.in_(kinds), Run.state.in_(runs.OPEN_STATES))
        .order_by(Run.created_at)
        .limit(1)
    )


async def train_at_threshold(session: AsyncSession, event: RankingStored | RankingsImported) -> None:
    """Train by itself once enough rankings are new. The project's row is locked only when that may be so.

    Others may be storing rankings at this moment that this transaction can't see yet, so the lock is taken a little
    before the threshold. What keeps a training from starting is no reason to refuse the ranking.
    """
    project = await get_project(session, event.project_id)
    if project.train_threshold is None:
        return
    if await num_new_rankings(session, project.id) + MOST_AT_ONCE < project.train_threshold:
        return
    # Not the stronger FOR UPDATE: every ranking that is being stored holds a share of its project's key.
    await session.scalar(select(Project.id).where(Project.id == project.id).with_for_update(key_share=True))
    is_due = await num_new_rankings(session, project.id) >= project.train_threshold
    if is_due and await training_run(session, project.id) is None:
        with suppress(RankloopError):
            async with session.begin_nested():
                await start_training(session, project=project, is_triggered=True)


async def num_new_rankings(session: AsyncSession, project_id: uuid.UUID) -> int:
    """Current rankings that no training has seen: those that came after the dataset of the newest reward run."""
    num_seen = await session.scalar(
        select(Dataset.num_rows)
        .join(Round, Round.dataset_id == Dataset.id)
        .where(Round.project_id == project_id)
        .order_by(Round.number.desc())
        .limit(1)
    )
    return max(0, await rankings.count_rankings(session, project_id) - (num_seen or 0))


async def run_finished(session: AsyncSession, event: RunFinished) -> None:
    """What a run that ended well leads to."""
    if event.run.kind == RunKind.REWARD:
        await reward_finished(session, event.run)
    elif event.run.kind == RunKind.PPO:
        await policy_finished(session, event.run)


async def reward_finished(session: AsyncSession, run: Run) -> None:
    """reward run -> reward version, live -> ppo run on the training prompts, from the round's policy."""
    base = await registry.base_version(session, run.project_id)
    version = await registry.register(
        session,
        project_id=run.project_id,
        kind=VersionKind.REWARD,
        parent=base,
        run_id=run.id,
        dataset_id=uuid.UUID(run.config["dataset"]["id"]),
        metrics=run.result or {},
    )
    await adopt(session, run, version, reason="trained on the newest rankings")
    now = await round_of_run(session, Round.reward_run_id, run)
    if now is None:
        await runs.add_log(
            session, run_id=run.id, lines=[("info", "A later training took this one's place; no PPO run follows.")]
        )
        return
    now.policy_run_id = (await enqueue_ppo(session, now=now, reward=version, reward_run=run)).id
    await session.flush()


async def adopt(session: AsyncSession, run: Run, version: Version, *, reason: str) -> None:
    """A run's version goes live, and the run's page can name it."""
    run.result = {**(run.result or {}), "version": {"number": version.number, "kind": version.kind}}
    await registry.promote(session, version=version, reason=reason)


async def enqueue_ppo(session: AsyncSession, *, now: Round, reward: Version, reward_run: Run) -> Run:
    """The PPO run of a round. It follows from a run that ended, so the queue's limit does not hold it up."""
    project = await get_project(session, now.project_id)
    policy = await registry.get_version(session, now.policy_version_id)
    guard, complaint = None, ""
    try:
        guard = await guard_version(session, project)
    except Invalid as refusal:
        # The settings changed meanwhile. What the worker delivered is no less good for it.
        complaint = f"No guard watches this run: {refusal}"
    config = {
        "sft": await registry.reference(session, await registry.base_version(session, project.id)),
        "policy": await registry.reference(session, policy),
        "reward": await registry.reference(session, reward),
        "sampling": project.sampling,
        "guard": await registry.reference(session, guard) if guard else None,
        "training": {name: value for name, value in project.training.get("ppo", {}).items() if name != GUARD},
        "corpora": await pretraining_text(session, project),
    }
    run = await runs.enqueue(
        session,
        project_id=project.id,
        kind=RunKind.PPO,
        config=config,
        is_triggered=reward_run.is_triggered,
        created_by=reward_run.created_by,
        max_queued=None,
    )
    await prompts.freeze_run_prompts(session, run_id=run.id, project_id=project.id, splits=(Split.TRAIN,))
    if complaint:
        await runs.add_log(session, run_id=run.id, lines=[("warning", complaint)])
    return run


async def guard_version(session: AsyncSession, project: Project) -> Version | None:
    """The reward version that watches PPO, where the project names one by its number; it trains nothing.

    Raises:
        Invalid: the project has no reward version of this number.
    """
    number = project.training.get("ppo", {}).get(GUARD)
    if number is None:
        return None
    versions = await registry.list_versions(session, project.id)
    found = [item for item in versions if item.kind == VersionKind.REWARD and item.number == number]
    if not found:
        raise Invalid.field(f"training.ppo.{GUARD}", "must be the number of a reward version of this project, or null")
    return found[0]


async def pretraining_text(session: AsyncSession, project: Project) -> list[dict[str, Any]]:
    """What PPO goes on learning to write (PPO-ptx): every corpus of the project, where that is switched on."""
    if not project.training.get("ppo", {}).get("ptx_coefficient"):
        return []
    return [corpora.reference(corpus) for corpus in await corpora.list_corpora(session, project.id)]


async def policy_finished(session: AsyncSession, run: Run) -> None:
    """ppo run -> policy version, live -> the next round, which is sampled at once."""
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
    await adopt(session, run, version, reason="improved against the newest reward model")
    now = await round_of_run(session, Round.policy_run_id, run)
    if now is None:
        return
    now.next_version_id = version.id
    now.closed_at = func.now()
    await session.flush()
    await open_round(session, project_id=run.project_id, number=now.number + 1, policy=version)
    project = await get_project(session, run.project_id)
    # Nothing to sample, or a run that samples already, is no reason to refuse what the worker delivered.
    with suppress(NothingToSample, SamplingUnderWay):
        async with session.begin_nested():
            await start_sampling(session, project=project, is_triggered=run.is_triggered, actor_id=run.created_by)


async def round_of_run(session: AsyncSession, column: Any, run: Run) -> Round | None:
    """The open round whose run this is, locked; none when a later run took its place."""
    return await session.scalar(select(Round).where(column == run.id, Round.closed_at.is_(None)).with_for_update())


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
    now = await current_round(session, project)
    if version.kind == VersionKind.POLICY and now.policy_version_id != version.id:
        now.closed_at = func.now()
        await open_round(session, project_id=project.id, number=now.number + 1, policy=version)


# What people want to know


async def plan_training(session: AsyncSession, project: Project) -> TrainingPlan:
    """What *Train* would do now, and for how long: measured on this project's earlier runs, else on its sampling."""
    num_rankings = await rankings.count_rankings(session, project.id)
    num_new = await num_new_rankings(session, project.id)
    reward = await runs.last_finished(session, project_id=project.id, kind=RunKind.REWARD)
    ppo = await runs.last_finished(session, project_id=project.id, kind=RunKind.PPO)
    if reward is not None and ppo is not None and reward.result and ppo.result:
        per_ranking = reward.result["seconds"] / max(1, reward.result["num_rankings"])
        return TrainingPlan(
            num_rankings, num_new, ppo.result["num_episodes"], per_ranking * num_rankings + ppo.result["seconds"]
        )
    sample = await runs.last_finished(session, project_id=project.id, kind=RunKind.SAMPLE)
    speed = (sample.result or {}).get("tokens_per_second") if sample else None
    return TrainingPlan(num_rankings, num_new, None, forecast_seconds(project, num_rankings, speed) if speed else None)


def forecast_seconds(project: Project, num_rankings: int, tokens_per_second: float) -> float:
    """A first guess from the sampling speed: tokens that must be drawn or scored, in units of drawing one token."""
    num_tokens = int(project.sampling["max_new_tokens"])
    reward = REWARD_COST * num_rankings * project.k * num_tokens
    ppo = PPO_COST * int(project.training.get("ppo", {}).get("num_episodes", DEFAULT_EPISODES)) * num_tokens
    return (reward + ppo) / tokens_per_second


# What one token costs in training, in units of drawing one in a `sample` run: measured with SmolLM2-135M on two quiet
# cores, 48 rankings of four and 64 episodes, 96 tokens each: 63 s and 452 s at 58 tokens a second.
REWARD_COST = 0.2
PPO_COST = 4.3
DEFAULT_EPISODES = 64


async def versions_of_ranking(session: AsyncSession, ranking_id: uuid.UUID) -> Sequence[Version]:
    """Every version that learned from a ranking, oldest first."""
    return (
        await session.scalars(
            select(Version)
            .join(DatasetRow, DatasetRow.dataset_id == Version.dataset_id)
            .where(DatasetRow.ranking_id == ranking_id)
            .order_by(Version.number)
        )
    ).all()


async def num_sampled_prompts(session: AsyncSession, run_id: uuid.UUID) -> tuple[int, int]:
    """How many of a sampling run's prompts have answers, and how many it has."""
    total = await session.scalar(select(func.count()).where(RunPrompt.run_id == run_id))
    done = await session.scalar(
        select(func.count(func.distinct(Completion.prompt_id))).where(Completion.run_id == run_id)
    )
    return done or 0, total or 0


async def num_prompts(session: AsyncSession, project_id: uuid.UUID) -> int:
    """Prompts that were not withdrawn."""
    return (
        await session.scalar(select(func.count()).where(Prompt.project_id == project_id, Prompt.withdrawn_at.is_(None)))
        or 0
    )
