"""How a dataset is made, set by set in the database: its rankings at one instant, their lines, and what is counted.

Rankings are chosen by one statement. All else is read from rows that never change, some thousand rankings at a time, so
that memory stays flat, no statement runs for long, and a million rankings freeze while others work.
"""

from __future__ import annotations

import asyncio
import hashlib
import uuid
from collections import Counter
from dataclasses import asdict, dataclass, field
from datetime import UTC
from typing import Any

from sqlalchemy import (
    ColumnElement,
    LargeBinary,
    Select,
    String,
    Uuid,
    cast,
    column,
    delete,
    func,
    insert,
    literal,
    literal_column,
    select,
    table,
    text,
)
from sqlalchemy.dialects.postgresql import ARRAY, aggregate_order_by
from sqlalchemy.ext.asyncio import AsyncSession

from app.datasets import caps
from app.datasets.cards import MAX_PEOPLE_SHOWN, biases, share
from app.datasets.filters import LEARNED_FROM
from app.datasets.pieces import Pieces
from app.prompts.models import Prompt
from app.quality.agreement import measure
from app.quality.orders import Judgement
from app.rankings.models import Ranking
from app.tasks.models import Lease, Task, TaskCompletion

# So many rankings a statement.
BATCH = 500
# Agreement is measured on so many rankings of tasks that two people or more ranked.
MAX_JUDGEMENTS = 20_000
HMAC_BLOCK = 64
PSEUDONYM_LENGTH = 16

CREATE = """
create temporary table frozen_rankings (
    position int primary key deferrable, ranking_id uuid, task_id uuid, prompt_id uuid, split text, language text,
    round int, annotator text, chosen_by text, score double precision, is_assisted bool,
    shown uuid[], created_at timestamptz, rationale text, confidence int, all_bad bool, strength int
) on commit drop"""

