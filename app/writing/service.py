"""Writing: begin, save, send for review, approve, correct, reject. What is approved is a demonstration or a prompt.

Demonstrations answer training prompts only: those of the other splits are never learned from (design, rule 7). A
written prompt gets its split as any other does, from its question.
"""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from sqlalchemy import Select, exists, func, select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.audit import audit
from app.accounts.models import User
from app.db import stamp
from app.errors import Conflict, Forbidden, Invalid, NotFound
from app.projects.models import Project
from app.prompts.adding import ensure_prompts
from app.prompts.models import Completion, Prompt, Split
from app.prompts.service import text_hash
from app.rankings.models import Ranking, RankingPlace
from app.tasks.models import Lease, Task
from app.writing import drafts
from app.writing.bodies import WrittenPrompt, checked_body
from app.writing.models import Step, Writing, WritingKind, WritingState, WritingStep

OPEN_STATES = (WritingState.DRAFT, WritingState.SUBMITTED, WritingState.REJECTED)
EDITABLE = (WritingState.DRAFT, WritingState.REJECTED)
MAX_REASON_LENGTH = 2000


class NotOpen(Forbidden):
    """This project does not ask for such writing at the moment."""


class NotEditable(Conflict):
    """This was sent for review, or settled. Take it back first, or write another."""


class NotInReview(Conflict):
    """This is not in review any more: somebody settled it, or its author took it back."""


class OwnWriting(Forbidden):
    """Somebody else must approve what you wrote yourself."""


class WritingNotFound(NotFound):
    """There is no such piece of writing, or it is not yours to see."""


class HeldOut(Invalid):
    """This prompt is held out for tests or validation: what is written for it would never be learned from."""


# Beginning


async def begin_demonstration(session: AsyncSession, *, project: Project, author: User) -> Writing | None:
    """The answer that this person has open, or one to the next training prompt that nobody answers yet; None: no more.

    Raises:
        NotOpen: the project asks for none.
    """
    if not project.writes_demonstrations:
        raise NotOpen
    mine = open_of(author.id).where(Writing.project_id == project.id, Writing.kind == WritingKind.DEMONSTRATION)
    draft = await session.scalar(mine.where(Writing.state == WritingState.DRAFT).limit(1))
    if draft is not None:
        return draft
    prompt = await session.scalar(
        select(Prompt)
        .where(Prompt.project_id == project.id, Prompt.split == Split.TRAIN, Prompt.withdrawn_at.is_(None))
        .where(~exists().where(Writing.prompt_id == Prompt.id, Writing.state != WritingState.WITHDRAWN))
        .where(~exists().where(Writing.prompt_id == Prompt.id, Writing.author_id == author.id))
        .where(~exists().where(Completion.prompt_id == Prompt.id, Completion.is_demonstration))
        .order_by(Prompt.number)
        .limit(1)
    )
    if prompt is None:
        return None
    answer = await drafts.find_draft(session, project=project, prompt=prompt)
    return await add(session, project, author, prompt=prompt, draft=answer)


async def begin_prompt(session: AsyncSession, *, project: Project, author: User, prompt_kind: str) -> Writing:
    """A new prompt to write.

    Raises:
        NotOpen: the project asks for none.
    """
    if not project.writes_prompts:
        raise NotOpen
    return await add(session, project, author, body={"kind": prompt_kind})


async def begin_from_lease(session: AsyncSession, *, project: Project, lease: Lease, author: User) -> Writing:
    """An ideal answer to the prompt of a task that this person ranks or ranked; it begins as their best answer, if any.

    Raises:
        NotOpen: the project asks for none.
        HeldOut: the prompt is not for training.
    """
    if not project.writes_demonstrations:
        raise NotOpen
    prompt = (await session.scalars(select(Prompt).join(Task).where(Task.id == lease.task_id))).one()
    if prompt.split != Split.TRAIN:
        raise HeldOut
    found = await session.scalar(open_of(author.id).where(Writing.prompt_id == prompt.id))
    if found is not None:
        return found
    best = await best_answer(session, lease)
    body = {"text": best.text} if best else {}
    return await add(session, project, author, prompt=prompt, body=body, began_from=best)


async def best_answer(session: AsyncSession, lease: Lease) -> Completion | None:
    """The answer that came first in the newest ranking of a lease; None before there is one."""
    query = (
        select(Completion)
        .join(RankingPlace, RankingPlace.completion_id == Completion.id)
        .join(Ranking, Ranking.id == RankingPlace.ranking_id)
        .where(Ranking.lease_id == lease.id, RankingPlace.place == 1)
        .order_by(Ranking.number.desc(), Completion.id)
    )
    found: Completion | None = await session.scalar(query.limit(1))
    return found


