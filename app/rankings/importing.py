"""Import of rankings that were made elsewhere.

Each becomes an immutable ranking without a lease, on a task of exactly the answers that it compared. The same file
again adds nothing.
"""

from __future__ import annotations

import hashlib
import uuid
from collections import defaultdict
from collections.abc import AsyncIterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from app.errors import Invalid
from app.events import events
from app.ndjson import BadLine, Line
from app.projects.models import Project
from app.prompts.adding import ensure_completions, ensure_prompts
from app.prompts.importing import Batch, audit_import, import_lines
from app.prompts.lines import ImportReport
from app.rankings import import_gold
from app.rankings.import_gold import Key, Known
from app.rankings.import_lines import AnyLine, Judgement, parse
from app.rankings.models import Ranking, RankingPlace
from app.tasks.models import Purpose, Task, TaskCompletion

MAX_OVERLAP = 100


@dataclass(frozen=True)
class RankingsImported:
    """A project has new rankings that were made elsewhere."""

    project_id: uuid.UUID
    num_rankings: int


@dataclass(frozen=True)
class Importer:
    """Who sends a file, and whether they may say which orders are right."""

    id: uuid.UUID | None
    is_admin: bool


@dataclass(frozen=True)
class Drawn:
    """A judgement in the ids of stored completions."""

    prompt_id: uuid.UUID
    annotator: str
    answers: tuple[uuid.UUID, ...]
    places: Mapping[uuid.UUID, int]
    labels: Mapping[uuid.UUID, Sequence[str]]
    ratings: Mapping[uuid.UUID, int]
    denied: Mapping[uuid.UUID, Sequence[str]]
    whole: Mapping[str, Any]

    @property
    def key(self) -> Key:
        """What its task compares."""
        return frozenset(self.answers)

    def body_hash(self) -> bytes:
        """Equal for the same annotator saying the same of the same answers."""
        body: list[Any] = [
            self.annotator,
            sorted(
                [str(key), self.places.get(key), sorted(self.labels.get(key, ())), self.ratings.get(key)]
                for key in self.key
            ),
        ]
        # What was not said is no part of the hash: files from before a question existed keep theirs.
        denied = sorted([str(key), sorted(keys)] for key, keys in self.denied.items() if keys)
        said = sorted([name, value] for name, value in self.whole.items() if value not in (None, ""))
        body += [item for item in (denied, said) if item]
        return hashlib.sha256(orjson.dumps(body)).digest()


async def import_rankings(
    session: AsyncSession,
    lines: AsyncIterable[Line | BadLine],
    *,
    project: Project,
    partial: bool = False,
    dry_run: bool = False,
    actor_id: uuid.UUID | None = None,
    by_admin: bool = False,
) -> ImportReport:
    """Take rankings that were made elsewhere, with their prompts and answers. The same again is counted, not refused.

    `by_admin`: lines may say `gold`.

    Raises:
        ImportRunning: somebody else imports into this project right now.
        Invalid: there is no line at all.
    """

    async def store(batch: Batch[AnyLine], report: ImportReport) -> None:
        await store_batch(session, project, batch, report, Importer(actor_id, by_admin))

    report = await import_lines(
        session, lines, project_id=project.id, parse=parse, store=store, partial=partial, dry_run=dry_run
    )
    await audit_import(session, "rankings.import", project, report, actor_id, gold=report.num_gold)
    if report.is_stored and report.taken:
        await events.publish(session, RankingsImported(project.id, report.taken))
    return report


async def store_batch(
    session: AsyncSession, project: Project, batch: Batch[AnyLine], report: ImportReport, importer: Importer
) -> None:
    """Store the rankings of some lines, and before them whatever they rest on; make gold of those that say so."""
    batch = await without_our_own(session, project, without_bad_gold(batch, report, importer), report)
    drawn = await draw_batch(session, project, batch, report)
    tasks = await find_tasks(session, {item.prompt_id for items in drawn.values() for item in items})
    known = [(number, known_order(item, line)) for number, line in batch if line.gold for item in drawn[number]]
    refused = await import_gold.refuse_others(session, tasks, known, report)
    taken = [item for number, items in drawn.items() if number not in refused for item in items]
    num_stored = await store_rankings(session, project, tasks, taken)
    report.taken += num_stored
    report.duplicates += len(taken) - num_stored
    orders = [order for number, order in known if number not in refused]
    report.num_gold += await import_gold.make_gold(session, tasks, orders, importer.id)