# A line is what `orjson.dumps(row, option=OPT_SORT_KEYS)` would write, to the byte: keys sorted, no spaces, UTF-8.
# PostgreSQL escapes as orjson does; row_to_json and array_to_json put no space anywhere, which other functions do.
# Everything is looked up by its key, ranking by ranking, whatever the planner thinks of the sizes of tables.
WRITE = """
with made as materialized (
    select
        f.position, f.ranking_id, f.shown, f.is_assisted, answers.*, placed.*, compared.*,
        row_to_json(line)::text as line
    from frozen_rankings f
    cross join lateral (
        select
            array_agg(a.id order by t.position) as ids,
            array_agg(g.place order by t.position) as places,
            array_agg(char_length(a.text) order by t.position) as lengths,
            array_agg(distinct coalesce(a.version_id::text, 'elsewhere')) as versions,
            jsonb_agg(g.labels) filter (where g.labels <> '{}') as all_labels,
            array_to_json(array_agg(row_to_json(a) order by t.position)) as completions,
            string_agg(to_json(a.id) || ':' || array_to_json(g.labels), ',' order by a.id)
                filter (where g.labels <> '{}') as labels,
            string_agg(to_json(a.id) || ':' || array_to_json(g.denied), ',' order by a.id)
                filter (where g.denied <> '{}') as denied,
            string_agg(to_json(a.id) || ':' || g.rating, ',' order by a.id) as ratings
        from ranking_places g
        join task_completions t on t.task_id = g.task_id and t.completion_id = g.completion_id
        cross join lateral (
            select c.finish_reason, c.id, c.text, c.version_id from completions c where c.id = g.completion_id
        ) a
        where g.ranking_id = f.ranking_id
    ) answers
    cross join lateral (
        select
            array_to_json(array_agg(to_json(cell) order by place)) as cells,
            coalesce(sum(cardinality(cell)), 0) as num_placed,
            (array_agg(cell[1] order by place))[1] as best,
            count(*) > 1 and (array_agg(cardinality(cell) order by place))[1] = 1 as is_decided
        from (
            select place, array_agg(id order by number) as cell
            from unnest(answers.ids, answers.places) with ordinality as one (id, place, number)
            where place is not null
            group by place
        ) cells
    ) placed
    -- Each two answers that have a place, the better one first.
    cross join lateral (
        select
            count(*) filter (where a.place < b.place) as num_pairs,
            count(*) filter (where a.place = b.place) as num_ties,
            count(*) filter (where a.place < b.place and a.length <> b.length) as num_of_different_length,
            count(*) filter (where a.place < b.place and a.length > b.length) as longer_won
        from unnest(answers.places, answers.lengths) with ordinality as a (place, length, number)
        join unnest(answers.places, answers.lengths) with ordinality as b (place, length, number)
            on a.place < b.place or (a.place = b.place and a.number < b.number)
    ) compared
    cross join lateral (
        select
            f.all_bad,
            f.annotator,
            answers.completions,
            f.confidence,
            replace(to_char(f.created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US'), '.000000', '') || '+00:00'
                as created_at,
            concat('{', answers.denied, '}')::json as denied,
            f.shown as display_order,
            concat('{', answers.labels, '}')::json as labels,
            f.language,
            array_to_json(array(
                select row_to_json(said)
                from jsonb_array_elements((select messages from prompts where id = f.prompt_id))
                    with ordinality as turns (turn, number)
                cross join lateral (select turn -> 'content' as content, turn -> 'role' as role) said
                order by number
            )) as messages,
            coalesce(placed.cells, '[]') as "order",
            f.prompt_id,
            (select row_to_json(why) from (select f.chosen_by, f.is_assisted, f.score) why) as provenance,
            f.ranking_id,
            concat('{', answers.ratings, '}')::json as ratings,
            f.rationale,
            f.split,
            f.strength
    ) line
    where f.position >= :first and f.position < :last
),
written as (
    insert into dataset_rows (dataset_id, position, ranking_id)
    select :dataset_id, position, ranking_id from made
)
select
    convert_to(string_agg(line || e'\n', '' order by position), 'UTF8') as lines,
    jsonb_build_object(
        'num_pairs', sum(num_pairs),
        'num_ties', sum(num_ties),
        'num_of_different_length', sum(num_of_different_length),
        'longer_won', sum(longer_won),
        'num_with_rating', count(ratings),
        'num_with_gaps', count(*) filter (where num_placed < cardinality(ids)),
        'num_assisted', count(*) filter (where is_assisted),
        -- Where a model put the first card first, it says nothing of whoever ranks.
        'num_decided', count(*) filter (where is_decided and not is_assisted),
        'first_shown_won', count(*) filter (where is_decided and not is_assisted and best = shown[1]),
        'expected_by_chance',
            coalesce(sum(1.0 / cardinality(shown)) filter (where is_decided and not is_assisted), 0)
    ) as sums,
    (select jsonb_object_agg(name, number) from (
        select name, count(*) as number
        from made
        cross join jsonb_array_elements(all_labels) as of_answer
        cross join jsonb_array_elements_text(of_answer) as name
        group by name
    ) counted) as labels,
    (select jsonb_object_agg(name, number) from (
        select name, count(*) as number from made cross join unnest(versions) as name group by name
    ) counted) as versions
from made"""

COUNT_ALL = """
select
    count(distinct prompt_id) as num_prompts, count(distinct annotator) as num_annotators,
    min(created_at) as first, max(created_at) as last
from frozen_rankings"""

SHARED_TASKS = """
with shared as (
    select task_id from frozen_rankings group by task_id having count(*) > 1 order by task_id limit :limit
)
select f.task_id as task, f.prompt_id as prompt, f.annotator, array_agg(g.place order by t.position) as places
from shared
join frozen_rankings f using (task_id)
join ranking_places g on g.ranking_id = f.ranking_id
join task_completions t on t.task_id = f.task_id and t.completion_id = g.completion_id
group by f.position, f.task_id, f.prompt_id, f.annotator
order by f.task_id, f.position limit :limit"""


