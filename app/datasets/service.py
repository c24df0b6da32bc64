"""Datasets: freeze the current rankings as hashed lines, and give those lines out again, byte for byte."""

from __future__ import annotations

import asyncio
import secrets
import uuid
from collections.abc import Sequence
from datetime import UTC
from typing import Any

import orjson
from sqlalchemy import FromClause, Select, and_, func, select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.accounts.audit import audit
from app.accounts.models import User
from app.datasets import caps, pieces, snapshots
from app.datasets.cards import task_of, without_names
from app.datasets.filters import LEARNED_FROM, DatasetFilter, is_accepted
from app.datasets.models import Dataset, DatasetRow
from app.db import at_most
from app.errors import Conflict, existing
from app.projects.models import Project
from app.prompts.models import Prompt
from app.quality import reading
from app.quality.agreement import Agreement, measure
from app.rankings.models import Ranking
from app.registry.models import Version
from app.tasks.models import Lease, Purpose, Task

PREVIEW_SIZE = 10
# A page counts so many rankings, and no more.
MOST_COUNTED = 5_000
# Before a dataset is frozen, agreement is measured on so many of its rankings.
MAX_PREVIEWED = 2_000


class NothingToFreeze(Conflict):
    """There is nothing to freeze yet: no current ranking of a train or validation prompt. Rank some tasks first."""


class NothingChosen(Conflict):
    """No ranking fits what you chose. Choose less narrowly."""


# Freezing


async def freeze(
    session: AsyncSession,
    *,
    project: Project,
    chosen: DatasetFilter | None = None,
    name: str = "",
    licence: str = "",
    created_by: uuid.UUID | None = None,
) -> Dataset:
    """Fix the current rankings as a dataset, in the order in which they came: all of them, or those chosen.

    Current: not superseded, not surplus, of a task and a train or validation prompt that are not withdrawn.

    Raises:
        NothingToFreeze: there is none.
        NothingChosen: the filter leaves none.
    """
    chosen = chosen or DatasetFilter()
    key = secrets.token_bytes(32)
    num_rows = await snapshots.choose(session, current_rankings(project.id, chosen), key)
    if num_rows == 0:
        raise NothingToFreeze if chosen.takes_all() else NothingChosen
    capped: dict[str, Any] = {}
    if chosen.max_annotator_share is not None:
        capped["left_out"] = await snapshots.cap(session, chosen.max_annotator_share)
        num_rows -= capped["left_out"]["num_rankings"]
    dataset_id = uuid.uuid4()
    tally = await snapshots.write(session, dataset_id, num_rows)
    dataset = Dataset(
        id=dataset_id,
        project_id=project.id,
        number=await next_number(session, project.id),
        name=name.strip(),
        licence=licence.strip(),
        filter=chosen.chosen(),
        counts=await snapshots.counts(session, num_rows, tally) | capped,
        card=await snapshots.contents(session, tally) | {"task": task_of(project)},
        num_rows=num_rows,
        sha256=tally.sha256.hexdigest(),
        pseudonym_key=key,
        created_by=created_by,
    )
    session.add(dataset)
    await session.flush()
    await session.execute(text("drop table frozen_rankings"))
    await audit(session, actor_id=created_by, action="dataset.freeze", subject=str(dataset.id), sha256=dataset.sha256)
    return dataset


async def freeze_to_learn(session: AsyncSession, *, project: Project, created_by: uuid.UUID | None = None) -> Dataset:
    """Fix all current rankings for a training of the project itself, as its settings cap what one person may be.

    Raises:
        NothingToFreeze: there is none.
    """
    chosen = DatasetFilter(max_annotator_share=project.max_annotator_share)
    return await freeze(session, project=project, chosen=chosen, created_by=created_by)


async def next_number(session: AsyncSession, project_id: uuid.UUID) -> int:
    """The number after the newest dataset's. Holds the project, so that two freezes do not take the same one."""
    await session.execute(select(Project.id).where(Project.id == project_id).with_for_update(key_share=True))
    newest = await session.scalar(select(func.max(Dataset.number)).where(Dataset.project_id == project_id))
    return (newest or 0) + 1


def current_rankings(project_id: uuid.UUID, chosen: DatasetFilter | None = None) -> Select[Any]:
    """The ids of the rankings that a dataset is made from, with their tasks, prompts and leases at hand."""
    conditions = chosen.conditions(project_id) if chosen else ()
    return (
        select(Ranking.id)
        .join(Task, Task.id == Ranking.task_id)
        .join(Prompt, Prompt.id == Task.prompt_id)
        .outerjoin(Lease, Lease.id == Ranking.lease_id)
        .where(
            Ranking.project_id == project_id,
            is_accepted(Ranking),
            Task.withdrawn_at.is_(None),
            ~Task.is_gold,
            Task.purpose == Purpose.LEARN,
            Prompt.withdrawn_at.is_(None),
            Prompt.split.in_(LEARNED_FROM),
            *conditions,
        )
        .order_by(Ranking.number)
    )


