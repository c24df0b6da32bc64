"""Datasets: freeze the current rankings as hashed lines, and give those lines out again, byte for byte."""

from __future__ import annotations

import hashlib
import hmac
import secrets
import uuid
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC
from itertools import combinations
from typing import Any

import orjson
from psycopg import AsyncConnection
from sqlalchemy import Select, String, and_, bindparam, cast, func, select, text
from sqlalchemy.dialects.postgresql import aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from app.accounts.models import User
from app.accounts.service import audit
from app.datasets.cards import Contents, task_of
from app.datasets.filters import LEARNED_FROM, DatasetFilter
from app.datasets.models import Dataset, DatasetRow
from app.errors import Conflict, NotFound
from app.projects.models import Project
from app.prompts.models import Completion, Prompt
from app.quality.agreement import measure
from app.quality.orders import Judgement
from app.quality.reviews import is_rejected
from app.rankings.models import Ranking, RankingPlace
from app.registry.models import Version
from app.tasks.models import Lease, Purpose, Task, TaskCompletion

BATCH = 500
PREVIEW_SIZE = 10
# What one read of a dataset brings: many rows where they are short, few where they are long.
ROWS_AT_ONCE = 1000
BYTES_AT_ONCE = 4 * 1024 * 1024
# Agreement is measured on so many rankings of tasks that two people or more ranked.
MAX_JUDGEMENTS = 20_000


class NothingToFreeze(Conflict):
    """There is nothing to freeze yet: no current ranking of a train or validation prompt. Rank some tasks first."""


class NothingChosen(Conflict):
    """No ranking fits what you chose. Choose less narrowly."""


