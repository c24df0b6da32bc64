"""Sampling: answers that people will rank, answers to held-out prompts, and the tasks that answers become."""

from __future__ import annotations

import uuid

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.db import at_most
from app.errors import Conflict, Invalid
from app.loop import service
from app.loop.choosing import priority_at, random_place
from app.loop.models import Round
from app.projects.models import Project
from app.projects.service import get_project
from app.prompts import service as prompts
from app.prompts.models import Completion, RunPrompt, Split
from app.prompts.service import CompletionsStored
from app.registry import service as registry
from app.registry.models import Version
from app.runs import service as runs
from app.runs.models import Run, RunKind, RunState
from app.tasks import making
from app.tasks.models import Task, TaskCompletion

RANKED_SPLITS = (Split.TRAIN, Split.VALIDATION)
# Answers of a later round are drawn with other seeds than those of an earlier one.
SEED_STRIDE = 100_003
# Prompts that are counted of a run whose worker has not said yet how far it is.
MOST_UNTOLD = 1000


class SamplingUnderWay(Conflict):
    """A sampling run of this project is open already. Its answers become tasks as they come in."""


class NothingToSample(Invalid):
    """Every prompt of this project has its answers of this round. Import more prompts first."""


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
        RoundStopped: people like an earlier policy better.
        NothingToSample: all prompts have theirs.
        QueueFull: too many runs wait already.
    """
    now = await service.lock_round(session, project)
    if await service.open_run(session, project.id, kinds=(RunKind.SAMPLE,)) is not None:
        raise SamplingUnderWay
    service.require_going(now)
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
    k: int | None = None,
    is_triggered: bool = False,
    actor_id: uuid.UUID | None = None,
    max_queued: int | None = None,
) -> Run:
    """A `sample` or `evaluate` run with its settings frozen; K answers a prompt, as the project says by default."""
    sampling = {**project.sampling, "seed": (int(project.sampling["seed"]) + seed_offset) % 2**31}
    config = {"policy": await registry.reference(session, policy), "k": k or project.k, "sampling": sampling}
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
    number = await round_of_answers(session, project, run)
    for prompt_id in event.prompt_ids:
        await make_task(session, project=project, prompt_id=prompt_id, run_id=event.run_id, round_number=number)


async def round_of_answers(session: AsyncSession, project: Project, run: Run | None) -> int:
    """The round that answers belong to: the newest in which their policy answers. What an earlier round's run delivers
    late, queued again by hand, does not pass for answers of the policy that answers now.
    """
    if run is not None and (policy := run.config.get("policy")):
        policy_id = uuid.UUID(policy["version_id"])
        of_policy = select(func.max(Round.number)).where(
            Round.project_id == project.id, Round.policy_version_id == policy_id
        )
        if (number := await session.scalar(of_policy)) is not None:
            return number
    return (await service.current_round(session, project)).number


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
        await making.create_task(
            session,
            project=project,
            prompt_id=prompt_id,
            completion_ids=[answer.id for answer in different[:9]],
            run_id=run_id,
            round=round_number,
            priority=priority_at(round_number, random_place(project, prompt_id, round_number)),
        )


async def num_sampled_prompts(session: AsyncSession, run_id: uuid.UUID) -> tuple[int, int]:
    """How many of a sampling run's prompts have answers, and how many it has.

    Its worker says so while it works; what it has not said yet is counted, which is little.
    """
    total = await session.scalar(select(func.max(RunPrompt.position) + 1).where(RunPrompt.run_id == run_id)) or 0
    run = await runs.get_run(session, run_id)
    if run.state == RunState.FINISHED:
        return total, total
    if run.progress:
        return int(run.progress["step"]), total
    answered = select(Completion.prompt_id).where(Completion.run_id == run_id).distinct()
    limited = answered.limit(at_most(MOST_UNTOLD)).subquery()
    return await session.scalar(select(func.count()).select_from(limited)) or 0, total