async def add(
    session: AsyncSession,
    project: Project,
    author: User,
    *,
    prompt: Prompt | None = None,
    body: Mapping[str, Any] | None = None,
    began_from: Completion | None = None,
    draft: Completion | None = None,
) -> Writing:
    """A new draft; the one that another tab began a moment ago, if so. It begins as the model's, unless the lot says
    that this person writes without help.
    """
    is_assisted = draft is not None and prompt is not None and drafts.is_helped(project, prompt, author)
    if draft is not None and is_assisted:
        body, began_from = {"text": draft.text}, draft
    writing = Writing(
        project_id=project.id,
        kind=WritingKind.DEMONSTRATION if prompt else WritingKind.PROMPT,
        author_id=author.id,
        prompt_id=prompt.id if prompt else None,
        body=dict(body or {}),
        began_from_id=began_from.id if began_from else None,
        draft_id=draft.id if draft else None,
        is_assisted=is_assisted,
    )
    try:
        async with session.begin_nested():
            session.add(writing)
    except IntegrityError:
        found = open_of(author.id).where(Writing.prompt_id == (prompt.id if prompt else None))
        return (await session.scalars(found)).one()
    return writing


def open_of(author_id: uuid.UUID) -> Select[Writing]:
    """What a person has not finished, oldest first."""
    return (
        select(Writing).where(Writing.author_id == author_id, Writing.state.in_(OPEN_STATES)).order_by(Writing.number)
    )


# The author


async def save(
    session: AsyncSession, *, writing: Writing, author: User, body: Mapping[str, Any], follows: str | None = None
) -> bool:
    """Keep what was written so far; whether it was stored.

    `follows`: the stamp of the save that its page knew, empty for none. When another came since, this one was overtaken
    on its way, and is not stored; without `follows` nobody asks.

    Raises:
        NotEditable: it is in review, or settled.
    """
    await lock(session, writing)
    require_author(writing, author)
    if writing.state not in EDITABLE:
        raise NotEditable
    if follows is not None and follows != stamp(writing.saved_at):
        return False
    writing.body = dict(body)
    writing.saved_at = datetime.now(UTC)
    await session.flush()
    return True


async def submit(session: AsyncSession, *, writing: Writing, author: User, body: Mapping[str, Any]) -> None:
    """Send it for review. What can't be sent is kept as a draft all the same.

    Raises:
        NotEditable: it is in review, or settled.
        Invalid: something is missing; each field is named.
    """
    await save(session, writing=writing, author=author, body=body)
    checked_body(writing.kind, body)
    writing.state = WritingState.SUBMITTED
    await note(session, writing, Step.SUBMITTED, author)


async def take_back(session: AsyncSession, *, writing: Writing, author: User) -> None:
    """Work on it again before anybody reviewed it; twice is harmless.

    Raises:
        NotInReview: it was settled.
    """
    await lock(session, writing)
    require_author(writing, author)
    if writing.state in EDITABLE:
        return
    if writing.state != WritingState.SUBMITTED:
        raise NotInReview
    writing.state = WritingState.DRAFT
    await session.flush()


async def withdraw(session: AsyncSession, *, writing: Writing, author: User) -> None:
    """Give it up; its steps stay.

    Raises:
        NotEditable: it is in review, or approved.
    """
    await lock(session, writing)
    require_author(writing, author)
    if writing.state not in (*EDITABLE, WritingState.WITHDRAWN):
        raise NotEditable
    writing.state = WritingState.WITHDRAWN
    await session.flush()


# The reviewer


async def approve(
    session: AsyncSession, *, project: Project, writing: Writing, reviewer: User, body: Mapping[str, Any]
) -> None:
    """Take it, as it is in `body`: a correction is a step of its own. It becomes a demonstration or a prompt.

    Raises:
        NotInReview: it was settled, or taken back.
        OwnWriting: they wrote it themselves, and the project wants another reviewer.
        Invalid: the correction can't be stored, or the project has the prompt already.
    """
    await lock(session, writing)
    if writing.state != WritingState.SUBMITTED:
        raise NotInReview
    if writing.author_id == reviewer.id and not project.allows_self_review:
        raise OwnWriting
    content = checked_body(writing.kind, body)
    if dict(body) != writing.body:
        writing.body = dict(body)
        await note(session, writing, Step.CORRECTED, reviewer)
    if isinstance(content, WrittenPrompt):
        writing.written_prompt_id = await store_prompt(session, project, writing, content)
    else:
        writing.completion_id = await store_demonstration(session, writing, content.text)
    writing.state = WritingState.APPROVED
    await note(session, writing, Step.APPROVED, reviewer)
    await audit(session, actor_id=reviewer.id, action="writing.approve", subject=str(writing.id))


