"""Prompts and answers that come in files: one that the project has already is not added again."""

from __future__ import annotations

import json
import uuid
from collections.abc import AsyncIterable, Sequence
from typing import Any

from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from app.events import events
from app.ndjson import BadLine, Line
from app.projects.models import Project
from app.prompts.importing import Batch, audit_import, import_lines
from app.prompts.lines import AnswerIn, CompletionsLine, ImportReport, PromptFields, PromptLine
from app.prompts.models import Completion, Prompt
from app.prompts.service import CompletionsStored, content_hash, pick_split, root_hash, text_hash

# A task shows at most so many answers (design, section 1).
MAX_TASK_COMPLETIONS = 9

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
