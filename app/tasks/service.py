"""Which task next, and whose it is: tasks, leases, skips, expiry, display order.

Locks are taken in one order everywhere, so that nobody waits in a circle: the annotator, the lease, its task. Whatever
belongs to somebody else (overdue leases, waiting tasks) is locked with SKIP LOCKED and never waited for.
"""

from __future__ import annotations

import asyncio
import random
import secrets
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, TypeVar

from sqlalchemy import (
    ColumnElement,
    and_,
    bindparam,
    column,
    exists,
    func,
    inspect,
    literal,
    or_,
    select,
    text,
    update,
)
from sqlalchemy.dialects.postgresql import JSONB
from sqlalchemy.ext.asyncio import AsyncSession

from app import facts
from app.accounts.models import AnyUser, User
from app.db import begin
from app.errors import Conflict, Invalid, NotFound, Unavailable
from app.facts import Question
from app.projects.models import AnyProject, Project
from app.prompts.models import Completion
from app.tasks import audiences, standings
from app.tasks.models import (
    AnyLease,
    AnyTask,
    Lease,
    LeaseFacts,
    LeaseKind,
    LeaseState,
    SkipKind,
    Task,
    TaskCompletion,
)

T = TypeVar("T")
MAX_COMPLETIONS = 9
LETTERS = "ABCDEFGHI"
MAX_REASON_LENGTH = 500
# When every waiting task is locked by someone for a moment, look again after these seconds.
RETRY_PAUSES = (0.01, 0.02, 0.05, 0.1, 0.2, 0.4, 0.8, 1.6)
PACK_LIFE = timedelta(hours=12)
MAX_PACK = 25


class LeaseNotFound(NotFound):
    """There is no such task for you. Open the next one."""


class LeaseAnswered(Conflict):
    """You have ranked this task already."""


class LeaseReleased(Conflict):
    """This task was skipped or withdrawn, and takes no ranking any more. Open the next one."""


class TasksPacked(Conflict):
    """You took tasks offline, on this device or another. Rank them there, or give them back."""


class TasksContended(Unavailable):
    """Many people are taking tasks at this very moment. Try again in a few seconds."""


@dataclass(frozen=True)
class Card:
    """One answer as an annotator sees it: nothing here tells who wrote it."""

    id: uuid.UUID
    letter: str
    text: str


@dataclass(frozen=True)
class Shown:
    """All that the API shows of one lease. `cards` are in the order of display."""

    lease: AnyLease
    project: AnyProject
    messages: Sequence[Mapping[str, Any]]
    cards: Sequence[Card]


@dataclass(frozen=True)
class Sheet(Shown):
    """The same with all that the ranking page shows beside it."""

    lease: Lease
    project: Project


# Taking tasks


async def next_lease(
    session: AsyncSession, *, project: AnyProject, annotator: AnyUser, now: datetime, pack_id: uuid.UUID | None = None
) -> Lease | None:
    """The task that this annotator works on: the one in hand, one that was left, or a new one. None: nothing waits.

    Asking again gives the same lease. An open lease in another project is given back; its draft waits there. `pack_id`
    is the pack of the device that asks, if it has one: its tasks come first.

    Raises:
        TasksPacked: the annotator's tasks are in another device's pack, or in one of another project.
        Unqualified: they have to pass the project's qualification first, or again.
        TasksContended: tasks wait, and all of them stayed locked by others for seconds.
    """
    if is_usual(project):
        lease = await claim(session, project=project, annotator=annotator, now=now, is_empty_handed=True)
        if lease is not None:
            return lease
    await begin(session)
    return await _next_of_held(session, project=project, annotator=annotator, now=now, pack_id=pack_id)


async def next_sheet(session: AsyncSession, *, project: AnyProject, annotator: AnyUser, now: datetime) -> Shown | None:
    """As `next_lease`, with what the lease shows; in the usual case one question, which is a transaction by itself."""
    if is_usual(project):
        sheet = await claim_sheet(session, project=project, annotator=annotator, now=now)
        if sheet is not None:
            return sheet
    await begin(session)
    lease = await _next_of_held(session, project=project, annotator=annotator, now=now)
    return await get_sheet(session, lease) if lease is not None else None


