"""Rankings out of the database as judgements: the newest of a project, those that overlap, those of some people.

What a page reads is bounded by the limits here, however large the project is. A ranking never changes, so a judgement
that was read once is kept in memory.
"""

from __future__ import annotations

import uuid
from collections.abc import Hashable, Iterable, Mapping, Sequence
from typing import Any

from sqlalchemy import Row, Select, Text, Uuid, any_, bindparam, case, cast, extract, func, null, select, true
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.models import User
from app.db import at_most
from app.prompts.models import Completion, Prompt, Split
from app.quality.orders import Judgement
from app.rankings.models import Ranking, RankingPlace
from app.rankings.service import is_counted, is_current
from app.remembering import Remembered
from app.tasks.models import Lease, Purpose, Task, TaskCompletion

Key = tuple[uuid.UUID, uuid.UUID | None]
"""A ranking and who made it. What is made of rankings follows from their keys: nothing else about them ever changes."""
SCANNED = 20_000
"""The newest rankings of a project, in whose tasks overlapping ones are looked for."""
OVERLAPPING = 6_000
NEWEST = 5_000
PER_PERSON = 200
"""The newest rankings of one person: the window of all that is said of them."""
KEPT = 20_000
"""Judgements in memory, a kilobyte each."""
_known: Remembered[Key, Judgement] = Remembered(KEPT)


async def newest(
    session: AsyncSession, project_id: uuid.UUID, *, limit: int = NEWEST, with_gold: bool = False
) -> list[Judgement]:
    """The newest current rankings of a project, oldest first; of gold tasks only where they are asked for."""
    return await judgements(session, await newest_keys(session, project_id, limit=limit, with_gold=with_gold))


async def newest_keys(
    session: AsyncSession, project_id: uuid.UUID, *, limit: int = NEWEST, with_gold: bool = False
) -> list[Key]:
    """Which these are."""
    query = keys().where(Ranking.project_id == project_id, is_current() if with_gold else is_counted())
    return keys_in(await session.execute(query.order_by(Ranking.number.desc()).limit(at_most(limit))))


async def newest_number(session: AsyncSession, project_id: uuid.UUID) -> int:
    """The number of a project's newest ranking; 0 without one. Since an earlier one, at most their difference came."""
    return await session.scalar(select(func.max(Ranking.number)).where(Ranking.project_id == project_id)) or 0


async def overlapping(session: AsyncSession, project_id: uuid.UUID, *, limit: int = OVERLAPPING) -> list[Judgement]:
    """The newest current rankings of tasks that more than one person ranked, oldest first; without gold."""
    return await judgements(session, await overlapping_keys(session, project_id, limit=limit))


async def overlapping_keys(session: AsyncSession, project_id: uuid.UUID, *, limit: int = OVERLAPPING) -> list[Key]:
    """Which these are."""
    return keys_in(await session.execute(of_several(project_id, limit)))


