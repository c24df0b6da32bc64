"""Disagreements: which tasks wait for a reviewer, and what a reviewer says: approve, reject, correct."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import ColumnElement, func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.audit import audit
from app.accounts.models import User
from app.errors import Conflict, Invalid, existing
from app.projects.models import Project
from app.prompts.models import Prompt
from app.quality import reading
from app.quality.consensus import USUAL_RELIABILITY, Consensus, agree_on, disagreement
from app.quality.models import Rejection, Review, ReviewState
from app.rankings import service as rankings
from app.rankings.answers import RankingAnswer, Rules, body_hash, tidy
from app.rankings.models import Ranking
from app.rankings.service import RankingView, is_current
from app.remembering import Remembered
from app.tasks import service as tasks
from app.tasks.models import Task, TaskCompletion
from app.tasks.service import LETTERS

MAX_REASON_LENGTH = 1000
_fits: Remembered[tuple[reading.Key, ...], tuple[dict[Any, Consensus], dict[Any, float]]] = Remembered(64)


class ReviewSettled(Conflict):
    """Somebody has settled this disagreement already."""


@dataclass(frozen=True)
class Row:
    """One ranking of a task under review, in the letters of the task. `reliability`: of its annotator."""

    view: RankingView
    order: list[list[str]]
    reliability: float | None
    rejection: Rejection | None


@dataclass(frozen=True)
class Sheet:
    """A task under review: its prompt, its rankings side by side, and the consensus of those who ranked it."""

    review: Review
    task: Task
    prompt: Prompt
    letters: Mapping[uuid.UUID, str]
    rows: Sequence[Row]
    consensus: list[list[str]]
    usual_reliability: float
    settled_by: str | None


# The queue


async def fill_queue(session: AsyncSession, project: Project) -> int:
    """Let those tasks wait whose newest rankings differ too much, and that nobody reviewed since; returns how many.

    Looks at the newest overlapping rankings, as the page of agreement does; rejected ones are left out.
    """
    judgements = await reading.overlapping(session, project.id)
    rejected = await rejected_among(session, [judgement.key for judgement in judgements])
    kept = [judgement for judgement in judgements if judgement.key not in rejected]
    found = await asyncio.to_thread(disagreement, kept)
    apart = {task: share for task, share in found.items() if share > project.review_above}
    newest = await newest_numbers(session, list(apart))
    seen = await reviewed_numbers(session, list(apart))
    rows = [
        {"project_id": project.id, "task_id": task, "disagreement": apart[task], "last_number": number}
        for task, number in sorted(newest.items())
        if seen.get(task, 0) < number
    ]
    if rows:
        await session.execute(insert(Review).values(rows).on_conflict_do_nothing())
    return len(rows)


async def rejected_among(session: AsyncSession, ids: Sequence[Any]) -> set[uuid.UUID]:
    """Which of these rankings were rejected."""
    query = select(Rejection.ranking_id).where(Rejection.ranking_id == func.any(reading.of_ids(ids)))
    return set(await session.scalars(query))


async def newest_numbers(session: AsyncSession, task_ids: Sequence[Any]) -> dict[uuid.UUID, int]:
    """The number of each task's newest ranking."""
    query = select(Ranking.task_id, func.max(Ranking.number)).where(Ranking.task_id.in_(task_ids))
    return {task: number for task, number in await session.execute(query.group_by(Ranking.task_id))}


async def reviewed_numbers(session: AsyncSession, task_ids: Sequence[Any]) -> dict[uuid.UUID, int]:
    """Up to which ranking each task was reviewed; an open review counts, as it shows newer ones, too."""
    newest = func.max(Review.last_number)
    query = select(Review.task_id, newest).where(Review.task_id.in_(task_ids))
    return {task: number for task, number in await session.execute(query.group_by(Review.task_id))}


async def count_open(session: AsyncSession, project: Project) -> int:
    """How many disagreements wait."""
    query = select(func.count()).select_from(Review)
    return await session.scalar(query.where(Review.project_id == project.id, Review.state == ReviewState.OPEN)) or 0


