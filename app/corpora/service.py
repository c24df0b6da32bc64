"""Corpora: import as hashed lines, freeze demonstrations as one, and give the lines out again, byte for byte."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass, field
from functools import partial as bind
from typing import Any

import orjson
from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.corpora.lines import CorpusLine
from app.corpora.models import Corpus, CorpusKind, CorpusRow
from app.errors import existing
from app.ndjson import BadLine, Line
from app.projects.models import Project
from app.prompts.importing import Batch, audit_import, import_lines
from app.prompts.lines import ImportReport
from app.prompts.models import Completion, Prompt, Split
from app.prompts.service import pick_split, root_hash

BATCH = 500
# The name of corpora that were frozen from demonstrations.
DEMONSTRATIONS = "demonstrations"


@dataclass
class Writer:
    """Writes the lines of a corpus that is being made, and counts and hashes them."""

    corpus_id: uuid.UUID = field(default_factory=uuid.uuid4)
    kind: CorpusKind | None = None
    num_rows: int = 0
    sha256: Any = field(default_factory=hashlib.sha256)
    seen: set[bytes] = field(default_factory=set)

    async def write(self, session: AsyncSession, rows: Sequence[dict[str, Any]]) -> int:
        """Add the rows that it does not have; returns how many those were."""
        values = []
        for row in rows:
            line = orjson.dumps(row, option=orjson.OPT_SORT_KEYS).decode()
            digest = hashlib.sha256(line.encode()).digest()
            if digest in self.seen:
                continue
            self.seen.add(digest)
            self.sha256.update(line.encode() + b"\n")
            values.append({"corpus_id": self.corpus_id, "position": self.num_rows, "line": line})
            self.num_rows += 1
        if values:
            await session.execute(insert(CorpusRow), values)
        return len(values)

    async def finish(
        self, session: AsyncSession, project: Project, *, name: str, created_by: uuid.UUID | None
    ) -> Corpus:
        """Store the corpus that the lines belong to."""
        assert self.kind is not None
        corpus = Corpus(
            id=self.corpus_id,
            project_id=project.id,
            number=await next_number(session, project.id),
            name=name,
            kind=self.kind,
            num_rows=self.num_rows,
            sha256=self.sha256.hexdigest(),
            created_by=created_by,
        )
        session.add(corpus)
        await session.flush()
        return corpus


async def next_number(session: AsyncSession, project_id: uuid.UUID) -> int:
    """The number after the newest corpus's. Holds the project, so that two imports do not take the same one."""
    await session.execute(select(Project.id).where(Project.id == project_id).with_for_update(key_share=True))
    newest = await session.scalar(select(func.max(Corpus.number)).where(Corpus.project_id == project_id))
    return (newest or 0) + 1


# Making


async def import_corpus(
    session: AsyncSession,
    lines: AsyncIterable[Line | BadLine],
    *,
    project: Project,
    name: str = "",
    partial: bool = False,
    dry_run: bool = False,
    actor_id: uuid.UUID | None = None,
) -> ImportReport:
    """Take texts or conversations from JSON lines as one corpus; a file holds one kind.

    A conversation whose first question belongs to the project's test split is left out and counted (design, rule 7),
    whether the project has that prompt yet or not. The same lines as those of a corpus that is there make no second.

    Raises:
        ImportRunning: somebody else imports into this project right now.
        Invalid: there is no line at all.
    """
    writer = Writer()
    async with session.begin_nested() as savepoint:
        report = await import_lines(
            session,
            lines,
            project_id=project.id,
            parse=CorpusLine.model_validate,
            store=bind(store_lines, session, project, writer),
            partial=partial,
            dry_run=dry_run,
        )
        if await find_by_hash(session, project.id, writer.sha256.hexdigest()) is not None:
            await savepoint.rollback()
            report.taken, report.duplicates = 0, report.duplicates + report.taken
        elif report.is_stored and writer.num_rows:
            await writer.finish(session, project, name=name or "imported", created_by=actor_id)
    await audit_import(session, "corpus.import", project, report, actor_id)
    return report