def of_several(project_id: uuid.UUID, limit: int) -> Select[uuid.UUID, uuid.UUID | None]:
    """The newest rankings name the tasks; of a task, all rankings count, however old."""
    newest = select(Ranking.task_id, Ranking.number).where(Ranking.project_id == project_id)
    recent = newest.order_by(Ranking.number.desc()).limit(at_most(SCANNED)).subquery()
    # Two places are taken by two rankings, or by one and somebody who ranks now. The limit has each task looked up by
    # its id. Where no second person had ranked when PostgreSQL last analysed a table of a million tasks, it expects
    # none, begins with those that have two, and compares each with all that are recent: minutes, not 0.3 s.
    shared = (Task.num_taken > 1, ~Task.is_gold, Task.purpose == Purpose.LEARN)
    task = select(Task.id).where(Task.id == recent.c.task_id, *shared).limit(at_most(1)).lateral()
    chosen = (
        select(task.c.id)
        .select_from(recent.join(task, true()))
        .group_by(task.c.id)
        .order_by(func.max(recent.c.number).desc())
        .limit(at_most(limit // 2))
        .subquery()
    )
    num = func.count().over(partition_by=Ranking.task_id).label("num")
    theirs = keys().add_columns(Ranking.number, num).join(chosen, chosen.c.id == Ranking.task_id)
    counted = theirs.where(is_current()).subquery()
    query = select(counted.c.id, counted.c.annotator_id).where(counted.c.num > 1)
    return query.order_by(counted.c.number.desc()).limit(at_most(limit))


async def of_people(session: AsyncSession, project_id: uuid.UUID, people: Sequence[uuid.UUID]) -> list[Judgement]:
    """The newest current rankings of each of these people, oldest first."""
    theirs = (
        keys()
        .where(Ranking.annotator_id == User.id, Ranking.project_id == project_id, is_current())
        .order_by(Ranking.number.desc())
        .limit(at_most(PER_PERSON))
        .correlate(User)
        .lateral("theirs")
    )
    query = select(theirs.c.id, theirs.c.annotator_id).select_from(User).join(theirs, true())
    return await judgements(session, keys_in(await session.execute(query.where(User.id.in_(people)))))


async def of_tasks(session: AsyncSession, task_ids: Sequence[uuid.UUID]) -> dict[Hashable, list[Judgement]]:
    """The newest current rankings of these tasks, by task."""
    query = keys().where(Ranking.task_id == any_(of_ids(task_ids)), is_current())
    chosen = keys_in(await session.execute(query.order_by(Ranking.number.desc()).limit(at_most(OVERLAPPING))))
    found: dict[Hashable, list[Judgement]] = {}
    for judgement in await judgements(session, chosen):
        found.setdefault(judgement.task, []).append(judgement)
    return found


async def beside(
    session: AsyncSession, theirs: Sequence[Judgement], *, gold: Mapping[Hashable, Any]
) -> list[Judgement]:
    """What everybody else said of the same tasks; not of gold tasks, whose order is known."""
    tasks = list({judgement.task for judgement in theirs if judgement.task not in gold})
    seen = {judgement.key for judgement in theirs}
    query = keys().where(Ranking.task_id == any_(of_ids(tasks)), is_current())
    found = keys_in(await session.execute(query))
    return await judgements(session, [key for key in found if key[0] not in seen])


def keys() -> Select[uuid.UUID, uuid.UUID | None]:
    """Keys of rankings."""
    return select(Ranking.id, Ranking.annotator_id)


def keys_in(rows: Iterable[Any]) -> list[Key]:
    """The keys that these rows are."""
    return [(row[0], row[1]) for row in rows]


def of_ids(ids: Sequence[Any]) -> Any:
    """Ids as one array: thousands of single parameters would take longer to bind than to look up."""
    return bindparam(None, list(ids), type_=ARRAY(Uuid))


async def judgements(session: AsyncSession, chosen: Iterable[Key]) -> list[Judgement]:
    """These rankings, oldest first."""
    known = {key: _known.get(key) for key in chosen}
    missing = [key[0] for key, judgement in known.items() if judgement is None]
    known |= {key: _known.keep(key, judgement) for key, judgement in (await read(session, missing)).items()}
    return sorted((found for found in known.values() if found), key=lambda judgement: judgement.number)


async def read(session: AsyncSession, ids: Sequence[uuid.UUID]) -> dict[Key, Judgement]:
    """These rankings out of the database."""
    if not ids:
        return {}
    answers = {row.ranking_id: row for row in await session.execute(answers_of(ids))}
    rows = await session.execute(rankings_of(ids))
    return {(row.id, row.annotator_id): as_judgement(row, answers[row.id]) for row in rows}


def rankings_of(ids: Sequence[uuid.UUID]) -> Select[Any]:
    """One row a ranking: who ranked which task, when, and how long it took."""
    return (
        select(
            Ranking.id,
            Ranking.number,
            Ranking.task_id,
            Ranking.annotator_id,
            Ranking.annotator_name,
            Ranking.created_at,
            seconds().label("seconds"),
            Task.prompt_id,
            Task.round,
            Prompt.language,
            # Nobody has help with what is held out for validation, whatever its lot: it is on neither side.
            case((Prompt.split != Split.VALIDATION, Task.judged_order)).label("judged_order"),
            Lease.display_order,
            Lease.is_assisted,
        )
        .join(Task, Task.id == Ranking.task_id)
        .join(Prompt, Prompt.id == Task.prompt_id)
        .outerjoin(Lease, Lease.id == Ranking.lease_id)
        .where(Ranking.id == any_(of_ids(ids)))
    )


def seconds() -> Any:
    """From opening the task to the answer: what the browser says, but never more than passed here.

    Null where nobody knows: imported, a change of mind, or a task that waited in the browser untold.
    """
    passed = extract("epoch", Ranking.created_at - Lease.created_at)
    waited = Ranking.is_preloaded | Ranking.is_offline
    return case(
        (Ranking.supersedes_id.is_not(None), null()),
        (waited, Ranking.active_seconds),
        else_=func.least(passed, Ranking.active_seconds),
    )


def answers_of(ids: Sequence[uuid.UUID]) -> Select[Any]:
    """One row a ranking: what it says of the answers, as arrays in the order of the task."""
    place = TaskCompletion.position

    def listed(column: Any) -> Any:
        return func.array_agg(aggregate_order_by(column, place))

    return (
        select(
            RankingPlace.ranking_id,
            listed(RankingPlace.completion_id).label("ids"),
            listed(RankingPlace.place).label("places"),
            # Of the stored bytes: this does not unpack the text.
            listed(func.octet_length(Completion.text)).label("lengths"),
            listed(func.coalesce(cast(Completion.version_id, Text), Completion.model_name)).label("versions"),
            func.jsonb_agg(aggregate_order_by(func.to_jsonb(RankingPlace.labels), place)).label("labels"),
        )
        .join(Completion, Completion.id == RankingPlace.completion_id)
        .join(
            TaskCompletion,
            (TaskCompletion.task_id == RankingPlace.task_id)
            & (TaskCompletion.completion_id == RankingPlace.completion_id),
        )
        .where(RankingPlace.ranking_id == any_(of_ids(ids)))
        .group_by(RankingPlace.ranking_id)
    )


def seats_of(order: Sequence[uuid.UUID] | None) -> dict[uuid.UUID, int]:
    """Where each answer stands in an order; nothing where there is none."""
    return {completion_id: seat for seat, completion_id in enumerate(order or ())}


def as_judgement(ranking: Row[Any], answers: Row[Any]) -> Judgement:
    """One ranking as quality sees it. Who was erased is nobody twice."""
    seats = {} if ranking.is_assisted else seats_of(ranking.display_order)
    judged = seats_of(ranking.judged_order)
    return Judgement(
        task=ranking.task_id,
        prompt=ranking.prompt_id,
        annotator=ranking.annotator_id or ranking.annotator_name or ranking.id,
        places=answers.places,
        seats=[seats[completion_id] for completion_id in answers.ids] if seats else (),
        judged=[judged[completion_id] for completion_id in answers.ids] if judged else (),
        is_assisted=bool(ranking.is_assisted),
        lengths=answers.lengths,
        versions=answers.versions,
        labels=[frozenset(labels) for labels in answers.labels],
        seconds=None if ranking.seconds is None else float(ranking.seconds),
        at=ranking.created_at,
        round=ranking.round,
        language=ranking.language,
        key=ranking.id,
        number=ranking.number,
    )
