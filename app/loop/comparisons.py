"""Blind comparisons: people rank answers of two policies to held-out prompts, between their other tasks.

A comparison looks like any task: as many answers as the project shows (half of each version), in a random order, and
nothing says who wrote them. Both versions draw their answers in an `evaluate` run. After each ranking the win rate's
confidence sequence is looked at: once one half is outside, the comparison is decided and what is not ranked yet is
withdrawn, so that no ranking is wasted. Nothing ever learns from these rankings (tasks.purpose, and a trigger).
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy import func, or_, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.audit import audit
from app.errors import Conflict, Invalid, NotFound
from app.events import events
from app.loop import ending, sampling
from app.loop.measuring import measure, num_left
from app.loop.models import ComparedPrompt, Comparison, ComparisonState
from app.loop.outcomes import Figures
from app.projects.models import Project
from app.projects.service import get_project
from app.prompts import service as prompts
from app.prompts.models import Completion, Prompt, Split
from app.rankings.models import Ranking
from app.rankings.service import RankingStored
from app.registry import service as registry
from app.registry.models import Version, VersionKind
from app.runs import service as runs
from app.runs.models import RunKind, RunState
from app.runs.service import RunFinished
from app.tasks import making
from app.tasks.models import Purpose

# What nothing learns from comes first.
HELD_OUT = (Split.TEST, Split.VALIDATION)
DEFAULT_PROMPTS = 200
MAX_PROMPTS = 2000


class ComparisonOpen(Conflict):
    """These two versions are being compared already."""


@dataclass(frozen=True)
class BothAnswered:
    """Both versions of a comparison have answered."""

    comparison: Comparison


@dataclass(frozen=True)
class ComparisonView:
    """A comparison with its versions and its figures at this moment."""

    comparison: Comparison
    version: Version
    against: Version
    figures: Figures
    judge: Version | None = None
    """None: people."""
    superseded_by: Version | None = None


# Starting


async def start(
    session: AsyncSession,
    *,
    project: Project,
    version: Version,
    against: Version,
    judge: Version | None = None,
    num_prompts: int = DEFAULT_PROMPTS,
    actor_id: uuid.UUID | None = None,
    max_queued: int | None = None,
) -> Comparison:
    """Let both versions answer the same held-out prompts, at most so many; people will then compare the answers, or
    the reward model that is named as the judge.

    Raises:
        Invalid: the versions are not two policies of this project, or it has no held-out prompts.
        ComparisonOpen: the two are being compared already.
        QueueFull: too many runs wait already.
    """
    require_two_policies(project, version, against)
    number = await next_number(session, project)
    if await find_open(session, version, against) is not None:
        raise ComparisonOpen
    chosen = await held_out_prompts(session, project, seed=number, limit=num_prompts)
    made = []
    for policy in (version, against):
        run = await sampling.enqueue_sampling(
            session,
            project=project,
            kind=RunKind.EVALUATE,
            policy=policy,
            k=answers_each(project),
            seed_offset=number * sampling.SEED_STRIDE + policy.number,
            actor_id=actor_id,
            max_queued=max_queued,
        )
        await prompts.freeze_prompt_list(session, run_id=run.id, prompt_ids=chosen)
        made.append(run)
    comparison = Comparison(
        project_id=project.id,
        number=number,
        version_id=version.id,
        against_id=against.id,
        judge_version_id=judge.id if judge else None,
        version_run_id=made[0].id,
        against_run_id=made[1].id,
        created_by=actor_id,
    )
    session.add(comparison)
    await session.flush()
    await audit(session, actor_id=actor_id, action="comparison.start", subject=str(comparison.id))
    return comparison


def require_two_policies(project: Project, version: Version, against: Version) -> None:
    """Refuse what can't be compared.

    Raises:
        Invalid: it names the field.
    """
    for field, policy in (("version_id", version), ("against_id", against)):
        if policy.project_id != project.id or policy.kind != VersionKind.POLICY:
            raise Invalid.field(field, "must be a policy of this project")
    if version.id == against.id:
        raise Invalid.field("against_id", "must be another version")


async def next_number(session: AsyncSession, project: Project) -> int:
    """The number after the newest comparison's. Holds the project, so that two do not take the same one."""
    await session.execute(select(Project.id).where(Project.id == project.id).with_for_update(key_share=True))
    newest = await session.scalar(select(func.max(Comparison.number)).where(Comparison.project_id == project.id))
    return (newest or 0) + 1