# Reading


async def list_datasets(
    session: AsyncSession, project_id: uuid.UUID, *, before: int | None = None, limit: int = 50
) -> Sequence[Dataset]:
    """A project's datasets, newest first, from below the number `before`."""
    query = select(Dataset).where(Dataset.project_id == project_id).order_by(Dataset.number.desc()).limit(limit)
    if before is not None:
        query = query.where(Dataset.number < before)
    return (await session.scalars(query)).all()


async def get_dataset(session: AsyncSession, dataset_id: uuid.UUID) -> Dataset:
    """A dataset by id.

    Raises:
        NotFound: there is none.
    """
    return existing(await session.get(Dataset, dataset_id), "There is no such dataset.")


def reference(dataset: Dataset) -> dict[str, Any]:
    """What a run's config says of a dataset (docs/protocol.md)."""
    return {"id": str(dataset.id), "sha256": dataset.sha256, "num_rows": dataset.num_rows}


async def get_dataset_by_number(session: AsyncSession, project_id: uuid.UUID, number: int) -> Dataset:
    """A dataset by its number within a project.

    Raises:
        NotFound: there is none.
    """
    dataset = await session.scalar(select(Dataset).where(Dataset.project_id == project_id, Dataset.number == number))
    return existing(dataset, f"This project has no dataset {number}.")


async def count_chosen(session: AsyncSession, project_id: uuid.UUID, chosen: DatasetFilter) -> dict[str, Any]:
    """What a dataset would hold: `num_rankings`, `num_prompts`, `num_annotators`, `by_split`, how well people agree in
    it (`agreement`, None where no two ranked the same task), and its first `rows`; and what is `left_out` of whoever
    ranked too many of those that are chosen, which the last two do not look at.

    Of more than `MOST_COUNTED` rankings `num_rankings` is one more, and the others say nothing: they are counted when
    they are frozen.
    """
    # The newest lie side by side.
    newest = current_rankings(project_id, chosen).order_by(None).order_by(Ranking.number.desc())
    query = newest.limit(at_most(MOST_COUNTED + 1))
    columns = (Ranking.id.label("ranking_id"), Task.prompt_id, Prompt.split, snapshots.person().label("annotator"))
    some = query.with_only_columns(*columns).subquery()
    kept, left_out = await within_cap(session, some, chosen.max_annotator_share)
    counts = (func.count(), func.count(kept.c.prompt_id.distinct()), func.count(kept.c.annotator.distinct()))
    splits = [func.count().filter(kept.c.split == split) for split in LEARNED_FROM]
    num_rankings, num_prompts, num_annotators, *by_split = (await session.execute(select(*counts, *splits))).one()
    first = current_rankings(project_id, chosen).limit(at_most(PREVIEW_SIZE))
    shown = first.with_only_columns(Ranking.id, Prompt.messages, Prompt.split, Prompt.language)
    return {
        "num_rankings": num_rankings,
        "num_prompts": num_prompts,
        "num_annotators": num_annotators,
        "by_split": {split: num for split, num in zip(LEARNED_FROM, by_split, strict=True) if num},
        "left_out": left_out,
        "agreement": await agreement_of(session, project_id, chosen),
        "rows": (await session.execute(shown)).all(),
    }


async def within_cap(
    session: AsyncSession, some: FromClause, max_share: float | None
) -> tuple[FromClause, dict[str, int] | None]:
    """Those of some rankings that stay where no one person may be more than a share of them, and what is left out; all
    of them where there is no cap, or more than can be counted.
    """
    num = await session.scalar(select(func.count()).select_from(some)) or 0
    if max_share is None or num > MOST_COUNTED:
        return some, None
    most = await caps.most_each_by_split(session, some, max_share)
    turns = select(some, caps.turn(some).label("turn")).subquery()
    surplus = caps.is_surplus(turns, most)
    cut = select(func.count(), func.count(turns.c.annotator.distinct())).where(surplus)
    num_rankings, num_people = (await session.execute(cut)).one()
    left_out = {"num_rankings": num_rankings, "num_annotators": num_people}
    return select(turns).where(~surplus).subquery(), left_out