async def store_lines(
    session: AsyncSession, project: Project, writer: Writer, batch: Batch[CorpusLine], report: ImportReport
) -> None:
    """Write some lines, and note in the report what was not taken."""
    rows = []
    for number, line in batch:
        report.note_unread_of(line, line.UNREAD)
        writer.kind = writer.kind or line.kind
        if line.kind != writer.kind:
            report.refuse(number, [("line", f"is of another kind than the lines before, which are {writer.kind}")])
        elif is_held_out(project, line):
            report.num_held_out += 1
        else:
            rows.append(line.as_row())
    num_new = await writer.write(session, rows)
    report.taken += num_new
    report.duplicates += len(rows) - num_new


def is_held_out(project: Project, line: CorpusLine) -> bool:
    """Whether a conversation begins with a question of the test split."""
    if line.kind == CorpusKind.TEXT:
        return False
    return pick_split(project, root_hash(line.as_row()["messages"])) == Split.TEST


async def freeze_demonstrations(
    session: AsyncSession, *, project: Project, created_by: uuid.UUID | None = None
) -> Corpus | None:
    """The demonstrations to training prompts as a corpus; None when there is none. What is frozen already stays one.

    Only the train split: the others are held out.
    """
    query = (
        select(Prompt.messages, Completion.text)
        .join(Completion, Completion.prompt_id == Prompt.id)
        .where(
            Prompt.project_id == project.id,
            Prompt.split == Split.TRAIN,
            Prompt.withdrawn_at.is_(None),
            Completion.is_demonstration,
        )
        .order_by(Prompt.number, Completion.created_at, Completion.id)
    )
    writer = Writer(kind=CorpusKind.CONVERSATIONS)
    async with session.begin_nested() as savepoint:
        result = await session.stream(query, execution_options={"yield_per": BATCH})
        async for part in result.partitions():
            await writer.write(session, [with_answer(messages, text) for messages, text in part])
        known = await find_by_hash(session, project.id, writer.sha256.hexdigest())
        if known is not None or writer.num_rows == 0:
            await savepoint.rollback()
            return known
        return await writer.finish(session, project, name=DEMONSTRATIONS, created_by=created_by)


def with_answer(messages: Sequence[dict[str, str]], text: str) -> dict[str, Any]:
    """A prompt and its demonstration as one conversation."""
    return {"messages": [*messages, {"role": "assistant", "content": text}]}


# Reading


async def find_by_hash(session: AsyncSession, project_id: uuid.UUID, sha256: str) -> Corpus | None:
    """The project's corpus with these very lines."""
    query = select(Corpus).where(Corpus.project_id == project_id, Corpus.sha256 == sha256).limit(1)
    return await session.scalar(query)


async def list_corpora(
    session: AsyncSession, project_id: uuid.UUID, *, kind: CorpusKind | None = None
) -> Sequence[Corpus]:
    """A project's corpora, newest first; of one kind, if it is named."""
    query = select(Corpus).where(Corpus.project_id == project_id).order_by(Corpus.number.desc())
    if kind is not None:
        query = query.where(Corpus.kind == kind)
    return (await session.scalars(query)).all()


async def get_corpus(session: AsyncSession, corpus_id: uuid.UUID) -> Corpus:
    """A corpus by id.

    Raises:
        NotFound: there is none.
    """
    return existing(await session.get(Corpus, corpus_id), "There is no such corpus.")


def reference(corpus: Corpus) -> dict[str, Any]:
    """What a run's config says of a corpus (docs/protocol.md)."""
    return {
        "id": str(corpus.id),
        "number": corpus.number,
        "kind": corpus.kind,
        "sha256": corpus.sha256,
        "num_rows": corpus.num_rows,
    }


async def stream_lines(session: AsyncSession, corpus_id: uuid.UUID) -> AsyncIterator[bytes]:
    """A corpus's lines, the same bytes every time."""
    query = select(CorpusRow.line).where(CorpusRow.corpus_id == corpus_id).order_by(CorpusRow.position)
    result = await session.stream_scalars(query, execution_options={"yield_per": BATCH})
    async for lines in result.partitions():
        yield "".join(f"{line}\n" for line in lines).encode()