async def find_open(session: AsyncSession, version: Version, against: Version) -> Comparison | None:
    """The open comparison of two versions, either way round."""
    both = (version.id, against.id)
    query = select(Comparison).where(Comparison.version_id.in_(both), Comparison.against_id.in_(both))
    return await session.scalar(query.where(Comparison.state.in_(ending.OPEN_STATES)))


async def held_out_prompts(session: AsyncSession, project: Project, *, seed: int, limit: int) -> Sequence[uuid.UUID]:
    """Held-out prompts in a random order that the seed fixes, test prompts before those for validation.

    Raises:
        Invalid: there is none.
    """
    mixed = func.md5(func.concat(Prompt.root_hash, str(project.seed), str(seed)))
    query = select(Prompt.id).where(
        Prompt.project_id == project.id, Prompt.split.in_(HELD_OUT), Prompt.withdrawn_at.is_(None)
    )
    chosen = (await session.scalars(query.order_by(Prompt.split != Split.TEST, mixed, Prompt.id).limit(limit))).all()
    if not chosen:
        raise Invalid("This project has no held-out prompts to compare versions on. Import more prompts first.")
    return chosen


def answers_each(project: Project) -> int:
    """So many answers each version draws: half of what a task shows, the odd one is either's."""
    return (project.k + 1) // 2


# From answers to tasks


async def run_finished(session: AsyncSession, event: RunFinished) -> None:
    """Both versions have answered -> tasks that nobody can tell from others."""
    if event.run.kind != RunKind.EVALUATE:
        return
    comparison = await session.scalar(
        select(Comparison)
        .where(or_(Comparison.version_run_id == event.run.id, Comparison.against_run_id == event.run.id))
        .with_for_update()
    )
    if comparison is None or comparison.state != ComparisonState.SAMPLING:
        return
    if (live := await ending.successor(session, comparison)) is not None:
        await ending.supersede(session, comparison, live)
        return
    other_id = {comparison.version_run_id, comparison.against_run_id} - {event.run.id}
    other = await runs.get_run(session, other_id.pop())
    await session.refresh(other)
    if other.state == RunState.FINISHED:
        await make_tasks(session, comparison)
        await events.publish(session, BothAnswered(comparison))


async def make_tasks(session: AsyncSession, comparison: Comparison) -> None:
    """A task for every prompt that both versions answered."""
    project = await get_project(session, comparison.project_id)
    ours = await answers_of(session, comparison.version_run_id)
    theirs = await answers_of(session, comparison.against_run_id)
    for prompt_id in sorted(set(ours) & set(theirs), key=lambda key: hashlib.sha256(key.bytes).digest()):
        await make_task(session, project, comparison, prompt_id, ours[prompt_id], theirs[prompt_id])
    if comparison.judge_version_id is None:
        comparison.state = ComparisonState.RANKING
    await session.flush()
    await look(session, comparison)


async def answers_of(session: AsyncSession, run_id: uuid.UUID) -> dict[uuid.UUID, list[Completion]]:
    """What a run answered, by prompt, in the order in which it was drawn."""
    found: dict[uuid.UUID, list[Completion]] = {}
    query = select(Completion).where(Completion.run_id == run_id).order_by(Completion.prompt_id, Completion.index)
    for answer in await session.scalars(query):
        found.setdefault(answer.prompt_id, []).append(answer)
    return found