async def agreement_of(session: AsyncSession, project_id: uuid.UUID, chosen: DatasetFilter) -> Agreement | None:
    """How well the people agree whose rankings are chosen, from those of the newest that share a task."""
    newest = current_rankings(project_id, chosen).order_by(None).order_by(Ranking.number.desc())
    limited = newest.limit(at_most(MOST_COUNTED))
    rows = limited.with_only_columns(Ranking.id, Ranking.annotator_id, Ranking.task_id).subquery()
    num_of_task = func.count().over(partition_by=rows.c.task_id).label("num")
    shared = select(rows.c.id, rows.c.annotator_id, num_of_task).subquery()
    query = select(shared.c.id, shared.c.annotator_id).where(shared.c.num > 1).limit(at_most(MAX_PREVIEWED))
    found = await reading.judgements(session, reading.keys_in(await session.execute(query)))
    return await asyncio.to_thread(measure, found) if found else None


async def list_people(session: AsyncSession, project_id: uuid.UUID) -> list[Any]:
    """Who ranked most of late: rows (id or None, name), at most 50."""
    newest = select(Ranking.annotator_id, Ranking.annotator_name).where(Ranking.project_id == project_id)
    late = newest.order_by(Ranking.number.desc()).limit(at_most(MOST_COUNTED)).subquery()
    name = func.coalesce(User.name, late.c.annotator_name)
    query = (
        select(late.c.annotator_id, name)
        .outerjoin(User, User.id == late.c.annotator_id)
        .where(name.is_not(None))
        .group_by(late.c.annotator_id, name)
        .order_by(func.count().desc(), name)
        .limit(50)
    )
    return list((await session.execute(query)).all())


async def compare(session: AsyncSession, one: Dataset, other: Dataset) -> dict[str, Any]:
    """Which rankings two datasets share: `both`, `only_one`, `only_other`, and the first rows of each side alone."""
    theirs = aliased(DatasetRow)
    both = (
        select(func.count())
        .select_from(DatasetRow)
        .join(theirs, and_(theirs.ranking_id == DatasetRow.ranking_id, theirs.dataset_id == other.id))
        .where(DatasetRow.dataset_id == one.id)
    )
    num_both = await session.scalar(both) or 0
    return {
        "both": num_both,
        "only_one": one.num_rows - num_both,
        "only_other": other.num_rows - num_both,
        "of_one": await rows_alone(session, one, other),
        "of_other": await rows_alone(session, other, one),
    }


async def rows_alone(session: AsyncSession, one: Dataset, other: Dataset) -> list[dict[str, Any]]:
    """The first rows of a dataset whose rankings another one does not hold."""
    theirs = aliased(DatasetRow)
    is_there = select(theirs.position).where(theirs.dataset_id == other.id, theirs.ranking_id == DatasetRow.ranking_id)
    query = select(DatasetRow.position).where(DatasetRow.dataset_id == one.id, ~is_there.exists())
    rows = await session.scalars(query.order_by(DatasetRow.position).limit(PREVIEW_SIZE))
    return [orjson.loads(line) for line in await pieces.read_rows(session, one.id, rows)]


async def versions_of_dataset(session: AsyncSession, dataset_id: uuid.UUID) -> Sequence[Version]:
    """The versions that learned from a dataset, oldest first."""
    query = select(Version).where(Version.dataset_id == dataset_id).order_by(Version.number)
    return (await session.scalars(query)).all()


async def first_rows(session: AsyncSession, dataset: Dataset, *, limit: int = PREVIEW_SIZE) -> list[dict[str, Any]]:
    """The first lines, parsed, to show what they hold."""
    rows = range(min(limit, dataset.num_rows))
    return [orjson.loads(line) for line in await pieces.read_rows(session, dataset.id, rows)]


async def datasets_of_ranking(session: AsyncSession, ranking_id: uuid.UUID) -> Sequence[Dataset]:
    """The datasets that hold a ranking, oldest first."""
    query = (
        select(Dataset)
        .join(DatasetRow, DatasetRow.dataset_id == Dataset.id)
        .where(DatasetRow.ranking_id == ranking_id)
        .order_by(Dataset.number)
    )
    return (await session.scalars(query)).all()


def splits_of(dataset: Dataset) -> list[str]:
    """The splits of which it has rows."""
    return [split for split in LEARNED_FROM if dataset.counts.get(split)]


def card_of(dataset: Dataset, project: Project) -> dict[str, Any]:
    """All that a data card says (app/datasets/cards.py)."""
    return {
        "title": dataset.name or f"{project.name}, dataset {dataset.number}",
        "project": project.name,
        "number": dataset.number,
        "created_at": dataset.created_at.astimezone(UTC).isoformat(timespec="seconds"),
        "licence": dataset.licence,
        "sha256": dataset.sha256,
        "filter": without_names(dataset.filter),
        "counts": dataset.counts,
        **dataset.card,
    }
