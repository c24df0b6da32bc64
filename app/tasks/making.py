"""Tasks as they are made, and withdrawn."""

from __future__ import annotations

import uuid
from collections.abc import Sequence
from datetime import UTC, datetime

from sqlalchemy import and_, exists, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.audit import audit
from app.draws import draw
from app.errors import Invalid
from app.projects.models import Project
from app.prompts.models import Completion, Prompt
from app.tasks.models import Lease, LeaseState, Purpose, Task, TaskCompletion
from app.tasks.service import MAX_COMPLETIONS, get_task, take_back

MIN_COMPLETIONS = 2


async def create_task(
    session: AsyncSession,
    *,
    project: Project,
    prompt_id: uuid.UUID,
    completion_ids: Sequence[uuid.UUID],
    run_id: uuid.UUID | None = None,
    round: int | None = None,
    overlap: int | None = None,
    priority: int | None = None,
    purpose: Purpose = Purpose.LEARN,
) -> Task:
    """Let completions of one prompt wait to be ranked. `priority` is the round by default: the newest come first.

    Without an `overlap` of its own, the task is ranked by as many people as its project says: by N, or by one.

    Raises:
        Invalid: not 2 to 9 completions, two with the same text, or one that answers another prompt.
    """
    await _check_completions(session, project=project, prompt_id=prompt_id, completion_ids=completion_ids)
    is_single = overlap is None and not is_for_several(project, completion_ids)
    task = Task(
        project_id=project.id,
        prompt_id=prompt_id,
        run_id=run_id,
        round=round,
        overlap=overlap or (1 if is_single else project.overlap),
        is_single=is_single,
        priority=(round or 0) if priority is None else priority,
        purpose=purpose,
    )
    session.add(task)
    await session.flush()
    session.add_all(
        TaskCompletion(task_id=task.id, completion_id=completion_id, position=position)
        for position, completion_id in enumerate(completion_ids)
    )
    await session.flush()
    return task


def is_for_several(project: Project, completion_ids: Sequence[uuid.UUID]) -> bool:
    """Whether these answers are in the share of tasks that `overlap` people rank: by a seeded hash, so always alike."""
    return draw(project.seed, *sorted(completion_ids)) < project.overlap_share


async def _check_completions(
    session: AsyncSession, *, project: Project, prompt_id: uuid.UUID, completion_ids: Sequence[uuid.UUID]
) -> None:
    if not MIN_COMPLETIONS <= len(completion_ids) <= MAX_COMPLETIONS:
        raise Invalid.field(
            "completion_ids",
            f"a task compares {MIN_COMPLETIONS} to {MAX_COMPLETIONS} answers, not {len(completion_ids)}",
        )
    if len(set(completion_ids)) < len(completion_ids):
        raise Invalid.field("completion_ids", "names an answer twice")
    texts = (
        await session.scalars(
            select(Completion.text)
            .join(Prompt, Prompt.id == Completion.prompt_id)
            .where(
                Completion.id.in_(completion_ids), Completion.prompt_id == prompt_id, Prompt.project_id == project.id
            )
        )
    ).all()
    if len(texts) < len(completion_ids):
        raise Invalid.field("completion_ids", f"holds an answer that does not belong to prompt {prompt_id}")
    if len(set(texts)) < len(texts):
        raise Invalid.field("completion_ids", "holds two answers with the same text, which nobody could tell apart")


async def withdraw_task(
    session: AsyncSession, *, project_id: uuid.UUID, task_id: uuid.UUID, actor_id: uuid.UUID | None = None
) -> Task:
    """Hand a task out no more, and take it back from those who have it. What was ranked stays. Twice is harmless.

    Raises:
        NotFound: the project has no such task.
    """
    task = await get_task(session, project_id=project_id, task_id=task_id, for_update=True)
    if task.withdrawn_at is not None:
        return task
    task.withdrawn_at = datetime.now(UTC)
    await session.flush()
    # Whoever ranks it at this moment may finish: the ranking is kept as surplus. A lease that is locked is being
    # answered right now, and its ranking is taken.
    await take_back(session, and_(Lease.task_id == task_id, Lease.state == LeaseState.OPEN), limit=None)
    await audit(session, actor_id=actor_id, action="task.withdraw", subject=str(task_id))
    return task


async def withdraw_unranked(session: AsyncSession, task_ids: Sequence[uuid.UUID]) -> int:
    """Hand those of these tasks out no more that nobody has answered; returns how many.

    What is locked is being taken or answered right now, and is left alone: who holds a task may wait for the caller.
    """
    answered = exists().where(Lease.task_id == Task.id, Lease.state == LeaseState.ANSWERED)
    query = select(Task.id).where(Task.id.in_(task_ids), Task.withdrawn_at.is_(None), ~answered).order_by(Task.id)
    found = (await session.scalars(query.with_for_update(skip_locked=True, of=Task))).all()
    if found:
        await session.execute(update(Task).where(Task.id.in_(found)).values(withdrawn_at=datetime.now(UTC)))
        await take_back(session, and_(Lease.task_id.in_(found), Lease.state == LeaseState.OPEN), limit=None)
    return len(found)
