"""How a file of JSON lines becomes rows: checked line by line, stored in batches, all or nothing unless told."""

from __future__ import annotations

import uuid
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable
from contextlib import aclosing
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.accounts.audit import audit
from app.errors import Conflict, FieldError, Invalid
from app.formats.sources import FileReader
from app.ndjson import BadLine, Line
from app.projects.models import Project
from app.prompts.lines import ImportReport, explain_errors

BATCH = 200
LineType = TypeVar("LineType", bound=BaseModel)
Batch = list[tuple[int, LineType]]
Store = Callable[[Batch[LineType], ImportReport], Awaitable[None]]


class ImportRunning(Conflict):
    """Another import into this project is running. Wait until it has ended, and send yours again."""


class ImportRefused(Invalid):
    """Nothing was stored."""

    @classmethod
    def of(cls, report: ImportReport) -> ImportRefused:
        """The refusal of a whole file, with the first of its lines that can't be taken."""
        errors = [FieldError(f"line {item.line}: {item.field}", item.rule) for item in report.refused]
        first = f" The first: {errors[0].field}: {errors[0].rule}." if errors else ""
        return cls(
            f"Nothing was stored: {report.num_refused:,} of {report.num_lines:,} lines can't be taken.{first} "
            "Correct them, or take the good lines alone with partial=true.",
            errors=errors,
        )

    @classmethod
    def unless_stored(cls, report: ImportReport) -> ImportReport:
        """The report, if it says what was stored or only looked at.

        Raises:
            ImportRefused: lines were refused, and so nothing was stored.
        """
        if not report.is_stored and not report.is_dry_run:
            raise cls.of(report)
        return report


async def import_file(
    take: Callable[..., Awaitable[ImportReport]],
    session: AsyncSession,
    chunks: AsyncIterable[bytes],
    *,
    reader: FileReader,
    **options: Any,
) -> ImportReport:
    """Import a file of any format; the report also says how it was read.

    Args:
        take: the import of the reader's kind, which takes lines.

    Raises:
        ImportRunning: somebody else imports into this project right now.
        Invalid: it can't be read, or there is nothing in it.
    """
    # However that ends, the file is let go of at once, and with it a process that reads it.
    async with aclosing(reader.lines(chunks)) as lines:
        report = await take(session, lines, **options)
    report.format = f"{reader.format}, {reader.container}"
    report.num_unfit = reader.num_unfit
    report.preview = reader.preview if report.is_dry_run else []
    return report


async def import_lines(
    session: AsyncSession,
    lines: AsyncIterable[Line | BadLine],
    *,
    project_id: uuid.UUID,
    parse: Callable[[dict[str, Any]], LineType],
    store: Store[LineType],
    partial: bool,
    dry_run: bool,
) -> ImportReport:
    """Check every line, store the good ones in batches. What must not stay is undone at the end by a savepoint.

    Raises:
        ImportRunning: somebody else imports into this project right now.
        Invalid: there is no line at all.
    """
    await lock_imports(session, project_id)
    report = ImportReport(is_dry_run=dry_run)
    async with session.begin_nested() as savepoint:
        async for batch in good_batches(lines, parse, report):
            await store(batch, report)
        if report.num_lines == 0:
            raise Invalid.field("file", "holds no line; write one JSON object a line")
        report.is_stored = not dry_run and (partial or report.num_refused == 0)
        if not report.is_stored:
            await savepoint.rollback()
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


async def lock_imports(session: AsyncSession, project_id: uuid.UUID) -> None:
    """One import a project at a time: they look for what is there already before they add to it.

    Raises:
        ImportRunning: another one has not ended.
    """
    key = func.hashtextextended(f"import {project_id}", 0)
    if not await session.scalar(select(func.pg_try_advisory_xact_lock(key))):
        raise ImportRunning


async def good_batches(
    lines: AsyncIterable[Line | BadLine], parse: Callable[[dict[str, Any]], LineType], report: ImportReport
) -> AsyncIterator[Batch[LineType]]:
    """The lines that can be taken, some at a time; the others go to the report."""
    batch: Batch[LineType] = []
    async for line in lines:
        report.num_lines += 1
        if isinstance(line, BadLine):
            report.refuse(line.number, [("line", line.rule)])
            continue
        report.note_unread(line.unread)
        try:
            batch.append((line.number, parse(line.value)))
        except ValidationError as error:
            report.refuse(line.number, explain_errors(error))
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch
