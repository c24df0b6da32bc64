"""Prompts and completions: their import, the frozen list of a run, what workers deliver, and reading them."""

from __future__ import annotations

import hashlib
import json
import unicodedata
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import orjson
from sqlalchemy import Row, Select, func, insert, literal, select, text
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.audit import audit
from app.errors import Invalid, NotFound
from app.events import events
from app.ndjson import BadLine, Line
from app.projects import tallies
from app.projects.models import Project
from app.prompts.importing import Batch, import_lines
from app.prompts.lines import AnswerIn, CompletionIn, CompletionsLine, ImportReport, PromptFields, PromptLine
from app.prompts.models import Completion, Prompt, RunPrompt, Split
from app.registry.models import Version
from app.runs.models import Run

# A task shows at most so many answers (design, section 1).
MAX_TASK_COMPLETIONS = 9


@dataclass(frozen=True)
class CompletionsStored:
    """These prompts have new completions: of a run, or imported (`run_id` is None)."""

    project_id: uuid.UUID
    run_id: uuid.UUID | None
    prompt_ids: Sequence[uuid.UUID]


# The rows of a batch travel as one value: the statement stays the same whatever their number, and is planned once.
ADD_PROMPTS = text("""
insert into prompts (project_id, messages, kind, language, source, split, root_hash, content_hash, meta)
    select :project_id, messages, kind, language, source, split, decode(root, 'hex'), decode(content, 'hex'), meta
    from rows from (jsonb_to_recordset(cast(:rows as jsonb)) as (
        messages jsonb, kind text, language text, source text, split text, root text, content text, meta jsonb
    )) with ordinality
    order by ordinality
    on conflict (project_id, content_hash) do nothing
    returning id""")
ADD_COMPLETIONS = text("""
insert into completions
    (id, prompt_id, text, content_hash, model_name, sampling, seed, finish_reason, num_tokens)
    select id, prompt_id, text, decode(hash, 'hex'), model_name, sampling, seed, finish_reason, num_tokens
    from jsonb_to_recordset(cast(:rows as jsonb)) as (
        id uuid, prompt_id uuid, text text, hash text, model_name text, sampling jsonb, seed bigint,
        finish_reason text, num_tokens int
    )""")
FIND_PROMPTS = text("""
select hash, id from unnest(cast(:hashes as text[])) as hash
    join prompts on project_id = :project_id and content_hash = decode(hash, 'hex')""")

# What makes two prompts the same, and what holds them together on one side of the split


def content_hash(messages: Sequence[Mapping[str, str]]) -> bytes:
    """Equal for the same conversation, however its characters are composed (Unicode NFC)."""
    turns = [[turn["role"], unicodedata.normalize("NFC", turn["content"])] for turn in messages]
    return hashlib.sha256(orjson.dumps(turns)).digest()


def root_hash(messages: Sequence[Mapping[str, str]]) -> bytes:
    """Equal for conversations that begin with the same question, whatever system prompt stands before it.

    Case, spacing and compatible characters do not count: what is nearly the same must not be learned and held out.
    """
    question = next(turn["content"] for turn in messages if turn["role"] == "user")
    return hashlib.sha256(" ".join(unicodedata.normalize("NFKC", question).casefold().split()).encode()).digest()


def text_hash(text: str) -> bytes:
    """Equal for the same answer, to the byte."""
    return hashlib.sha256(text.encode()).digest()


def pick_split(project: Project, root: bytes) -> Split:
    """The side on which all conversations of one root stand: SHA-256 of seed and root, as a share of [0, 1)."""
    digest = hashlib.sha256(str(project.seed).encode() + b"|" + root).digest()
    share = int.from_bytes(digest[:8]) / 2**64
    if share < project.test_share:
        return Split.TEST
    return Split.VALIDATION if share < project.test_share + project.validation_share else Split.TRAIN


# Import


async def import_prompts(
    session: AsyncSession,
    lines: AsyncIterable[Line | BadLine],
    *,
    project: Project,
    partial: bool = False,
    dry_run: bool = False,
    actor_id: uuid.UUID | None = None,
) -> ImportReport:
    """Take prompts from JSON lines. Those that the project has already are counted, not refused.

    Raises:
        ImportRunning: somebody else imports into this project right now.
        Invalid: there is no line at all.
    """

    async def store(batch: Batch[PromptLine], report: ImportReport) -> None:
        for _, line in batch:
            report.note_unread_of(line, line.UNREAD)
        _, num_new = await ensure_prompts(session, project, [line for _, line in batch])
        report.taken += num_new
        report.new_prompts += num_new
        report.duplicates += len(batch) - num_new

    report = await import_lines(
        session,
        lines,
        project_id=project.id,
        parse=PromptLine.model_validate,
        store=store,
        partial=partial,
        dry_run=dry_run,
    )
    await audit_import(session, "prompts.import", project, report, actor_id)
    return report


async def import_completions(
    session: AsyncSession,
    lines: AsyncIterable[Line | BadLine],
    *,
    project: Project,
    partial: bool = False,
    dry_run: bool = False,
    actor_id: uuid.UUID | None = None,
) -> ImportReport:
    """Take ready answers from JSON lines, and the prompts that they answer. The same again is counted, not refused.

    Raises:
        ImportRunning: somebody else imports into this project right now.
        Invalid: there is no line at all.
    """
    touched: dict[uuid.UUID, None] = {}
    crowded: set[uuid.UUID] = set()

    async def store(batch: Batch[CompletionsLine], report: ImportReport) -> None:
        for _, line in batch:
            report.note_unread_of(line, line.UNREAD)
        prompt_ids = await find_prompts(session, project, batch, report)
        answers = [
            (prompt_id, answer)
            for (_, line), prompt_id in zip(batch, prompt_ids, strict=True)
            if prompt_id is not None
            for answer in line.answers()
        ]
        _, new = await ensure_completions(session, answers)
        touched.update(dict.fromkeys(new))
        report.taken += len(new)
        report.new_completions += len(new)
        report.duplicates += len(answers) - len(new)
        crowded.update(await crowded_prompts(session, new))
        report.num_crowded_prompts = len(crowded)

    report = await import_lines(
        session,
        lines,
        project_id=project.id,
        parse=CompletionsLine.model_validate,
        store=store,
        partial=partial,
        dry_run=dry_run,
    )
    await audit_import(session, "completions.import", project, report, actor_id)
    if report.is_stored and touched:
        await events.publish(session, CompletionsStored(project.id, None, list(touched)))
    return report


async def audit_import(
    session: AsyncSession,
    action: str,
    project: Project,
    report: ImportReport,
    actor_id: uuid.UUID | None,
    **more: int,
) -> None:
    """Write down what was stored, if anything was; counts that only some imports have as `more`."""
    if report.is_stored:
        counts = {"taken": report.taken, "duplicates": report.duplicates, "refused": report.num_refused} | more
        await audit(session, actor_id=actor_id, action=action, subject=str(project.id), **counts)


async def find_prompts(
    session: AsyncSession, project: Project, batch: Batch[CompletionsLine], report: ImportReport
) -> list[uuid.UUID | None]:
    """The prompt of each line: named by its id, or by its conversation and then added when it is new. None: refused."""
    named = {line.prompt_id for _, line in batch if line.prompt_id is not None}
    known = set(await session.scalars(select(Prompt.id).where(Prompt.project_id == project.id, Prompt.id.in_(named))))
    given = [line for _, line in batch if line.prompt_id is None]
    ids, num_new = await ensure_prompts(session, project, given)
    report.new_prompts += num_new
    following = iter(ids)
    found: list[uuid.UUID | None] = []
    for number, line in batch:
        if line.prompt_id is None:
            found.append(next(following))
        elif line.prompt_id in known:
            found.append(line.prompt_id)
        else:
            report.refuse(number, [("prompt_id", f"there is no prompt {line.prompt_id} in this project")])
            found.append(None)
    return found