def is_usual(project: AnyProject) -> bool:
    """Whether a task is there for whoever has none in hand, as nobody asks who may work."""
    return not (_is_resting(project) or standings.has_gate(project))


def _is_resting(project: AnyProject) -> bool:
    return project.is_paused or project.archived_at is not None


async def _next_of_held(
    session: AsyncSession,
    *,
    project: AnyProject,
    annotator: AnyUser,
    now: datetime,
    pack_id: uuid.UUID | None = None,
) -> Lease | None:
    """As `next_lease`, whatever the annotator may have in hand."""
    held = await hold_leases(session, annotator=annotator, now=now)
    packed = [lease for lease in held if lease.kind == LeaseKind.OFFLINE]
    if packed:
        return await _first_of_pack(session, packed, project=project, pack_id=pack_id)
    lease = await lease_in_hand(session, held, project)
    if lease is not None or _is_resting(project):
        return lease
    if await standings.is_tested(session, project, annotator):
        return await _next_test(session, project=project, annotator=annotator, now=now)
    for pause in (*RETRY_PAUSES, None):
        lease = await claim(session, project=project, annotator=annotator, now=now)
        if lease is not None or not await _is_any_waiting(session, project, annotator, now):
            return lease
        if pause is not None:
            await asyncio.sleep(pause)
    raise TasksContended


def has_place() -> ColumnElement[bool]:
    """Tasks that wait for somebody, or would if they were not withdrawn. Gold waits for nobody: it comes between."""
    return and_(Task.num_taken < Task.overlap, ~Task.is_gold)


# Not a parameter, or the plan that PostgreSQL keeps for a prepared statement could not use the index of open leases.
IS_OPEN = Lease.state == literal(LeaseState.OPEN.value, literal_execute=True)
# The rule of who gets which task, and its order, is this function: migrations/versions/0026_claims.py.
ASKED = {
    "project_id": "uuid",
    "annotator_id": "uuid",
    "now": "timestamptz",
    "until": "timestamptz",
    "kind": "text",
    "pack_id": "uuid",
    "is_test": "boolean",
    "is_empty_handed": "boolean",
    "seed": "bigint",
    "shuffled": "integer[]",
}
# The same with the one in hand before it: migrations/versions/0044_claim_ahead.py.
ASKED_AHEAD = {name: ASKED[name] for name in ("project_id", "annotator_id", "now", "until", "seed", "shuffled")}


def _claimed(columns: str, parameter: str, function: str = "claim_task", asked: Mapping[str, str] = ASKED) -> str:
    """A claim as SQL, with what the lease shows as its last column."""
    values = ", ".join(f"cast({parameter.format(name)} as {kind})" for name, kind in asked.items())
    return f"select {columns}, sheet_of(task_id) as sheet from {function}({values})"  # noqa: S608


CLAIM = select(Lease, column("sheet", JSONB)).from_statement(text(_claimed("*", ":{}")))
CLAIM_AHEAD = select(Lease, column("sheet", JSONB)).from_statement(
    text(_claimed("*", ":{}", "claim_ahead", ASKED_AHEAD))
)
CLAIM_SHEET = Question.of(_claimed(", ".join(LeaseFacts._fields), "%({})s"), LeaseFacts, None)


async def claim(
    session: AsyncSession,
    *,
    project: AnyProject,
    annotator: AnyUser,
    now: datetime,
    kind: LeaseKind = LeaseKind.ACTIVE,
    pack_id: uuid.UUID | None = None,
    is_test: bool = False,
    is_empty_handed: bool = False,
) -> Lease | None:
    """A lease on a task that was left, or on a new one. None: nothing waits, or others hold it locked right now.

    `is_test`: on one of the qualification. `is_empty_handed`: None as well where the annotator has a task in hand.
    """
    values = _asked(project, annotator, now, kind, pack_id, is_test=is_test, is_empty_handed=is_empty_handed)
    leases = await _claim(session, CLAIM, values)
    return leases[0] if leases else None