async def list_reviews(
    session: AsyncSession, project: Project, *, state: str = ReviewState.OPEN, limit: int, offset: int = 0
) -> list[tuple[Review, Prompt]]:
    """Reviews in this state with their prompts, the most divided first."""
    query = (
        select(Review, Prompt)
        .join(Task, Task.id == Review.task_id)
        .join(Prompt, Prompt.id == Task.prompt_id)
        .where(Review.project_id == project.id, Review.state == state)
        .order_by(Review.disagreement.desc(), Review.opened_at, Review.id)
    )
    return [(review, prompt) for review, prompt in await session.execute(query.limit(limit).offset(offset))]


# One review


async def get_sheet(session: AsyncSession, project: Project, review_id: uuid.UUID) -> Sheet:
    """A task under review, with all that a reviewer needs.

    Raises:
        NotFound: the project has no such review.
    """
    review = await get_review(session, project, review_id)
    task = await session.get_one(Task, review.task_id)
    letters = dict(zip(await answers_of(session, task.id), LETTERS, strict=False))
    views = await rankings.list_rankings(session, project_id=project.id, task_id=task.id, only_current=True, limit=100)
    consensus, reliability = await consensus_of(
        session, project, task, [(view.ranking.id, view.ranking.annotator_id) for view in views]
    )
    rejected = await session.scalars(select(Rejection).join(Ranking).where(Ranking.task_id == task.id))
    rejections = {rejection.ranking_id: rejection for rejection in rejected}
    settler = await session.get(User, review.settled_by) if review.settled_by else None
    return Sheet(
        review=review,
        task=task,
        prompt=await session.get_one(Prompt, task.prompt_id),
        letters=letters,
        rows=[
            Row(view, view.order_in(letters), reliability.get(who(view)), rejections.get(view.ranking.id))
            for view in reversed(views)
        ],
        consensus=cells_of(consensus, list(letters.values())),
        usual_reliability=USUAL_RELIABILITY,
        settled_by=settler.name if settler else None,
    )


def who(view: RankingView) -> Any:
    """A ranking's annotator as judgements name them."""
    return view.ranking.annotator_id or view.ranking.annotator_name or view.ranking.id


async def get_review(
    session: AsyncSession, project: Project, review_id: uuid.UUID, *, for_update: bool = False
) -> Review:
    """A review of this project.

    Raises:
        NotFound: there is none.
    """
    query = select(Review).where(Review.id == review_id, Review.project_id == project.id)
    review = await session.scalar(query.with_for_update() if for_update else query)
    return existing(review, "There is no such review in this project.")


async def answers_of(session: AsyncSession, task_id: uuid.UUID) -> list[uuid.UUID]:
    """The answers of a task, in its order."""
    query = select(TaskCompletion.completion_id).where(TaskCompletion.task_id == task_id)
    return list(await session.scalars(query.order_by(TaskCompletion.position)))


async def consensus_of(
    session: AsyncSession, project: Project, task: Task, keys: Sequence[reading.Key]
) -> tuple[Consensus | None, Mapping[Any, float]]:
    """The consensus of a task, and how reliable those are who ranked it, as the newest overlapping rankings show."""
    recent = dict.fromkeys([*await reading.overlapping_keys(session, project.id), *keys])
    rejected = await rejected_among(session, [ranking_id for ranking_id, _ in recent])
    kept = tuple(key for key in recent if key[0] not in rejected)
    known = _fits.get(kept)
    if known is None:
        known = _fits.keep(kept, await asyncio.to_thread(agree_on, await reading.judgements(session, kept)))
    return known[0].get(task.id), known[1]


def cells_of(consensus: Consensus | None, letters: Sequence[str]) -> list[list[str]]:
    """A consensus as letters, best first."""
    if consensus is None:
        return []
    placed = {place for place in consensus.places if place is not None}
    named = list(zip(letters, consensus.places, strict=True))
    return [[letter for letter, place in named if place == cell] for cell in sorted(placed)]


# Settling