async def make_task(
    session: AsyncSession,
    project: Project,
    comparison: Comparison,
    prompt_id: uuid.UUID,
    ours: Sequence[Completion],
    theirs: Sequence[Completion],
) -> None:
    """One prompt's task. Equal texts are one answer on the sheet and stay several in the count: they tie.

    With an odd K the prompt decides who has one more, so that both have as many in all.
    """
    half, whole = project.k // 2, answers_each(project)
    is_ours_more = prompt_id.int % 2 == 0
    ours = ours[: whole if is_ours_more else half]
    theirs = theirs[: half if is_ours_more else whole]
    shown = {answer.content_hash: answer.id for answer in (*theirs, *ours)}
    task = None
    if len(shown) > 1 and comparison.judge_version_id is None:
        task = await making.create_task(
            session,
            project=project,
            prompt_id=prompt_id,
            completion_ids=list(shown.values()),
            overlap=1,
            purpose=Purpose.COMPARE,
        )
    session.add(
        ComparedPrompt(
            comparison_id=comparison.id,
            prompt_id=prompt_id,
            task_id=task.id if task else None,
            of_version=[shown[answer.content_hash] for answer in ours],
            of_against=[shown[answer.content_hash] for answer in theirs],
        )
    )


# From rankings to a decision


def is_compared(event: RankingStored) -> bool:
    """Whether it is a ranking of a compared prompt."""
    return event.task.purpose == Purpose.COMPARE


async def ranking_stored(session: AsyncSession, event: RankingStored) -> None:
    """A ranking of a compared prompt: look whether the comparison is decided."""
    comparison = await session.scalar(
        select(Comparison)
        .join(ComparedPrompt, ComparedPrompt.comparison_id == Comparison.id)
        .join(Ranking, Ranking.task_id == ComparedPrompt.task_id)
        .where(Ranking.id == event.ranking.id)
        .with_for_update(of=Comparison)
        .execution_options(populate_existing=True)
    )
    if comparison is not None:
        await look(session, comparison)


async def look(session: AsyncSession, comparison: Comparison) -> None:
    """Close a comparison that is decided, or that has nothing left to rank."""
    if comparison.state == ComparisonState.RANKING:
        found = await measure(session, comparison)
        if found.low > 0.5:
            await ending.close(session, comparison, ComparisonState.BETTER, found)
        elif found.high < 0.5:
            await ending.close(session, comparison, ComparisonState.WORSE, found)
        elif not await num_left(session, comparison):
            await ending.close(session, comparison, ComparisonState.UNDECIDED, found)
        elif (live := await ending.successor(session, comparison)) is not None:
            await ending.supersede(session, comparison, live)
    elif comparison.state not in ending.OPEN_STATES:
        # What was locked while it closed.
        await ending.withdraw_rest(session, comparison)


# Reading


async def get_comparison(session: AsyncSession, *, project_id: uuid.UUID, number: int) -> Comparison:
    """A project's comparison by its number.

    Raises:
        NotFound: there is none.
    """
    query = select(Comparison).where(Comparison.project_id == project_id, Comparison.number == number)
    found = await session.scalar(query)
    if found is None:
        raise NotFound(f"This project has no comparison {number}.")
    return found


async def list_comparisons(session: AsyncSession, project_id: uuid.UUID, *, limit: int = 50) -> list[ComparisonView]:
    """The newest comparisons of a project, newest first."""
    query = select(Comparison).where(Comparison.project_id == project_id).order_by(Comparison.number.desc())
    return [await view_of(session, item) for item in await session.scalars(query.limit(limit))]


async def view_of(session: AsyncSession, comparison: Comparison) -> ComparisonView:
    """A comparison with its figures at this moment."""
    return ComparisonView(
        comparison=comparison,
        version=await registry.get_version(session, comparison.version_id),
        against=await registry.get_version(session, comparison.against_id),
        figures=await measure(session, comparison),
        judge=await named_version(session, comparison.judge_version_id),
        superseded_by=await named_version(session, comparison.superseded_by_id),
    )


async def named_version(session: AsyncSession, version_id: uuid.UUID | None) -> Version | None:
    """A version that a comparison may name."""
    return None if version_id is None else await registry.get_version(session, version_id)