async def ensure_prompts(
    session: AsyncSession, project: Project, lines: Sequence[PromptFields]
) -> tuple[list[uuid.UUID], int]:
    """Add the prompts that the project does not have. Returns the id of each, in order, and how many are new."""
    if not lines:
        return [], 0
    rows = [prompt_row(project, line) for line in lines]
    new = await session.execute(ADD_PROMPTS, {"project_id": project.id, "rows": json.dumps(rows)})
    num_new = len(new.all())
    found = await session.execute(FIND_PROMPTS, {"project_id": project.id, "hashes": [row["content"] for row in rows]})
    ids: dict[str, uuid.UUID] = dict(found.all())
    return [ids[row["content"]] for row in rows], num_new


def prompt_row(project: Project, line: PromptFields) -> dict[str, Any]:
    """What `ADD_PROMPTS` reads of a prompt. What the file called it is kept in `meta`."""
    messages = line.conversation()
    root = root_hash(messages)
    return {
        "messages": messages,
        "kind": line.kind,
        "language": line.language or line.lang or "en",
        "source": line.source,
        "split": pick_split(project, root),
        "root": root.hex(),
        "content": content_hash(messages).hex(),
        "meta": line.meta if line.id is None else {"import_id": line.id} | line.meta,
    }


async def ensure_completions(
    session: AsyncSession, answers: Sequence[tuple[uuid.UUID, AnswerIn]]
) -> tuple[list[uuid.UUID], list[uuid.UUID]]:
    """Add the imported answers that are not there: the same text by the same model is one. Hold `lock_imports`.

    Returns the id of each answer, in order, and the prompt of each new one.
    """
    ids = await imported_completions(session, {prompt_id for prompt_id, _ in answers})
    rows = []
    in_order = []
    for prompt_id, answer in answers:
        key = (prompt_id, text_hash(answer.text), answer.model)
        if key not in ids:
            ids[key] = uuid.uuid4()
            rows.append(completion_row(ids[key], prompt_id, answer))
        in_order.append(ids[key])
    if rows:
        await session.execute(ADD_COMPLETIONS, {"rows": json.dumps(rows)})
    return in_order, [uuid.UUID(row["prompt_id"]) for row in rows]


async def imported_completions(
    session: AsyncSession, prompt_ids: set[uuid.UUID]
) -> dict[tuple[uuid.UUID, bytes, str | None], uuid.UUID]:
    """The imported answers to these prompts: (prompt, hash of the text, model) -> id."""
    found = await session.execute(
        select(Completion.prompt_id, Completion.content_hash, Completion.model_name, Completion.id).where(
            Completion.prompt_id.in_(prompt_ids), Completion.run_id.is_(None), Completion.author_id.is_(None)
        )
    )
    return {(prompt_id, digest, model): key for prompt_id, digest, model, key in found}


def completion_row(key: uuid.UUID, prompt_id: uuid.UUID, answer: AnswerIn) -> dict[str, Any]:
    """What `ADD_COMPLETIONS` reads of an imported answer."""
    return {
        "id": str(key),
        "prompt_id": str(prompt_id),
        "text": answer.text,
        "hash": text_hash(answer.text).hex(),
        "model_name": answer.model,
        "sampling": answer.sampling,
        "seed": answer.seed,
        "finish_reason": answer.how_it_ended(),
        "num_tokens": answer.num_tokens,
    }


async def crowded_prompts(session: AsyncSession, prompt_ids: Sequence[uuid.UUID]) -> Sequence[uuid.UUID]:
    """Which of these prompts have more different imported answers than one task can show."""
    num_answers = func.count(Completion.content_hash.distinct())
    found = await session.scalars(
        select(Completion.prompt_id)
        .where(Completion.prompt_id.in_(set(prompt_ids)), Completion.run_id.is_(None))
        .group_by(Completion.prompt_id)
        .having(num_answers > MAX_TASK_COMPLETIONS)
    )
    return found.all()


# What runs work on, and what they deliver