SAID = ("rationale", "confidence", "all_bad", "strength")
COLUMNS = (
    "position",
    "ranking_id",
    "task_id",
    "prompt_id",
    "split",
    "language",
    "round",
    "annotator",
    "chosen_by",
    "score",
    "shown",
)
CHOSEN = ("chosen_by", "score")
# Deferrable: a row may take the position of another that moves up in the same statement.
RENUMBER = """
update frozen_rankings f set position = numbered.number
from (select position, row_number() over (order by position) - 1 as number from frozen_rankings) numbered
where numbered.position = f.position and numbered.number <> f.position"""

FROZEN = table("frozen_rankings", *map(column, (*COLUMNS, *CHOSEN, "is_assisted", "created_at", *SAID)))


@dataclass
class Tally:
    """What is hashed and counted while lines are written."""

    sha256: Any = field(default_factory=hashlib.sha256)
    sums: Counter[str] = field(default_factory=Counter)
    labels: Counter[str] = field(default_factory=Counter)
    versions: Counter[str] = field(default_factory=Counter)


# Choosing


async def choose(session: AsyncSession, query: Select[Any], key: bytes) -> int:
    """Note which rankings are frozen, in the order in which they came, under pseudonyms by `key`; returns how many.

    One statement: one instant of the database. `query` chooses among rankings, their tasks, prompts and leases.
    """
    await session.execute(text(CREATE))
    columns = {
        "position": func.row_number().over(order_by=Ranking.number) - 1,
        "ranking_id": Ranking.id,
        "task_id": Ranking.task_id,
        "prompt_id": Task.prompt_id,
        "split": Prompt.split,
        "language": Prompt.language,
        "round": Task.round,
        "annotator": pseudonym(key),
        **{name: getattr(Task, name) for name in CHOSEN},
        "is_assisted": func.coalesce(Lease.is_assisted, False),
        "shown": shown(),
        "created_at": Ranking.created_at,
        **{name: getattr(Ranking, name) for name in SAID},
    }
    rows = query.with_only_columns(*columns.values()).order_by(None)
    await session.execute(insert(FROZEN).from_select(list(columns), rows))
    await session.execute(text("analyze frozen_rankings"))
    return await session.scalar(select(func.count()).select_from(FROZEN)) or 0


async def cap(session: AsyncSession, max_share: float) -> dict[str, int]:
    """Take the rankings out again by which one person would be more than this share of a split; returns how many, and
    of how many people. Those that stay keep their order.
    """
    most = await caps.most_each_by_split(session, FROZEN, max_share)
    turns = select(FROZEN.c.position, FROZEN.c.split, caps.turn(FROZEN).label("turn")).subquery()
    surplus = delete(FROZEN).where(FROZEN.c.position == turns.c.position, caps.is_surplus(turns, most))
    cut = surplus.returning(FROZEN.c.annotator).cte()
    num_rankings, num_people = (
        await session.execute(select(func.count(), func.count(cut.c.annotator.distinct())).select_from(cut))
    ).one()
    if num_rankings:
        await session.execute(text(RENUMBER))
        await session.execute(text("analyze frozen_rankings"))
    return {"num_rankings": num_rankings, "num_annotators": num_people}


def pseudonym(key: bytes) -> ColumnElement[str]:
    """Eight bytes of HMAC-SHA256 of whoever ranked: one person within a dataset, another in the next.

    Who was erased is nobody twice. The HMAC is put together of two hashes (RFC 2104), as PostgreSQL has none of its
    own; what the key adds to them is made here.
    """
    inner, outer = (bytes(byte ^ pad for byte in key.ljust(HMAC_BLOCK, b"\0")) for pad in (0x36, 0x5C))
    first = func.sha256(literal(inner, LargeBinary).concat(func.convert_to(person(), "UTF8")))
    digest = func.sha256(literal(outer, LargeBinary).concat(first))
    return func.left(func.encode(digest, "hex"), PSEUDONYM_LENGTH)


def person() -> ColumnElement[str]:
    """Whoever ranked, as an id, as the name in an imported file, or, where neither is known, by the ranking alone."""
    return func.coalesce(
        cast(Ranking.annotator_id, String), func.nullif(Ranking.annotator_name, ""), cast(Ranking.id, String)
    )


