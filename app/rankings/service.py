"""The answer: checked, stored once, immutable, superseded by a change of mind. Drafts are kept by `app.tasks`."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

from sqlalchemy import ColumnElement, and_, exists, or_, select, text, tuple_
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import InstrumentedAttribute, aliased

from app import facts
from app.accounts.models import AnyUser, User
from app.db import begin
from app.errors import Conflict, FieldError, Invalid, NotFound
from app.events import events
from app.projects import tallies
from app.projects.models import AnyProject, Project
from app.projects.service import asked_labels, names_of
from app.rankings import storing
from app.rankings.answers import Order, RankingAnswer, Rules, body_hash, errors_of, order_of, tidy
from app.rankings.models import PlaceFacts, Ranking, RankingPlace
from app.rankings.provenance import UNKNOWN, Provenance
from app.tasks import service as tasks
from app.tasks.models import AnyLease, AnyTask, Lease, LeaseState, Purpose, Task, TaskCompletion
from app.tasks.service import LETTERS, LeaseReleased

# A lease that is answered yet: one that expired may be, while a place is free or as surplus.
ANSWERABLE = {LeaseState.OPEN, LeaseState.EXPIRED}


class AlreadyAnswered(Conflict):
    """You have ranked this task already, in another way. To change your mind, revise that ranking."""


class AlreadySuperseded(Conflict):
    """This ranking was revised already. Revise the newest one instead."""


class RankingSettled(Conflict):
    """A reviewer has decided about this task: its rankings stay as they are."""


class ChangeClosed(Conflict):
    """This project is paused or closed: its rankings stay as they are."""


class QualificationOver(Conflict):
    """The answers of a qualification stay as they are: the known order is shown afterwards."""


class RankingNotFound(NotFound):
    """There is no such ranking, or it is not yours."""


class AnswerRefused(Invalid):
    """This ranking can't be taken as it is."""

    def __init__(self, errors: Sequence[FieldError]) -> None:
        super().__init__(" ".join(error.rule for error in errors[:3]), errors=errors)


@dataclass(frozen=True)
class RankingStored:
    """A ranking is stored; it may supersede another."""

    project: AnyProject
    task: AnyTask
    ranking: Ranking


# Storing


@dataclass(frozen=True)
class Answered:
    """What became of an answer: its ranking, stored now (with its places) or by the same answer before."""

    ranking: Ranking
    places: Mapping[uuid.UUID, PlaceFacts] | None


async def submit(
    session: AsyncSession,
    *,
    lease_id: uuid.UUID,
    annotator: AnyUser,
    answer: RankingAnswer,
    source: str,
    provenance: Provenance = UNKNOWN,
) -> Ranking:
    """As `answer_lease`, of a lease by its id.

    Raises:
        LeaseNotFound: the lease is not this annotator's.
    """
    lease, task = await tasks.leased_task(session, lease_id=lease_id, annotator=annotator)
    answered = await answer_lease(
        session, lease=lease, task=task, annotator=annotator, answer=answer, source=source, provenance=provenance
    )
    return answered.ranking


async def answer_lease(
    session: AsyncSession,
    *,
    lease: AnyLease,
    task: AnyTask,
    annotator: AnyUser,
    answer: RankingAnswer,
    source: str,
    provenance: Provenance = UNKNOWN,
) -> Answered:
    """Store the answer to a lease. The lease is the idempotency key: the same answer again gives the stored ranking.

    From an expired lease it is taken while a place is free, else kept as surplus. Lease and task need not be locked:
    `storing.answer` looks again.

    Raises:
        AlreadyAnswered: the lease has another answer.
        LeaseReleased: the task was skipped or withdrawn.
        AnswerRefused: the answer breaks a rule; it names each field.
    """
    answer = tidy(answer)
    if lease.state not in ANSWERABLE:
        return Answered(await _find_answer(session, lease, answer), None)
    project: AnyProject = await facts.get(session, Project, task.project_id)
    require_fine(answer, rules_of(project, lease.display_order))
    ranking = Ranking(
        project_id=project.id,
        task_id=task.id,
        lease_id=lease.id,
        annotator_id=annotator.id,
        source=source,
        **provenance.columns(),
    )
    places = _fill_in(ranking, answer, lease.display_order)
    event = RankingStored(project, task, ranking)
    if events.is_heard(event):
        await begin(session)
    if not await storing.answer(session, ranking, list(places.values()), lease):
        return Answered(await _find_answer(session, lease, answer), None)
    await events.publish(session, event)
    return Answered(ranking, places)