def without_bad_gold(batch: Batch[AnyLine], report: ImportReport, importer: Importer) -> Batch[AnyLine]:
    """The lines that are rankings, or can become gold; the report names the others."""
    good = []
    for number, line in batch:
        problem = import_gold.rule_against(line, by_admin=importer.is_admin)
        if problem:
            report.refuse(number, [problem])
        else:
            good.append((number, line))
    return good


async def draw_batch(
    session: AsyncSession, project: Project, batch: Batch[AnyLine], report: ImportReport
) -> dict[int, list[Drawn]]:
    """What each line says, in the ids of its answers, which are stored with their prompt where they are new."""
    prompt_ids, num_prompts = await ensure_prompts(session, project, [line for _, line in batch])
    answers = [
        (prompt_id, answer) for prompt_id, (_, line) in zip(prompt_ids, batch, strict=True) for answer in line.answers()
    ]
    completion_ids, new_completions = await ensure_completions(session, answers)
    report.new_prompts += num_prompts
    report.new_completions += len(new_completions)
    following = iter(completion_ids)
    drawn = {}
    for prompt_id, (number, line) in zip(prompt_ids, batch, strict=True):
        ids = {answer.id or "": next(following) for answer in line.answers()}
        drawn[number] = [draw(prompt_id, judgement, ids) for judgement in line.judgements()]
    return drawn


def known_order(item: Drawn, line: AnyLine) -> Known:
    """The order of a judgement as a known one."""
    return Known(item.places, is_qualifying=line.gold == "qualification", why=line.why)


def draw(prompt_id: uuid.UUID, judgement: Judgement, ids: Mapping[str, uuid.UUID]) -> Drawn:
    """A judgement in the ids of stored completions."""
    return Drawn(
        prompt_id=prompt_id,
        annotator=judgement.annotator,
        answers=tuple(dict.fromkeys(ids[name] for name in judgement.answers)),
        places={ids[name]: place for place, cell in enumerate(judgement.cells, start=1) for name in cell},
        labels={ids[name]: labels for name, labels in judgement.labels.items()},
        ratings={ids[name]: rating for name, rating in judgement.ratings.items()},
        denied={ids[name]: labels for name, labels in judgement.denied.items()},
        whole=judgement.whole,
    )


async def without_our_own(
    session: AsyncSession, project: Project, batch: Batch[AnyLine], report: ImportReport
) -> Batch[AnyLine]:
    """The lines of a batch, without the rankings of this project that come back to it in one of its own exports."""
    named = [key for _, line in batch if (key := line.known_as()) is not None]
    ours = set(await session.scalars(select(Ranking.id).where(Ranking.project_id == project.id, Ranking.id.in_(named))))
    for number, line in batch:
        report.note_unread_of(line, line.UNREAD)
        if line.known_as() in ours and line.gold:
            report.refuse(number, [("gold", "is a ranking of this project: take its order over on its task's page")])
        elif line.known_as() in ours:
            report.duplicates += 1
    return [(number, line) for number, line in batch if line.known_as() not in ours]


async def store_rankings(
    session: AsyncSession, project: Project, tasks: dict[Key, uuid.UUID], drawn: Sequence[Drawn]
) -> int:
    """Add the rankings that are not there, on tasks of exactly the answers that they compared; returns how many.

    New tasks are added to `tasks`.
    """
    seen = await known_hashes(session, tasks, drawn)
    fresh: defaultdict[Key, list[Drawn]] = defaultdict(list)
    for item in drawn:
        mark = (item.key, item.body_hash())
        if mark not in seen:
            seen.add(mark)
            fresh[item.key].append(item)
    await make_room(session, project, tasks, fresh)
    rankings = []
    places = []
    for key, items in fresh.items():
        for item in items:
            ranking = ranking_row(project, tasks[key], item)
            rankings.append(ranking)
            places += place_rows(ranking["id"], tasks[key], item)
    if rankings:
        await session.execute(insert(Ranking), rankings)
        await session.execute(insert(RankingPlace), places)
    return len(rankings)