async def claim_ahead(session: AsyncSession, *, project: AnyProject, annotator: AnyUser, now: datetime) -> list[Lease]:
    """In the usual case the lease in hand and, where a task waits, the one after it; none in any other case.

    The one that was fetched ahead before is in hand when the one before it is done.
    """
    values = _asked(project, annotator, now, LeaseKind.PRELOADED, None, is_test=False, is_empty_handed=False)
    return await _claim(session, CLAIM_AHEAD, {name: values[name] for name in ASKED_AHEAD})


async def _claim(session: AsyncSession, statement: Any, values: Mapping[str, Any]) -> list[Lease]:
    found = (await session.execute(statement, values, execution_options={"populate_existing": True})).all()
    for lease, sheet in found:
        inspect(lease).info[SHEET] = sheet
    return [lease for lease, _ in found]


async def claim_sheet(session: AsyncSession, *, project: AnyProject, annotator: AnyUser, now: datetime) -> Shown | None:
    """As `claim`, for whoever has nothing in hand."""
    values = _asked(project, annotator, now, LeaseKind.ACTIVE, None, is_test=False, is_empty_handed=True)
    found = await facts.ask(session, CLAIM_SHEET, values)
    if found is None:
        return None
    lease, shown = found
    return Shown(lease, project, **_read(lease, shown))


def _asked(
    project: AnyProject,
    annotator: AnyUser,
    now: datetime,
    kind: LeaseKind,
    pack_id: uuid.UUID | None,
    *,
    is_test: bool,
    is_empty_handed: bool,
) -> dict[str, Any]:
    """What `claim_task` is told."""
    seed = secrets.randbits(63)
    return {
        "project_id": project.id,
        "annotator_id": annotator.id,
        "now": now,
        "until": now + (PACK_LIFE if kind == LeaseKind.OFFLINE else timedelta(minutes=project.lease_minutes)),
        "kind": str(kind),
        "pack_id": pack_id,
        "is_test": is_test,
        "is_empty_handed": is_empty_handed,
        "seed": seed,
        "shuffled": shuffle(range(MAX_COMPLETIONS), seed),
    }


async def _next_test(session: AsyncSession, *, project: AnyProject, annotator: AnyUser, now: datetime) -> Lease:
    """A task of the qualification.

    Raises:
        Unqualified: this person had them all; the page of the qualification says so.
        TasksContended: all that are left stayed locked by others for seconds.
    """
    for pause in (*RETRY_PAUSES, None):
        lease = await claim(session, project=project, annotator=annotator, now=now, is_test=True)
        if lease is not None:
            return lease
        if not await count_tests_left(session, project, annotator):
            raise standings.Unqualified(project)
        if pause is not None:
            await asyncio.sleep(pause)
    raise TasksContended


async def count_tests_left(session: AsyncSession, project: AnyProject, annotator: AnyUser) -> int:
    """How many tasks of the qualification this annotator has not had."""
    query = select(func.count()).select_from(Task).where(_is_handed_out([project.id]), Task.is_gold)
    return (
        await session.scalar(
            query.where(Task.is_qualifying, ~_had_by(annotator), audiences.is_for(project.id, annotator.id))
        )
        or 0
    )


# What every next task asks is put together once: building it takes longer than running it.
THIS_ANNOTATOR = select(User.id).where(User.id == bindparam("annotator_id")).with_for_update(key_share=True)
HELD_LEASES = (
    select(Lease)
    .where(Lease.annotator_id == bindparam("annotator_id"), Lease.state == LeaseState.OPEN)
    .order_by(Lease.created_at, Lease.id)
    .with_for_update()
    .execution_options(populate_existing=True)
)


async def lock_annotator(session: AsyncSession, annotator_id: uuid.UUID) -> None:
    """One annotator's requests take turns, in however many tabs. Held to the end of the transaction."""
    await session.execute(THIS_ANNOTATOR, {"annotator_id": annotator_id})


async def hold_leases(session: AsyncSession, *, annotator: AnyUser, now: datetime) -> list[Lease]:
    """The annotator and what they hold open at this moment, locked, oldest first. What is overdue is taken back."""
    await lock_annotator(session, annotator.id)
    leases = (await session.scalars(HELD_LEASES, {"annotator_id": annotator.id})).all()
    await give_back(session, [lease for lease in leases if lease.expires_at <= now])
    return [lease for lease in leases if lease.state == LeaseState.OPEN]