async def _find_answer(session: AsyncSession, lease: AnyLease, answer: RankingAnswer) -> Ranking:
    """The ranking that a lease yielded before, if it is this tidy answer.

    Raises:
        AlreadyAnswered: it is another answer.
        LeaseReleased: there is none, and none is taken: the task was skipped or withdrawn.
    """
    stored = await session.scalar(select(Ranking).where(Ranking.lease_id == lease.id, Ranking.supersedes_id.is_(None)))
    if stored is None:
        raise LeaseReleased
    if stored.body_hash != body_hash(answer):
        raise AlreadyAnswered
    return stored


async def revise(
    session: AsyncSession,
    *,
    ranking_id: uuid.UUID,
    annotator: AnyUser,
    answer: RankingAnswer,
    source: str = "page",
    provenance: Provenance = UNKNOWN,
) -> Ranking:
    """A change of mind: a new row that supersedes the old one and takes no further place. The same again is harmless.

    Raises:
        RankingNotFound: there is none, or it is somebody else's.
        AlreadySuperseded: it was revised in another way.
        ChangeClosed: the project is paused or archived.
        RankingSettled, QualificationOver: a reviewer has decided about it; it is part of a qualification.
        AnswerRefused: the answer breaks a rule; it names each field.
    """
    await tasks.lock_annotator(session, annotator.id)
    old = await session.scalar(
        select(Ranking).where(
            Ranking.id == ranking_id, Ranking.annotator_id == annotator.id, Ranking.lease_id.is_not(None)
        )
    )
    if old is None or old.lease_id is None:
        raise RankingNotFound
    answer = tidy(answer)
    newer = await session.scalar(select(Ranking).where(Ranking.supersedes_id == old.id))
    if (newer or old).body_hash == body_hash(answer):
        return newer or old
    if newer is not None:
        raise AlreadySuperseded
    lease = await tasks.get_lease(session, lease_id=old.lease_id, annotator=annotator)
    project = await tasks.project_of(session, lease)
    if not is_open(project):
        raise ChangeClosed
    require_unsettled(await tasks.lock_task(session, old.task_id), old)
    require_fine(answer, rules_of(project, lease.display_order))
    ranking = Ranking(
        project_id=old.project_id,
        task_id=old.task_id,
        lease_id=old.lease_id,
        annotator_id=annotator.id,
        source=source,
        supersedes_id=old.id,
        is_surplus=old.is_surplus,
        **provenance.columns(),
    )
    await store(session, ranking, answer, lease.display_order)
    return ranking


def is_open(project: AnyProject) -> bool:
    """Whether rankings of this project may be changed now."""
    return not project.is_paused and project.archived_at is None


def require_unsettled(task: Task, ranking: Ranking) -> None:
    """Refuse to change what was decided about.

    Raises:
        RankingSettled: a reviewer has.
        QualificationOver: it was a task of a qualification.
    """
    if is_reviewed(task, ranking):
        raise RankingSettled
    if task.is_qualifying:
        raise QualificationOver


def is_reviewed(task: Task, ranking: Ranking) -> bool:
    """Whether a reviewer has decided about this ranking of the task."""
    return ranking.number <= (task.settled_number or 0)


def require_changeable(project: AnyProject, task: Task, view: RankingView) -> None:
    """Refuse to open a ranking that can't be changed.

    Raises:
        AlreadySuperseded: there is a newer one.
        ChangeClosed: the project is paused or archived.
        RankingSettled, QualificationOver: a reviewer has decided about it; it is part of a qualification.
    """
    if view.superseded_by is not None:
        raise AlreadySuperseded
    if not is_open(project):
        raise ChangeClosed
    require_unsettled(task, view.ranking)


async def store(
    session: AsyncSession, ranking: Ranking, answer: RankingAnswer, display_order: Sequence[uuid.UUID]
) -> None:
    """Write a checked, tidy answer as a ranking with a place for every completion, and tell whoever listens."""
    places = _fill_in(ranking, answer, display_order)
    await storing.store(session, ranking, list(places.values()))
    project = await session.get_one(Project, ranking.project_id)
    task = await session.get_one(Task, ranking.task_id)
    await events.publish(session, RankingStored(project, task, ranking))


def _fill_in(
    ranking: Ranking, answer: RankingAnswer, display_order: Sequence[uuid.UUID]
) -> dict[uuid.UUID, PlaceFacts]:
    """Write what was answered into a new ranking; returns its places."""
    ranking.id = uuid.uuid4()
    ranking.rationale = answer.rationale
    ranking.confidence = answer.confidence
    ranking.all_bad = answer.all_bad
    ranking.strength = answer.strength
    ranking.body_hash = body_hash(answer)
    return {
        completion_id: PlaceFacts(
            completion_id,
            place=answer.places.get(completion_id),
            rating=answer.ratings.get(completion_id),
            labels=list(answer.labels.get(completion_id, ())),
            denied=list(answer.denied.get(completion_id, ())),
        )
        for completion_id in display_order
    }