async def settle(
    session: AsyncSession,
    project: Project,
    review_id: uuid.UUID,
    *,
    reviewer: User,
    rejected_ids: Sequence[uuid.UUID] = (),
    answer: RankingAnswer | None = None,
    reason: str = "",
) -> Review:
    """Approve all orders (nothing rejected, no answer), reject some, or correct: add the reviewer's own order.

    Raises:
        NotFound: the project has no such review.
        ReviewSettled: somebody was faster.
        Invalid: a rejection without a reason, or of a ranking that is not a current one of this task.
        AnswerRefused: the reviewer's order breaks a rule; it names each field.
    """
    review = await get_review(session, project, review_id, for_update=True)
    if review.state != ReviewState.OPEN:
        raise ReviewSettled
    task = await reopen(session, review.task_id, reviewer)
    await reject(session, review, rejected_ids, reviewer=reviewer, reason=reason)
    if answer is not None:
        await correct(session, project, review.task_id, reviewer=reviewer, answer=answer)
    state = ReviewState.CORRECTED if answer else ReviewState.REJECTED if rejected_ids else ReviewState.APPROVED
    review.state, review.reason = state, reason
    review.settled_at, review.settled_by = datetime.now(UTC), reviewer.id
    review.last_number = (await newest_numbers(session, [review.task_id]))[review.task_id]
    task.settled_number = review.last_number
    await session.flush()
    await audit(
        session, actor_id=reviewer.id, action=f"review.{state}", subject=str(review.id), rejected=len(rejected_ids)
    )
    return review


async def reopen(session: AsyncSession, task_id: uuid.UUID, reviewer: User) -> Task:
    """The task, locked, so that no annotator changes what is decided about; open to the reviewer's own new order."""
    await tasks.lock_annotator(session, reviewer.id)
    task = await tasks.lock_task(session, task_id)
    task.settled_number = None
    await session.flush()
    return task


async def reject(
    session: AsyncSession, review: Review, ids: Sequence[uuid.UUID], *, reviewer: User, reason: str
) -> None:
    """Reject rankings of the task under review. They stay, and leave new datasets.

    Raises:
        Invalid: there is no reason, or one of them is not a current ranking of this task, or is rejected already.
    """
    if not ids:
        return
    if not reason:
        raise Invalid.field(
            "reason", "Say why you reject an order: its annotator will ask, and whoever reads the history."
        )
    query = select(Ranking.id).where(Ranking.task_id == review.task_id, is_current(), ~is_rejected())
    if not set(ids) <= set(await session.scalars(query)):
        raise Invalid.field(
            "rejected", "One of these is no longer a current ranking of this task. Load the page again."
        )
    session.add_all(
        Rejection(ranking_id=item, review_id=review.id, rejected_by=reviewer.id, reason=reason) for item in set(ids)
    )
    await session.flush()


async def correct(
    session: AsyncSession, project: Project, task_id: uuid.UUID, *, reviewer: User, answer: RankingAnswer
) -> Ranking:
    """Store a reviewer's own order: one more ranking of the task, or a newer one where they ranked it before.

    Raises:
        AnswerRefused: the order breaks a rule of the project; questions beside the order are not asked.
    """
    await tasks.lock_annotator(session, reviewer.id)
    task = await tasks.lock_task(session, task_id)
    order = await answers_of(session, task_id)
    answer = tidy(answer)
    letters = dict(zip(order, LETTERS, strict=False))
    rankings.require_fine(answer, Rules(letters, project.ties_allowed, project.partial_allowed, frozenset()))
    mine = select(Ranking).where(Ranking.task_id == task_id, Ranking.annotator_id == reviewer.id, is_current())
    before = await session.scalar(mine)
    if before is None:
        # A place of its own: the annotators' places stay theirs.
        task.overlap = max(task.overlap, task.num_taken + 1)
        await session.flush()
    elif before.body_hash == body_hash(answer):
        return before
    ranking = Ranking(
        project_id=project.id,
        task_id=task_id,
        lease_id=before.lease_id if before else None,
        annotator_id=reviewer.id,
        source=before.source if before else "review",
        supersedes_id=before.id if before else None,
    )
    await rankings.store(session, ranking, answer, order)
    return ranking


# For others


def is_rejected() -> ColumnElement[bool]:
    """Rankings that a reviewer rejected."""
    return select(Rejection.ranking_id).where(Rejection.ranking_id == Ranking.id).exists()


async def rejection_of(session: AsyncSession, ranking_id: uuid.UUID) -> Rejection | None:
    """Who rejected a ranking, and why; None: nobody."""
    return await session.get(Rejection, ranking_id)