async def freeze_run_prompts(
    session: AsyncSession,
    *,
    run_id: uuid.UUID,
    project_id: uuid.UUID,
    splits: Sequence[str],
    exclude: Select[Any] | None = None,
    limit: int | None = None,
) -> int:
    """Write the list of prompts that a run works on, oldest first, without those of the query `exclude`.

    Returns how many there are.
    """
    query = select(Prompt.id, Prompt.number).where(
        Prompt.project_id == project_id, Prompt.split.in_(splits), Prompt.withdrawn_at.is_(None)
    )
    if exclude is not None:
        query = query.where(Prompt.id.not_in(exclude))
    chosen = query.order_by(Prompt.number).limit(limit).subquery()
    position = func.row_number().over(order_by=chosen.c.number) - 1
    added = await session.scalars(
        insert(RunPrompt)
        .from_select(["run_id", "position", "prompt_id"], select(literal(run_id), position, chosen.c.id))
        .returning(RunPrompt.position)
    )
    return len(added.all())


async def freeze_prompt_list(session: AsyncSession, *, run_id: uuid.UUID, prompt_ids: Sequence[uuid.UUID]) -> None:
    """Write the list of prompts that a run works on, in this order."""
    rows = [
        {"run_id": run_id, "position": position, "prompt_id": prompt_id}
        for position, prompt_id in enumerate(prompt_ids)
    ]
    await session.execute(insert(RunPrompt), rows)


async def stream_run_prompts(session: AsyncSession, run_id: uuid.UUID) -> AsyncIterator[dict[str, Any]]:
    """A run's frozen prompts in order, each with the number of completions that this run has delivered for it."""
    num_completions = (
        select(func.count())
        .where(Completion.run_id == run_id, Completion.prompt_id == Prompt.id)
        .correlate(Prompt)
        .scalar_subquery()
    )
    query = (
        select(
            Prompt.id,
            Prompt.messages,
            Prompt.kind,
            Prompt.language,
            Prompt.split,
            Prompt.meta,
            num_completions.label("num_completions"),
        )
        .join(RunPrompt, RunPrompt.prompt_id == Prompt.id)
        .where(RunPrompt.run_id == run_id)
        .order_by(RunPrompt.position)
    )
    async for row in stream_mappings(session, query):
        yield row


async def stream_mappings(session: AsyncSession, query: Select[Any]) -> AsyncIterator[dict[str, Any]]:
    """The rows of a query, some at a time, as dicts."""
    result = await session.stream(query, execution_options={"yield_per": 500})
    async for row in result.mappings():
        yield dict(row)


async def store_completions(
    session: AsyncSession, *, run: Run, version_id: uuid.UUID | None, items: Sequence[CompletionIn]
) -> tuple[int, int]:
    """Keep what a worker delivers; returns how many answers were new, and how many had come before.

    Raises:
        Invalid: a prompt is not on the run's list.
    """
    wanted = {item.prompt_id for item in items}
    listed = set(
        await session.scalars(
            select(RunPrompt.prompt_id).where(RunPrompt.run_id == run.id, RunPrompt.prompt_id.in_(wanted))
        )
    )
    for position, item in enumerate(items):
        if item.prompt_id not in listed:
            raise Invalid.field(f"completions.{position}.prompt_id", "is not among the prompts of this run")
    rows = [sampled_row(run, version_id, item) for item in items]
    statement = upsert(Completion).on_conflict_do_nothing(index_elements=["run_id", "prompt_id", "index"])
    new = (await session.execute(statement.returning(Completion.prompt_id), rows)).scalars().all()
    if new:
        await events.publish(session, CompletionsStored(run.project_id, run.id, list(dict.fromkeys(new))))
    return len(new), len(items) - len(new)


def sampled_row(run: Run, version_id: uuid.UUID | None, item: CompletionIn) -> dict[str, Any]:
    """A sampled answer's columns."""
    return {
        **item.model_dump(),
        "id": uuid.uuid4(),
        "content_hash": text_hash(item.text),
        "run_id": run.id,
        "version_id": version_id,
    }