def rules_of(project: AnyProject, display_order: Sequence[uuid.UUID]) -> Rules:
    """What the project asks of an answer to these completions."""
    return Rules(
        letters=dict(zip(display_order, LETTERS, strict=False)),
        ties_allowed=project.ties_allowed,
        partial_allowed=project.partial_allowed,
        # A label that was removed a moment ago may still be on the page of somebody who marks it.
        label_keys=frozenset(label["key"] for label in project.labels),
        required_labels={label["key"]: names_of(label) for label in asked_labels(project) if label["required"]},
        rationale=project.rationale,
        min_rationale=project.min_rationale,
        confidence=project.confidence,
    )


def require_fine(answer: RankingAnswer, rules: Rules) -> None:
    """Refuse an answer that breaks a rule.

    Raises:
        AnswerRefused: it names each field.
    """
    errors = errors_of(answer, rules)
    if errors:
        raise AnswerRefused(errors)


# Reading


@dataclass(frozen=True)
class RankingView:
    """A ranking with what belongs to it. `display_order` is the one its annotator saw."""

    ranking: Ranking
    places: Mapping[uuid.UUID, RankingPlace | PlaceFacts]
    display_order: Sequence[uuid.UUID]
    superseded_by: uuid.UUID | None
    annotator: str | None
    is_assisted: bool = False
    """The cards stood in a reward model's order."""

    @property
    def is_current(self) -> bool:
        """Whether it counts: nothing supersedes it, and it was in time."""
        return self.superseded_by is None and not self.ranking.is_surplus

    @cached_property
    def letters(self) -> dict[uuid.UUID, str]:
        """The letters that the annotator saw."""
        return dict(zip(self.display_order, LETTERS, strict=False))

    @cached_property
    def order(self) -> Order:
        """The cells, best first."""
        return order_of({completion_id: self.places[completion_id].place for completion_id in self.display_order})

    @property
    def letter_order(self) -> list[list[str]]:
        """The cells as the letters that the annotator saw, best first."""
        return self.order_in(self.letters)

    def order_in(self, letters: Mapping[uuid.UUID, str]) -> list[list[str]]:
        """The cells as these letters, best first."""
        return [sorted(letters[completion_id] for completion_id in cell) for cell in self.order]

    @property
    def cursor(self) -> str:
        """Where this ranking stands in the stream of all."""
        return f"{self.ranking.transaction_id}.{self.ranking.number}"


def is_current(ranking: type[Ranking] = Ranking) -> ColumnElement[bool]:
    """Rankings that count: nothing supersedes them, and they are not surplus."""
    newer = aliased(Ranking)
    return and_(~ranking.is_surplus, ~exists().where(newer.supersedes_id == ranking.id))


def is_counted() -> ColumnElement[bool]:
    """Rankings that are learned from: current ones, but not of gold tasks, and not of comparisons."""
    return and_(is_current(), ~is_kept_apart())


def is_kept_apart() -> ColumnElement[bool]:
    """Rankings that nothing learns from: of tasks whose order is known, and of those that compare versions."""
    return exists().where(Task.id == Ranking.task_id, or_(Task.is_gold, Task.purpose == Purpose.COMPARE))


async def get_ranking(session: AsyncSession, ranking_id: uuid.UUID) -> RankingView:
    """One ranking.

    Raises:
        RankingNotFound: there is none.
    """
    ranking = await session.get(Ranking, ranking_id)
    if ranking is None:
        raise RankingNotFound
    return (await views_of(session, [ranking]))[0]


async def list_rankings(
    session: AsyncSession,
    *,
    project_id: uuid.UUID,
    before: int | None = None,
    limit: int = 50,
    only_current: bool = False,
    task_id: uuid.UUID | None = None,
) -> list[RankingView]:
    """A project's rankings, newest first: those with a number below `before`."""
    query = select(Ranking).where(Ranking.project_id == project_id)
    if before is not None:
        query = query.where(Ranking.number < before)
    if only_current:
        query = query.where(is_current())
    if task_id is not None:
        query = query.where(Ranking.task_id == task_id)
    return await views_of(session, (await session.scalars(query.order_by(Ranking.number.desc()).limit(limit))).all())