async def find_tasks(session: AsyncSession, prompt_ids: set[uuid.UUID]) -> dict[Key, uuid.UUID]:
    """The tasks to learn from of these prompts, by what they compare; the oldest where several compare the same."""
    rows = await session.execute(
        select(Task.id, TaskCompletion.completion_id)
        .join(TaskCompletion, TaskCompletion.task_id == Task.id)
        .where(Task.prompt_id.in_(prompt_ids), Task.withdrawn_at.is_(None), Task.purpose == Purpose.LEARN)
        .order_by(Task.number)
    )
    compared: defaultdict[uuid.UUID, set[uuid.UUID]] = defaultdict(set)
    for task_id, completion_id in rows:
        compared[task_id].add(completion_id)
    tasks: dict[Key, uuid.UUID] = {}
    for task_id, answers in compared.items():
        tasks.setdefault(frozenset(answers), task_id)
    return tasks


async def known_hashes(
    session: AsyncSession, tasks: Mapping[Key, uuid.UUID], drawn: Sequence[Drawn]
) -> set[tuple[Key, bytes]]:
    """What was imported onto these tasks before."""
    keys = {tasks[item.key]: item.key for item in drawn if item.key in tasks}
    rows = await session.execute(
        select(Ranking.task_id, Ranking.body_hash).where(Ranking.task_id.in_(keys), Ranking.source == "import")
    )
    return {(keys[task_id], body_hash) for task_id, body_hash in rows}


async def make_room(
    session: AsyncSession,
    project: Project,
    tasks: dict[Key, uuid.UUID],
    fresh: Mapping[Key, Sequence[Drawn]],
) -> None:
    """A task for every set of answers, with a free place for each of its new rankings. Adds the new ones to `tasks`.

    Raises:
        Invalid: more rankings than one task takes.
    """
    rows = []
    members = []
    for key, items in fresh.items():
        if len(items) > MAX_OVERLAP:
            raise Invalid.field(
                "annotations", f"{len(items)} rankings of the same answers; a task takes at most {MAX_OVERLAP}"
            )
        if key in tasks:
            places = Task.num_taken + len(items)
            await session.execute(
                update(Task).where(Task.id == tasks[key]).values(overlap=func.greatest(Task.overlap, places))
            )
            continue
        tasks[key] = uuid.uuid4()
        rows.append(
            {"id": tasks[key], "project_id": project.id, "prompt_id": items[0].prompt_id, "overlap": len(items)}
        )
        members += [
            {"task_id": tasks[key], "completion_id": completion_id, "position": position}
            for position, completion_id in enumerate(items[0].answers)
        ]
    if rows:
        await session.execute(insert(Task), rows)
        await session.execute(insert(TaskCompletion), members)


def ranking_row(project: Project, task_id: uuid.UUID, item: Drawn) -> dict[str, Any]:
    """A ranking's columns."""
    return {
        "id": uuid.uuid4(),
        "project_id": project.id,
        "task_id": task_id,
        "annotator_name": item.annotator,
        "source": "import",
        "body_hash": item.body_hash(),
        "rationale": item.whole.get("rationale", ""),
        **{name: item.whole.get(name) for name in ("confidence", "all_bad", "strength")},
    }


def place_rows(ranking_id: uuid.UUID, task_id: uuid.UUID, item: Drawn) -> list[dict[str, Any]]:
    """The place of every answer; None for those that the annotator left out."""
    return [
        {
            "ranking_id": ranking_id,
            "task_id": task_id,
            "completion_id": completion_id,
            "place": item.places.get(completion_id),
            "rating": item.ratings.get(completion_id),
            "labels": list(item.labels.get(completion_id, ())),
            "denied": list(item.denied.get(completion_id, ())),
        }
        for completion_id in item.answers
    ]