async def reject(session: AsyncSession, *, writing: Writing, reviewer: User, reason: str) -> None:
    """Give it back to its author, who may mend it and send it again.

    Raises:
        NotInReview: it was settled, or taken back.
        Invalid: there is no reason, or it is too long.
    """
    await lock(session, writing)
    if writing.state != WritingState.SUBMITTED:
        raise NotInReview
    reason = reason.strip()
    if not reason:
        raise Invalid.field("reason", "Say why, so that the author can mend it.")
    if len(reason) > MAX_REASON_LENGTH:
        raise Invalid.field("reason", "This takes at most {max_length} characters.", max_length=MAX_REASON_LENGTH)
    writing.state = WritingState.REJECTED
    await note(session, writing, Step.REJECTED, reviewer, reason=reason)
    await audit(session, actor_id=reviewer.id, action="writing.reject", subject=str(writing.id))


async def store_demonstration(session: AsyncSession, writing: Writing, text: str) -> uuid.UUID:
    """A completion by a person, to be imitated."""
    completion = Completion(
        prompt_id=writing.prompt_id,
        text=text,
        content_hash=text_hash(text),
        author_id=writing.author_id,
        is_demonstration=True,
    )
    session.add(completion)
    await session.flush()
    return completion.id


async def store_prompt(session: AsyncSession, project: Project, writing: Writing, content: WrittenPrompt) -> uuid.UUID:
    """A prompt of the project.

    Raises:
        Invalid: the project has it already.
    """
    (prompt_id,), num_new = await ensure_prompts(session, project, [content.as_line()])
    if not num_new:
        raise Invalid.field("instruction", "The project has this prompt already.")
    return prompt_id


async def note(session: AsyncSession, writing: Writing, step: Step, by: User, *, reason: str = "") -> None:
    """Write down a step, with what was written at that moment."""
    session.add(WritingStep(writing_id=writing.id, step=step, by_id=by.id, reason=reason, body=dict(writing.body)))
    await session.flush()


async def lock(session: AsyncSession, writing: Writing) -> None:
    """Its author and its reviewers take turns; held to the end of the transaction."""
    await session.refresh(writing, with_for_update=True)


def require_author(writing: Writing, person: User) -> None:
    """Only its author changes it.

    Raises:
        WritingNotFound: somebody else wrote it.
    """
    if writing.author_id != person.id:
        raise WritingNotFound


# Reading


@dataclass(frozen=True)
class WritingView:
    """A piece of writing with what belongs to it. `steps`: (step, who did it), oldest first."""

    writing: Writing
    author: str | None
    prompt: Prompt | None
    steps: Sequence[tuple[WritingStep, str | None]]


async def get_writing(session: AsyncSession, writing_id: uuid.UUID) -> Writing:
    """A piece of writing by id.

    Raises:
        WritingNotFound: there is none.
    """
    writing = await session.get(Writing, writing_id)
    if writing is None:
        raise WritingNotFound
    return writing


async def view_of(session: AsyncSession, writing: Writing) -> WritingView:
    """All that its page shows."""
    steps = await session.execute(
        select(WritingStep, User.name)
        .outerjoin(User, User.id == WritingStep.by_id)
        .where(WritingStep.writing_id == writing.id)
        .order_by(WritingStep.id)
    )
    author = await session.get(User, writing.author_id) if writing.author_id else None
    prompt = await session.get(Prompt, writing.prompt_id) if writing.prompt_id else None
    return WritingView(writing, author.name if author else None, prompt, [(step, name) for step, name in steps])


async def list_of_author(
    session: AsyncSession, *, project_id: uuid.UUID, author: User, before: int | None = None, limit: int = 50
) -> list[tuple[Writing, Prompt | None]]:
    """What a person wrote in a project, newest first, with the prompts that it answers."""
    query = with_prompts().where(
        Writing.project_id == project_id, Writing.author_id == author.id, Writing.state != WritingState.WITHDRAWN
    )
    if before is not None:
        query = query.where(Writing.number < before)
    rows = await session.execute(query.order_by(Writing.number.desc()).limit(limit))
    return [(writing, prompt) for writing, prompt in rows]


async def list_queue(
    session: AsyncSession, *, project_id: uuid.UUID, after: int | None = None, limit: int = 50
) -> list[tuple[Writing, Prompt | None]]:
    """What waits for review, oldest first."""
    query = with_prompts().where(Writing.project_id == project_id, Writing.state == WritingState.SUBMITTED)
    if after is not None:
        query = query.where(Writing.number > after)
    rows = await session.execute(query.order_by(Writing.number).limit(limit))
    return [(writing, prompt) for writing, prompt in rows]


def with_prompts() -> Select[Writing, Prompt]:
    """Writings, each with the prompt that it answers, if it answers one."""
    return select(Writing, Prompt).outerjoin(Prompt, Prompt.id == Writing.prompt_id)


async def count_queue(session: AsyncSession, project_id: uuid.UUID) -> int:
    """How many pieces wait for review."""
    query = select(func.count()).where(Writing.project_id == project_id, Writing.state == WritingState.SUBMITTED)
    return await session.scalar(query) or 0