# Reading


async def list_prompts(
    session: AsyncSession,
    project_id: uuid.UUID,
    *,
    split: str | None = None,
    after: int | None = None,
    limit: int = 50,
) -> Sequence[Row[Prompt, int]]:
    """Prompts in the order in which they came, after the one with number `after`: rows of (Prompt, num_completions)."""
    query = select(Prompt, count_of_completions()).where(Prompt.project_id == project_id).order_by(Prompt.number)
    if split is not None:
        query = query.where(Prompt.split == split)
    if after is not None:
        query = query.where(Prompt.number > after)
    return (await session.execute(query.limit(limit))).all()


def count_of_completions() -> Any:
    """How many answers a prompt has, as a column."""
    counted = select(func.count()).where(Completion.prompt_id == Prompt.id).correlate(Prompt)
    return counted.scalar_subquery().label("num_completions")


async def get_prompt(session: AsyncSession, prompt_id: uuid.UUID, *, project_id: uuid.UUID | None = None) -> Prompt:
    """A prompt by id.

    Raises:
        NotFound: there is none, or it is another project's.
    """
    prompt = await session.get(Prompt, prompt_id)
    if prompt is None or project_id not in (None, prompt.project_id):
        raise NotFound("There is no such prompt.")
    return prompt


async def count_prompts(session: AsyncSession, project_id: uuid.UUID) -> dict[str, int]:
    """How many prompts each split has."""
    held = await tallies.read(session, project_id)
    return {split: held.of_split(split).num_prompts for split in Split}


def uncheckable(project_id: uuid.UUID) -> Select[Any]:
    """The prompts whose answers no program can check: those without `check` in their meta."""
    return select(Prompt.id).where(Prompt.project_id == project_id, ~Prompt.meta.has_key("check"))


async def count_checkable(session: AsyncSession, project_id: uuid.UUID) -> int:
    """How many training prompts have an answer that a program can check."""
    query = select(func.count()).where(
        Prompt.project_id == project_id,
        Prompt.split == Split.TRAIN,
        Prompt.withdrawn_at.is_(None),
        Prompt.id.not_in(uncheckable(project_id)),
    )
    return await session.scalar(query) or 0


async def list_completions(session: AsyncSession, prompt_id: uuid.UUID) -> Sequence[Row[Completion, Version]]:
    """The answers to a prompt, oldest first: rows of (Completion, the Version that wrote it or None)."""
    query = (
        select(Completion, Version)
        .outerjoin(Version, Version.id == Completion.version_id)
        .where(Completion.prompt_id == prompt_id)
        .order_by(Completion.created_at, Completion.run_id, Completion.index, Completion.id)
    )
    return (await session.execute(query)).all()


async def stream_completions(
    session: AsyncSession,
    project_id: uuid.UUID,
    *,
    version_id: uuid.UUID | None = None,
    split: str | None = None,
) -> AsyncIterator[dict[str, Any]]:
    """A project's completions with their prompts, in the order of the prompts."""
    query = (
        select(
            Completion.id,
            Completion.prompt_id,
            Prompt.messages,
            Prompt.language,
            Prompt.split,
            Completion.text,
            Completion.version_id,
            Version.number.label("version"),
            Completion.run_id,
            Completion.index,
            Completion.model_name.label("model"),
            Completion.sampling,
            Completion.seed,
            Completion.finish_reason,
            Completion.num_tokens,
            Completion.created_at,
        )
        .join(Prompt, Prompt.id == Completion.prompt_id)
        .outerjoin(Version, Version.id == Completion.version_id)
        .where(Prompt.project_id == project_id)
        .order_by(Prompt.number, Completion.created_at, Completion.run_id, Completion.index, Completion.id)
    )
    if version_id is not None:
        query = query.where(Completion.version_id == version_id)
    if split is not None:
        query = query.where(Prompt.split == split)
    async for row in stream_mappings(session, query):
        yield row