def is_settled(transaction_id: InstrumentedAttribute[int]) -> ColumnElement[bool]:
    """Rows older than every open transaction, and those of one's own.

    A transaction that commits late has an older number than others that were read already. What is not settled is held
    back, and the next page begins with it: a cursor of (transaction, number) never skips anything. `feed_offset` is a
    constant that a restore sets: what it brought has another cluster's numbers, and is settled.
    """
    return or_(
        transaction_id < text("(pg_snapshot_xmin(pg_current_snapshot())::text)::bigint + feed_offset()"),
        transaction_id == text("(pg_current_xact_id_if_assigned()::text)::bigint + feed_offset()"),
    )


async def follow_rankings(
    session: AsyncSession, *, project_id: uuid.UUID, after: tuple[int, int] | None = None, limit: int = 500
) -> list[RankingView]:
    """A project's rankings in the order of the stream, those after the cursor `(transaction, number)`; none of gold
    or of a comparison: whoever follows them may learn from them.

    What is not settled yet comes with a later page: nothing is ever skipped.
    """
    query = select(Ranking).where(
        Ranking.project_id == project_id, is_settled(Ranking.transaction_id), ~is_kept_apart()
    )
    if after is not None:
        query = query.where(tuple_(Ranking.transaction_id, Ranking.number) > tuple_(*after))
    rows = await session.scalars(query.order_by(Ranking.transaction_id, Ranking.number).limit(limit))
    return await views_of(session, rows.all())


async def history_of(session: AsyncSession, ranking: Ranking) -> list[RankingView]:
    """All that one annotator said about one task, oldest first: each supersedes the one before."""
    if ranking.lease_id is None:
        return await views_of(session, [ranking])
    rows = await session.scalars(select(Ranking).where(Ranking.lease_id == ranking.lease_id).order_by(Ranking.number))
    return await views_of(session, rows.all())


async def views_of(session: AsyncSession, rankings: Sequence[Ranking]) -> list[RankingView]:
    """Rankings with what belongs to them, in the same order."""
    """Rankings with what belongs to them, in the same order."""
    ids = [ranking.id for ranking in rankings]
    places = await _places_of(session, ids)
    orders = await _display_orders(session, rankings)
    leases = [ranking.lease_id for ranking in rankings]
    assisted = set(await session.scalars(select(Lease.id).where(Lease.id.in_(leases), Lease.is_assisted)))
    newer = await session.execute(select(Ranking.supersedes_id, Ranking.id).where(Ranking.supersedes_id.in_(ids)))
    superseded = {old: new for old, new in newer}
    people = await session.execute(select(User.id, User.name).where(User.id.in_({r.annotator_id for r in rankings})))
    names = {user_id: name for user_id, name in people}
    return [
        RankingView(
            ranking=ranking,
            places=places[ranking.id],
            display_order=orders[ranking.id],
            superseded_by=superseded.get(ranking.id),
            annotator=names.get(ranking.annotator_id) if ranking.annotator_id else ranking.annotator_name,
            is_assisted=ranking.lease_id in assisted,
        )
        for ranking in rankings
    ]


async def _places_of(session: AsyncSession, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, dict[uuid.UUID, RankingPlace]]:
    found: dict[uuid.UUID, dict[uuid.UUID, RankingPlace]] = {ranking_id: {} for ranking_id in ids}
    for place in await session.scalars(select(RankingPlace).where(RankingPlace.ranking_id.in_(ids))):
        found[place.ranking_id][place.completion_id] = place
    return found


async def _display_orders(session: AsyncSession, rankings: Sequence[Ranking]) -> dict[uuid.UUID, list[uuid.UUID]]:
    """The order that each annotator saw; that of the task where a ranking was made elsewhere."""
    leases = await session.execute(
        select(Lease.id, Lease.display_order).where(Lease.id.in_({r.lease_id for r in rankings if r.lease_id}))
    )
    seen = {lease_id: order for lease_id, order in leases}
    made: dict[uuid.UUID, list[uuid.UUID]] = {}
    task_ids = {r.task_id for r in rankings if not r.lease_id}
    completions = await session.scalars(
        select(TaskCompletion).where(TaskCompletion.task_id.in_(task_ids)).order_by(TaskCompletion.position)
    )
    for completion in completions:
        made.setdefault(completion.task_id, []).append(completion.completion_id)
    return {r.id: seen[r.lease_id] if r.lease_id else made[r.task_id] for r in rankings}


async def count_rankings(session: AsyncSession, project_id: uuid.UUID) -> int:
    """How many rankings of a project count: current ones but those of gold tasks and of comparisons."""
    return (await tallies.read(session, project_id)).whole().num_rankings