@dataclass
class Tally:
    """What a dataset counts while its lines are made."""

    sha256: Any = field(default_factory=hashlib.sha256)
    num_rows: int = 0
    num_pairs: int = 0
    num_ties: int = 0
    prompts: set[str] = field(default_factory=set)
    annotators: set[str] = field(default_factory=set)
    by_split: Counter[str] = field(default_factory=Counter)
    by_round: Counter[str] = field(default_factory=Counter)
    contents: Contents = field(default_factory=Contents)

    def add(self, row: Mapping[str, Any], line: str, round_number: int | None) -> None:
        """Count one line."""
        self.sha256.update(line.encode() + b"\n")
        self.num_rows += 1
        sizes = [len(cell) for cell in row["order"]]
        self.num_pairs += sum(better * worse for better, worse in combinations(sizes, 2))
        self.num_ties += sum(size * (size - 1) // 2 for size in sizes)
        self.prompts.add(row["prompt_id"])
        self.annotators.add(row["annotator"])
        self.by_split[row["split"]] += 1
        self.by_round["imported" if round_number is None else str(round_number)] += 1
        self.contents.add(row)

    def counts(self) -> dict[str, Any]:
        """The counts as they are stored."""
        return {
            "num_rankings": self.num_rows,
            "num_prompts": len(self.prompts),
            "num_pairs": self.num_pairs,
            "num_ties": self.num_ties,
            "num_annotators": len(self.annotators),
            **{split: self.by_split[split] for split in LEARNED_FROM},
            "by_round": dict(self.by_round),
        }


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
    number = await next_number(session, project.id)
    key = secrets.token_bytes(32)
    tally = await spool_lines(session, current_rankings(project.id, chosen), key)
    if tally.num_rows == 0:
        raise NothingToFreeze if chosen == DatasetFilter() else NothingChosen
    dataset = Dataset(
        project_id=project.id,
        number=number,
        name=name.strip(),
        licence=licence.strip(),
        filter=chosen.chosen(),
        counts=tally.counts(),
        card=tally.contents.as_json() | {"task": task_of(project), "agreement": await agreement(session)},
        num_rows=tally.num_rows,
        sha256=tally.sha256.hexdigest(),
        pseudonym_key=key,
        created_by=created_by,
    )
    session.add(dataset)
    await session.flush()
    await keep_lines(session, dataset.id)
    await audit(session, actor_id=created_by, action="dataset.freeze", subject=str(dataset.id), sha256=dataset.sha256)
    return dataset


async def agreement(session: AsyncSession) -> dict[str, Any] | None:
    """How well the people agree whose rankings are being frozen; None where no two ranked the same task."""
    query = text(
        "with shared as (select task_id from frozen_rows f join rankings r on r.id = f.ranking_id"
        " group by task_id having count(*) > 1 order by task_id)"
        " select r.task_id as task, t.prompt_id as prompt,"
        " coalesce(r.annotator_id::text, r.annotator_name, r.id::text) as annotator,"
        " array_agg(p.place order by c.position) as places"
        " from shared s join frozen_rows f on true join rankings r on r.id = f.ranking_id and r.task_id = s.task_id"
        " join tasks t on t.id = r.task_id join ranking_places p on p.ranking_id = r.id"
        " join task_completions c on c.task_id = r.task_id and c.completion_id = p.completion_id"
        " group by r.id, t.prompt_id order by r.task_id, r.number limit :limit"
    )
    rows = (await session.execute(query, {"limit": MAX_JUDGEMENTS})).mappings()
    judgements = [Judgement(**row) for row in rows]
    found = measure(judgements) if judgements else None
    return asdict(found) if found and found.num_tasks else None


async def next_number(session: AsyncSession, project_id: uuid.UUID) -> int:
    """The number after the newest dataset's. Holds the project, so that two freezes do not take the same one."""
    await session.execute(select(Project.id).where(Project.id == project_id).with_for_update(key_share=True))
    newest = await session.scalar(select(func.max(Dataset.number)).where(Dataset.project_id == project_id))
    return (newest or 0) + 1


def current_rankings(project_id: uuid.UUID, chosen: DatasetFilter | None = None) -> Select[Any]:
    """What a dataset is made from, one row a ranking, in one statement: one instant of the database."""
    newer = aliased(Ranking)
    conditions = chosen.conditions(project_id) if chosen else ()
    return (
        select(*columns_of_ranking())
        .join(Task, Task.id == Ranking.task_id)
        .join(Prompt, Prompt.id == Task.prompt_id)
        .outerjoin(Lease, Lease.id == Ranking.lease_id)
        .where(
            Ranking.project_id == project_id,
            ~Ranking.is_surplus,
            ~select(newer.id).where(newer.supersedes_id == Ranking.id).exists(),
            ~is_rejected(),
            Task.withdrawn_at.is_(None),
            ~Task.is_gold,
            Task.purpose == Purpose.LEARN,
            Prompt.withdrawn_at.is_(None),
            Prompt.split.in_(LEARNED_FROM),
            *conditions,
        )
        .order_by(Ranking.number)
    )


def columns_of_ranking() -> list[Any]:
    """What a line is made from."""
    said = [Ranking.rationale, Ranking.confidence, Ranking.all_bad, Ranking.strength]
    who = [Ranking.annotator_id, Ranking.annotator_name, Task.round]
    asked = [Task.prompt_id, Prompt.split, Prompt.language, Prompt.messages, Lease.display_order]
    return [Ranking.id, Ranking.created_at, *who, *said, *asked, answers_of_ranking()]


def answers_of_ranking() -> Any:
    """The completions of a ranking with their places, as a JSON array in the order of the task."""
    answer = func.jsonb_build_object(
        *("id", Completion.id, "text", Completion.text, "version_id", Completion.version_id),
        *("finish_reason", Completion.finish_reason, "place", RankingPlace.place),
        *("rating", RankingPlace.rating, "labels", RankingPlace.labels),
        *("denied", RankingPlace.denied),
    )
    return (
        select(func.jsonb_agg(aggregate_order_by(answer, TaskCompletion.position)))
        .join_from(RankingPlace, Completion, Completion.id == RankingPlace.completion_id)
        .join(
            TaskCompletion,
            (TaskCompletion.task_id == RankingPlace.task_id) & (TaskCompletion.completion_id == Completion.id),
        )
        .where(RankingPlace.ranking_id == Ranking.id)
        .correlate(Ranking)
        .scalar_subquery()
        .label("answers")
    )


async def spool_lines(session: AsyncSession, query: Select[Any], key: bytes) -> Tally:
    """Write the lines into a temporary table, some at a time: their hash is needed before the dataset can be stored."""
    tally = Tally()
    await session.execute(text("create temporary table frozen_rows (position int, ranking_id uuid, line text)"))
    connection = await driver_connection(session)
    result = await session.stream(query, execution_options={"yield_per": BATCH})
    async for rankings in result.partitions():
        async with (
            connection.cursor() as cursor,
            cursor.copy("copy frozen_rows (position, ranking_id, line) from stdin") as copy,
        ):
            for ranking in rankings:
                row = dataset_row(ranking, key)
                line = orjson.dumps(row, option=orjson.OPT_SORT_KEYS).decode()
                await copy.write_row((tally.num_rows, ranking.id, line))
                tally.add(row, line, ranking.round)
    return tally


async def keep_lines(session: AsyncSession, dataset_id: uuid.UUID) -> None:
    """Move the lines from the temporary table to the dataset."""
    await session.execute(
        text(
            "insert into dataset_rows (dataset_id, position, ranking_id, line)"
            " select :dataset_id, position, ranking_id, line from frozen_rows order by position"
        ).bindparams(bindparam("dataset_id", dataset_id))
    )
    await session.execute(text("drop table frozen_rows"))


async def driver_connection(session: AsyncSession) -> AsyncConnection[Any]:
    """The session's own connection as psycopg knows it, for COPY."""
    raw = await (await session.connection()).get_raw_connection()
    connection = raw.driver_connection
    assert isinstance(connection, AsyncConnection)
    return connection


def dataset_row(ranking: Any, key: bytes) -> dict[str, Any]:
    """One line as docs/protocol.md has it."""
    answers = ranking.answers
    shown = ranking.display_order or [answer["id"] for answer in answers]
    return {
        "ranking_id": str(ranking.id),
        "prompt_id": str(ranking.prompt_id),
        "split": ranking.split,
        "language": ranking.language,
        "messages": ranking.messages,
        "completions": [
            {name: answer[name] for name in ("id", "text", "version_id", "finish_reason")} for answer in answers
        ],
        "order": cells_of(answers),
        "annotator": pseudonym(key, ranking),
        "labels": {answer["id"]: answer["labels"] for answer in answers if answer["labels"]},
        "ratings": {answer["id"]: answer["rating"] for answer in answers if answer["rating"] is not None},
        "denied": {answer["id"]: answer["denied"] for answer in answers if answer["denied"]},
        **{name: getattr(ranking, name) for name in ("rationale", "confidence", "all_bad", "strength")},
        "display_order": [str(item) for item in shown],
        "created_at": ranking.created_at.astimezone(UTC).isoformat(),
    }


def cells_of(answers: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The order, best first; an answer without a place is in no cell."""
    cells: defaultdict[int, list[str]] = defaultdict(list)
    for answer in answers:
        if answer["place"] is not None:
            cells[answer["place"]].append(answer["id"])
    return [cells[place] for place in sorted(cells)]


def pseudonym(key: bytes, ranking: Any) -> str:
    """The same for one annotator within a dataset, and another in the next. Who was erased is nobody twice."""
    who = ranking.annotator_id or ranking.annotator_name or ranking.id
    return hmac.new(key, str(who).encode(), hashlib.sha256).hexdigest()[:16]


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
    dataset = await session.get(Dataset, dataset_id)
    if dataset is None:
        raise NotFound("There is no such dataset.")
    return dataset


def reference(dataset: Dataset) -> dict[str, Any]:
    """What a run's config says of a dataset (docs/protocol.md)."""
    return {"id": str(dataset.id), "sha256": dataset.sha256, "num_rows": dataset.num_rows}


async def get_dataset_by_number(session: AsyncSession, project_id: uuid.UUID, number: int) -> Dataset:
    """A dataset by its number within a project.

    Raises:
        NotFound: there is none.
    """
    dataset = await session.scalar(select(Dataset).where(Dataset.project_id == project_id, Dataset.number == number))
    if dataset is None:
        raise NotFound(f"This project has no dataset {number}.")
    return dataset


async def count_new_rankings(session: AsyncSession, project_id: uuid.UUID) -> int:
    """How many current rankings no dataset holds yet."""
    is_held = select(DatasetRow.ranking_id).where(DatasetRow.ranking_id == Ranking.id).exists()
    current = current_rankings(project_id).with_only_columns(Ranking.id).order_by(None).where(~is_held)
    return await session.scalar(select(func.count()).select_from(current.subquery())) or 0


async def count_chosen(session: AsyncSession, project_id: uuid.UUID, chosen: DatasetFilter) -> dict[str, Any]:
    """What a dataset would hold: `num_rankings`, `num_prompts`, `num_annotators`, `by_split`, and its first `rows`."""
    who = func.coalesce(cast(Ranking.annotator_id, String), Ranking.annotator_name, cast(Ranking.id, String))
    query = current_rankings(project_id, chosen).order_by(None)
    columns = (func.count(), func.count(Task.prompt_id.distinct()), func.count(who.distinct()))
    num_rankings, num_prompts, num_annotators = (await session.execute(query.with_only_columns(*columns))).one()
    splits = await session.execute(query.with_only_columns(Prompt.split, func.count()).group_by(Prompt.split))
    first = current_rankings(project_id, chosen).limit(PREVIEW_SIZE)
    shown = first.with_only_columns(Ranking.id, Prompt.messages, Prompt.split, Prompt.language)
    return {
        "num_rankings": num_rankings,
        "num_prompts": num_prompts,
        "num_annotators": num_annotators,
        "by_split": dict(splits.all()),
        "rows": (await session.execute(shown)).all(),
    }


async def list_people(session: AsyncSession, project_id: uuid.UUID) -> list[Any]:
    """Who ranked most: rows (id or None, name, how many rankings), at most 50."""
    counted = func.count()
    query = (
        select(Ranking.annotator_id, func.coalesce(User.name, Ranking.annotator_name), counted)
        .outerjoin(User, User.id == Ranking.annotator_id)
        .where(Ranking.project_id == project_id, func.coalesce(User.name, Ranking.annotator_name).is_not(None))
        .group_by(Ranking.annotator_id, func.coalesce(User.name, Ranking.annotator_name))
        .order_by(counted.desc())
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
    query = select(DatasetRow.line).where(DatasetRow.dataset_id == one.id, ~is_there.exists())
    lines = await session.scalars(query.order_by(DatasetRow.position).limit(PREVIEW_SIZE))
    return [orjson.loads(line) for line in lines]


async def versions_of_dataset(session: AsyncSession, dataset_id: uuid.UUID) -> Sequence[Version]:
    """The versions that learned from a dataset, oldest first."""
    query = select(Version).where(Version.dataset_id == dataset_id).order_by(Version.number)
    return (await session.scalars(query)).all()


async def first_rows(session: AsyncSession, dataset_id: uuid.UUID, *, limit: int = 10) -> list[dict[str, Any]]:
    """The first lines, parsed, to show what they hold."""
    lines = await session.scalars(
        select(DatasetRow.line).where(DatasetRow.dataset_id == dataset_id).order_by(DatasetRow.position).limit(limit)
    )
    return [orjson.loads(line) for line in lines]


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
        "filter": dataset.filter,
        "counts": dataset.counts,
        **dataset.card,
    }


READ_LINES = """
select convert_to(string_agg(line || e'\\n', '' order by position), 'UTF8'), count(*) from (
    select line, position, sum(octet_length(line)) over (order by position) - octet_length(line) as before
    from dataset_rows where dataset_id = %s and position >= %s and position < %s
) batch where before < %s"""


async def read_lines(session: AsyncSession, dataset_id: uuid.UUID, *, first: int) -> tuple[bytes, int]:
    """Some whole lines from a row on, and how many they are; none after the last.

    One value in PostgreSQL's binary form instead of many rows, which is as fast as COPY (benchmarks/export.py); and a
    reader who stalls between two batches holds no connection.
    """
    connection = await driver_connection(session)
    async with connection.cursor(binary=True) as cursor:
        await cursor.execute(READ_LINES, (dataset_id, first, first + ROWS_AT_ONCE, BYTES_AT_ONCE))
        row = await cursor.fetchone()
    assert row is not None
    return row[0] or b"", row[1]


async def count_bytes(session: AsyncSession, dataset_id: uuid.UUID) -> int:
    """How long a dataset is, as its lines were frozen, each with its newline."""
    length = func.sum(func.octet_length(DatasetRow.line) + 1)
    return await session.scalar(select(length).where(DatasetRow.dataset_id == dataset_id)) or 0


async def stream_lines(session: AsyncSession, dataset_id: uuid.UUID) -> AsyncIterator[bytes]:
    """A dataset's lines within one session, the same bytes every time, in flat memory however long it is."""
    position = 0
    while True:
        lines, num_lines = await read_lines(session, dataset_id, first=position)
        if num_lines == 0:
            return
        position += num_lines
        yield lines