def shown() -> ColumnElement[Any]:
    """The answers as the annotator saw them; of rankings made elsewhere, as the task has them."""
    in_task = select(func.array_agg(aggregate_order_by(TaskCompletion.completion_id, TaskCompletion.position)))
    default = in_task.where(TaskCompletion.task_id == Ranking.task_id).correlate(Ranking).scalar_subquery()
    return func.coalesce(func.nullif(Lease.display_order, cast([], ARRAY(Uuid))), default)


# Writing


async def write(session: AsyncSession, dataset_id: uuid.UUID, num_rows: int) -> Tally:
    """Write the lines of the rankings that were chosen, hash and count them."""
    tally, pieces = Tally(), Pieces(session, dataset_id)
    for first in range(0, num_rows, BATCH):
        part = {"dataset_id": dataset_id, "first": first, "last": first + BATCH}
        found = (await session.execute(text(WRITE), part)).one()
        await pieces.write(found.lines)
        tally.sha256.update(found.lines)
        tally.sums.update(found.sums)
        tally.labels.update(found.labels or {})
        tally.versions.update(found.versions)
    return tally


# Counting


async def counts(session: AsyncSession, num_rows: int, tally: Tally) -> dict[str, Any]:
    """The counts of a dataset as they are stored."""
    whole = (await session.execute(text(COUNT_ALL))).one()
    by_split = await count_by(session, FROZEN.c.split)
    by_round = await count_by(session, func.coalesce(cast(FROZEN.c.round, String), literal_column("'imported'")))
    return {
        "num_rankings": num_rows,
        "num_prompts": whole.num_prompts,
        "num_pairs": tally.sums["num_pairs"],
        "num_ties": tally.sums["num_ties"],
        "num_annotators": whole.num_annotators,
        **{split.value: by_split.get(split, 0) for split in LEARNED_FROM},
        "by_round": by_round,
    }


async def contents(session: AsyncSession, tally: Tally) -> dict[str, Any]:
    """What a data card says of the rankings."""
    whole = (await session.execute(text(COUNT_ALL))).one()
    return {
        "annotators": await count_by(session, FROZEN.c.annotator, limit=MAX_PEOPLE_SHOWN),
        "largest_share": await largest_share(session),
        "languages": await count_by(session, FROZEN.c.language),
        "labels": dict(tally.labels.most_common()),
        "answers_of": dict(tally.versions.most_common(MAX_PEOPLE_SHOWN)),
        "biases": biases(tally.sums),
        "num_with_rating": tally.sums["num_with_rating"],
        "num_with_gaps": tally.sums["num_with_gaps"],
        "num_assisted": tally.sums["num_assisted"],
        "first_ranking_at": whole.first.astimezone(UTC).isoformat(),
        "last_ranking_at": whole.last.astimezone(UTC).isoformat(),
        "agreement": await agreement(session),
    }


async def largest_share(session: AsyncSession) -> dict[str, float | None]:
    """How much of each split is by the person who has most of it."""
    people = select(FROZEN.c.split, func.count().label("num")).group_by(FROZEN.c.split, FROZEN.c.annotator).subquery()
    query = select(people.c.split, func.max(people.c.num), func.sum(people.c.num)).group_by(people.c.split)
    rows = await session.execute(query.order_by(people.c.split))
    return {split: share(most, int(num)) for split, most, num in rows}


async def count_by(session: AsyncSession, what: ColumnElement[Any], limit: int | None = None) -> dict[str, int]:
    """How many of the rankings have each value, the most frequent first."""
    number = func.count()
    query = select(what, number).select_from(FROZEN).group_by(what).order_by(number.desc(), what).limit(limit)
    return dict((await session.execute(query)).all())


async def agreement(session: AsyncSession) -> dict[str, Any] | None:
    """How well the people agree whose rankings are being frozen; None where no two ranked the same task."""
    rows = (await session.execute(text(SHARED_TASKS), {"limit": MAX_JUDGEMENTS})).mappings()
    judgements = [Judgement(**row) for row in rows]
    found = await asyncio.to_thread(measure, judgements) if judgements else None
    return asdict(found) if found and found.num_tasks else None