async def give_back(session: AsyncSession, leases: Sequence[Lease]) -> None:
    """Let others have these tasks. Drafts stay, and so does the way back while a place is free."""
    for lease in leases:
        lease.state = LeaseState.EXPIRED
    await session.flush()


async def _first_of_pack(
    session: AsyncSession, packed: Sequence[Lease], *, project: AnyProject, pack_id: uuid.UUID | None
) -> Lease:
    if packed[0].pack_id != pack_id or (await project_of(session, packed[0])).id != project.id:
        raise TasksPacked
    return packed[0]


async def lease_in_hand(session: AsyncSession, held: Sequence[Lease], project: AnyProject) -> Lease | None:
    """What the annotator has in hand in this project, else the task that was fetched ahead. Others go back."""
    if not held:
        return None
    task_ids = [lease.task_id for lease in held]
    here = set(await session.scalars(select(Task.id).where(Task.id.in_(task_ids), Task.project_id == project.id)))
    await give_back(session, [lease for lease in held if lease.task_id not in here])
    mine = {lease.kind: lease for lease in held if lease.task_id in here}
    ahead = mine.get(LeaseKind.PRELOADED)
    if LeaseKind.ACTIVE in mine or ahead is None:
        return mine.get(LeaseKind.ACTIVE)
    if not await _is_still_due(session, ahead, project):
        await give_back(session, [ahead])
        return None
    ahead.kind = LeaseKind.ACTIVE
    await session.flush()
    return ahead


async def _is_still_due(session: AsyncSession, lease: Lease, project: AnyProject) -> bool:
    """Whether a task that was fetched ahead is handed out: it was begun, or no admin's change speaks against it."""
    if lease.draft is not None:
        return True
    annotator = await session.get_one(User, lease.annotator_id)
    if not await standings.may_work(session, project, annotator):
        return False
    task = await session.get_one(Task, lease.task_id, populate_existing=True)
    has_its_place = task.is_gold or task.num_taken <= task.overlap
    return not project.is_paused and project.archived_at is None and has_its_place


def _had_by(annotator: AnyUser) -> ColumnElement[bool]:
    """Whether this annotator has, or ever had, a lease on the task."""
    return exists().where(Lease.task_id == Task.id, Lease.annotator_id == annotator.id)


def _is_handed_out(project_ids: Sequence[uuid.UUID]) -> ColumnElement[bool]:
    return and_(Task.project_id.in_(project_ids), Task.withdrawn_at.is_(None))


def shuffle(items: Sequence[T], seed: int) -> list[T]:
    """The order of display: the same for the same seed, and all orders are as likely."""
    places = random.Random(seed).sample(range(MAX_COMPLETIONS), k=MAX_COMPLETIONS)
    return [items[place] for place in places if place < len(items)]


def _is_overdue(now: datetime) -> ColumnElement[bool]:
    return and_(IS_OPEN, Lease.expires_at <= now)


async def _is_any_waiting(session: AsyncSession, project: AnyProject, annotator: AnyUser, now: datetime) -> bool:
    """Whether there is a place for this annotator, locked or not."""
    own = exists().where(
        Lease.task_id == Task.id, Lease.annotator_id == annotator.id, Lease.state == LeaseState.EXPIRED
    )
    overdue = exists().where(Lease.task_id == Task.id, _is_overdue(now))
    mine_or_new = or_(own, and_(~_had_by(annotator), audiences.is_for(project.id, annotator.id)))
    found = await session.scalar(
        select(exists().where(_is_handed_out([project.id]), ~Task.is_gold, or_(has_place(), overdue), mine_or_new))
    )
    return bool(found)


# Giving back


async def expire_leases(session: AsyncSession, *, now: datetime | None = None, limit: int = 1000) -> int:
    """Take back leases that are overdue; returns how many. Drafts stay. What is locked is in use, and left alone."""
    return await take_back(session, _is_overdue(now or datetime.now(UTC)), limit)


async def take_back(session: AsyncSession, condition: ColumnElement[bool], limit: int | None) -> int:
    """End open leases of which this holds, but for those that are locked: they are in use. Returns how many."""
    ids = (
        await session.scalars(
            select(Lease.id)
            .join(Task, Task.id == Lease.task_id)
            .where(condition)
            .order_by(Lease.expires_at)
            .limit(limit)
            .with_for_update(skip_locked=True)
        )
    ).all()
    if ids:
        await session.execute(
            update(Lease)
            .where(Lease.id.in_(ids))
            .values(state=LeaseState.EXPIRED)
            .execution_options(synchronize_session="fetch")
        )
    return len(ids)


# Locked by one statement, the annotator first. What is locked is what it is now, not what it was when the statement
# began to wait; keys stay free, as nobody changes them.
LOCKED_LEASE = (
    select(Lease)
    .join(User, User.id == Lease.annotator_id)
    .where(Lease.id == bindparam("lease_id"), User.id == bindparam("annotator_id"))
    .with_for_update(key_share=True, of=[User, Lease])
    .execution_options(populate_existing=True)
)


async def leased_task(session: AsyncSession, *, lease_id: uuid.UUID, annotator: AnyUser) -> tuple[Lease, Task]:
    """The annotator's lease and its task, not locked: as the guards found them, where they did.

    Raises:
        LeaseNotFound: there is none, or it is somebody else's.
    """
    lease = await session.get(Lease, lease_id)
    if lease is None or lease.annotator_id != annotator.id:
        raise LeaseNotFound
    return lease, await session.get_one(Task, lease.task_id)


async def known_task(session: AsyncSession, *, lease_id: uuid.UUID, annotator: AnyUser) -> tuple[AnyLease, AnyTask]:
    """The same, or only their facts.

    Raises:
        LeaseNotFound: there is none, or it is somebody else's.
    """
    lease: AnyLease | None = await facts.get(session, Lease, lease_id)
    if lease is None or lease.annotator_id != annotator.id:
        raise LeaseNotFound
    return lease, await facts.get(session, Task, lease.task_id)


async def lock_lease(session: AsyncSession, *, lease_id: uuid.UUID, annotator: AnyUser) -> Lease:
    """The annotator's lease, locked together with the annotator.

    Raises:
        LeaseNotFound: there is none, or it is somebody else's.
    """
    lease: Lease | None = await session.scalar(LOCKED_LEASE, {"lease_id": lease_id, "annotator_id": annotator.id})
    if lease is None:
        raise LeaseNotFound
    return lease


async def release_lease(
    session: AsyncSession,
    *,
    lease_id: uuid.UUID,
    annotator: AnyUser,
    reason: str | None = None,
    kind: SkipKind | None = None,
) -> Lease:
    """Skip: someone else gets the task, and this annotator not again. Twice is harmless. A broken one is a report.

    Raises:
        LeaseNotFound: it is not this annotator's.
        LeaseAnswered: it was ranked already.
        Invalid: the reason is too long, or no plain text, or missing where it is none of the list.
    """
    lease = await lock_lease(session, lease_id=lease_id, annotator=annotator)
    if lease.state == LeaseState.ANSWERED:
        raise LeaseAnswered
    if lease.state != LeaseState.RELEASED:
        words = check_text("reason", reason or "", MAX_REASON_LENGTH)
        if kind == SkipKind.OTHER and not words:
            raise Invalid.field("reason", "say in your words why you skip this task")
        lease.state, lease.skip_kind, lease.skip_reason = LeaseState.RELEASED, kind, words or None
        await session.flush()
    return lease


async def extend_lease(session: AsyncSession, *, lease_id: uuid.UUID, annotator: AnyUser, now: datetime) -> Lease:
    """A sign of life: an open lease runs from now again.

    Raises:
        LeaseNotFound, LeaseAnswered, LeaseReleased: it can't be worked on.
    """
    lease = await lock_lease(session, lease_id=lease_id, annotator=annotator)
    require_workable(lease)
    if lease.state == LeaseState.OPEN:
        until = now + timedelta(minutes=(await project_of(session, lease)).lease_minutes)
        # Whoever works on one task will want the next one that was fetched ahead.
        await session.execute(
            update(Lease)
            .where(Lease.annotator_id == annotator.id, Lease.state == LeaseState.OPEN, Lease.expires_at < until)
            .where(or_(Lease.id == lease.id, Lease.kind == LeaseKind.PRELOADED))
            .values(expires_at=until)
            .execution_options(synchronize_session="fetch")
        )
    return lease


def check_text(field: str, text: str, max_length: int) -> str:
    """A text that a person typed, without space around it.

    Raises:
        Invalid: it is too long, or holds what no database stores.
    """
    if len(text) > max_length:
        raise Invalid.field(field, f"takes at most {max_length} characters; this has {len(text)}")
    if "\0" in text or any("\ud800" <= letter <= "\udfff" for letter in text):
        raise Invalid.field(field, "must not hold NUL or half of a surrogate pair")
    return text.strip()


def require_workable(lease: Lease) -> None:
    """Refuse what can't be worked on any more.

    Raises:
        LeaseAnswered: it was ranked.
        LeaseReleased: it was skipped or withdrawn.
    """
    if lease.state == LeaseState.ANSWERED:
        raise LeaseAnswered
    if lease.state == LeaseState.RELEASED:
        raise LeaseReleased


# Looking


async def get_lease(session: AsyncSession, *, lease_id: uuid.UUID, annotator: AnyUser) -> Lease:
    """The annotator's lease, not locked.

    Raises:
        LeaseNotFound: there is none, or it is somebody else's.
    """
    lease = await session.scalar(select(Lease).where(Lease.id == lease_id, Lease.annotator_id == annotator.id))
    if lease is None:
        raise LeaseNotFound
    return lease


async def project_of(session: AsyncSession, lease: Lease) -> Project:
    """The project of a lease's task."""
    return (
        await session.scalars(select(Project).join(Task, Task.project_id == Project.id).where(Task.id == lease.task_id))
    ).one()


# Where a lease that was just claimed keeps what it shows.
SHEET = "sheet"


async def get_sheet(session: AsyncSession, lease: Lease) -> Sheet:
    """What the holder of this lease sees."""
    shown: dict[str, Any] | None = inspect(lease).info.get(SHEET)
    if shown is None:
        asked = select(func.sheet_of(lease.task_id, type_=JSONB))
        shown = (await session.scalars(asked)).one()
    project = await session.get_one(Project, uuid.UUID(shown["project_id"]))
    return Sheet(lease, project, **_read(lease, shown))


def _read(lease: AnyLease, shown: Mapping[str, Any]) -> dict[str, Any]:
    """What `sheet_of` tells of a lease."""
    texts = {uuid.UUID(key): text for key, text in shown["texts"].items()}
    return {"messages": shown["messages"], "cards": lettered(lease.display_order, texts)}


async def cards_of(session: AsyncSession, display_order: Sequence[uuid.UUID]) -> list[Card]:
    """The answers with their letters, in this order."""
    rows = await session.execute(select(Completion.id, Completion.text).where(Completion.id.in_(display_order)))
    return lettered(display_order, {row.id: row.text for row in rows})


def lettered(display_order: Sequence[uuid.UUID], texts: Mapping[uuid.UUID, str]) -> list[Card]:
    """Texts with their letters, in this order."""
    return [
        Card(id=completion_id, letter=letter, text=texts[completion_id])
        for letter, completion_id in zip(LETTERS, display_order, strict=False)
    ]


async def completion_ids(session: AsyncSession, task_id: uuid.UUID) -> list[uuid.UUID]:
    """The completions of a task, in the order in which it was made."""
    return list(
        await session.scalars(
            select(TaskCompletion.completion_id)
            .where(TaskCompletion.task_id == task_id)
            .order_by(TaskCompletion.position)
        )
    )


async def get_task(
    session: AsyncSession, *, project_id: uuid.UUID, task_id: uuid.UUID, for_update: bool = False
) -> Task:
    """A task of a project.

    Raises:
        NotFound: it has no such task.
    """
    query = select(Task).where(Task.id == task_id, Task.project_id == project_id)
    if for_update:
        query = query.with_for_update().execution_options(populate_existing=True)
    task = await session.scalar(query)
    if task is None:
        raise NotFound("There is no such task in this project.")
    return task


async def lock_task(session: AsyncSession, task_id: uuid.UUID) -> Task:
    """A task that is there, locked; its counter as it is at this moment."""
    return (
        await session.scalars(
            select(Task).where(Task.id == task_id).with_for_update().execution_options(populate_existing=True)
        )
    ).one()
