"""A dataset as a file: streamed, in constant memory, the same bytes every time, and from any byte on."""

from __future__ import annotations

import asyncio
import hashlib
import re
import zlib
from collections.abc import AsyncGenerator, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any
from urllib.parse import quote

import orjson
import zstandard
from fastapi import Request
from fastapi.responses import Response
from sqlalchemy.ext.asyncio import AsyncSession
from starlette import status

from app.bodies import StreamedBody
from app.datasets import pieces, service
from app.datasets.cards import card_markdown
from app.datasets.models import Dataset
from app.datasets.schemas import ExportChoices
from app.db import SessionMaker, let_go
from app.errors import Invalid, RankloopError
from app.formats.exports import EXPORTS, to_json_lines, to_records
from app.formats.files import compressed, load_pyarrow, make_writer, zipped
from app.projects.models import Project

# Part of every ETag: whoever changes the bytes of a format raises it.
EDITION = 1
LINES_AT_ONCE = 64
MEDIA_TYPES = {
    "jsonl": "application/x-ndjson",
    "csv": "text/csv; charset=utf-8",
    "parquet": "application/vnd.apache.parquet",
    "folder": "application/zip",
}
COMPRESSED_TYPES = {"gzip": "application/gzip", "zstd": "application/zstd"}
ENDINGS = {"none": "", "gzip": ".gz", "zstd": ".zst"}


class RangeNotSatisfiable(RankloopError):
    """The file has no such bytes."""

    status = status.HTTP_416_RANGE_NOT_SATISFIABLE


@dataclass(frozen=True)
class Export:
    """One file that a dataset can be."""

    dataset: Dataset
    project: Project
    choices: ExportChoices
    sessionmaker: SessionMaker

    @property
    def is_frozen_form(self) -> bool:
        """Whether the file is the very lines that were hashed."""
        return self.choices == ExportChoices()

    @property
    def etag(self) -> str:
        """The SHA-256 of the frozen lines; for other files, of what makes them."""
        if self.is_frozen_form:
            return f'"{self.dataset.sha256}"'
        makers = [EDITION, zlib.ZLIB_RUNTIME_VERSION, zstandard.__version__]
        if self.choices.file == "parquet":
            makers.append(load_pyarrow()[0].__version__)
        about = [self.dataset.name, self.dataset.licence, self.dataset.number, self.project.slug]
        parts = [self.dataset.sha256, self.choices.model_dump(), makers, about]
        return f'"{hashlib.sha256(orjson.dumps(parts)).hexdigest()}"'

    @property
    def file_name(self) -> str:
        """A name that says what it is."""
        choices = self.choices
        parts = [self.project.slug, "dataset", str(self.dataset.number)]
        parts += [choices.format] if choices.format != "rankings" else []
        parts += [choices.split] if choices.split != "all" else []
        ending = "zip" if choices.file == "folder" else choices.file
        return f"{'-'.join(parts)}.{ending}{ENDINGS[choices.compression]}"

    @property
    def media_type(self) -> str:
        """Of the file as it is sent; compression is part of the file, not of the transfer."""
        return COMPRESSED_TYPES.get(self.choices.compression, MEDIA_TYPES[self.choices.file])

    def report(self) -> dict[str, Any]:
        """What is in the file, and what its format can't hold."""
        return {
            "dataset": {"id": str(self.dataset.id), "number": self.dataset.number, "sha256": self.dataset.sha256},
            "file": self.file_name,
            "choices": self.choices.model_dump(),
            "num_rankings": self.dataset.num_rows,
            "counts": self.dataset.counts,
            "not_held": EXPORTS[self.choices.format].loses(self.choices.options()),
        }

    def chunks(self) -> AsyncGenerator[bytes]:
        """The whole file."""
        if self.choices.file == "folder":
            return zipped(self._members())
        if self.is_frozen_form:
            return self._lines()
        return compressed(self.records(self.choices.split), self.choices.compression)

    def part(self, begin: int, end: int) -> AsyncGenerator[bytes]:
        """Its bytes from `begin` on, up to and without `end`. What is made on the way is made from the start again."""
        if self.is_frozen_form:
            return between(pieces.read_file(self.sessionmaker, self.dataset, begin=begin), 0, end - begin)
        return between(self.chunks(), begin, end)

    async def first_records(self, limit: int) -> list[bytes]:
        """The first records as JSON lines, from the first batch of rows."""
        plain = self.choices.model_copy(update={"file": "jsonl", "compression": "none"})
        found: list[bytes] = []
        export = Export(self.dataset, self.project, plain, self.sessionmaker)
        async with aclosing(export.records(self.choices.split)) as chunks:
            async for chunk in chunks:
                found += chunk.splitlines()
                if len(found) >= limit:
                    break
        return found[:limit]

    async def count_bytes(self) -> int:
        """How long the whole file is: it is made once without being sent, unless it is the frozen lines."""
        if self.is_frozen_form:
            async with self.sessionmaker.begin() as session:
                return await pieces.count_bytes(session, self.dataset)
        return sum([len(chunk) async for chunk in self.chunks()])

    def _lines(self) -> AsyncGenerator[bytes]:
        """The frozen lines, some at a time."""
        return pieces.read_file(self.sessionmaker, self.dataset)

    async def records(self, split: str) -> AsyncGenerator[bytes]:
        """The lines in another form; other requests get their turn between some lines and the next."""
        options, form = self.choices.options(), EXPORTS[self.choices.format]
        writer = make_writer(self.choices.file, form.columns(options))
        async with aclosing(self._lines()) as batches:
            async for batch in batches:
                for lines in some_lines(batch):
                    if writer is None:
                        yield to_json_lines(form, lines, options, split)
                    else:
                        yield writer.write(to_records(form, lines, options, split))
                    await asyncio.sleep(0)
        if writer is not None:
            yield writer.end()

    async def _members(self) -> AsyncGenerator[tuple[str, AsyncGenerator[bytes]]]:
        """The files of a folder that `datasets.load_dataset` opens."""
        splits = [split for split in service.splits_of(self.dataset) if self.choices.split in ("all", split)]
        report = self.report()
        card = service.card_of(self.dataset, self.project)
        yield "README.md", once(card_markdown(card, splits, report["not_held"]).encode())
        yield "card.json", once(orjson.dumps(card, option=orjson.OPT_INDENT_2))
        yield "report.json", once(orjson.dumps(report, option=orjson.OPT_INDENT_2))
        for split in splits:
            yield f"data/{split}.jsonl", self.records(split)


async def once(content: bytes) -> AsyncGenerator[bytes]:
    """One piece as a stream."""
    yield content


def some_lines(batch: bytes) -> Iterator[list[bytes]]:
    """The lines of a batch, a few at a time."""
    lines = batch.split(b"\n")[:-1]
    for start in range(0, len(lines), LINES_AT_ONCE):
        yield lines[start : start + LINES_AT_ONCE]


# HTTP


async def download(
    request: Request, session: AsyncSession, dataset: Dataset, project: Project, choices: ExportChoices
) -> Response:
    """A dataset as a file: whole, from some byte on (`Range`), or not at all where the reader has it (`ETag`).

    The request's own session lets go of its connection: the file is read with others.

    Raises:
        Invalid: the server lacks a library for this kind of file.
        RangeNotSatisfiable: the file is shorter than the range begins.
    """
    await let_go(session)
    export = Export(dataset, project, choices, request.app.state.sessionmaker)
    if choices.file == "parquet":
        load_pyarrow()
    headers = {
        "ETag": export.etag,
        "Accept-Ranges": "bytes",
        "Content-Disposition": f"attachment; filename*=UTF-8''{quote(export.file_name, safe='')}",
    }
    if export.etag in [item.strip() for item in request.headers.get("if-none-match", "").split(",")]:
        return Response(status_code=status.HTTP_304_NOT_MODIFIED, headers=headers)
    wanted = wanted_range(request, export.etag)
    if wanted is None:
        if export.is_frozen_form:
            headers["Content-Length"] = str(await export.count_bytes())
        return StreamedBody(export.chunks(), media_type=export.media_type, headers=headers)
    size = await export.count_bytes()
    first, last = in_file(wanted, size)
    headers |= {"Content-Range": f"bytes {first}-{last}/{size}", "Content-Length": str(last - first + 1)}
    return StreamedBody(
        export.part(first, last + 1),
        status_code=status.HTTP_206_PARTIAL_CONTENT,
        media_type=export.media_type,
        headers=headers,
    )


def wanted_range(request: Request, etag: str) -> tuple[str, str] | None:
    """First and last byte of the one range that is asked for; None: the whole (RFC 9110, 14.2)."""
    found = re.fullmatch(r"bytes=(\d{0,18})-(\d{0,18})", request.headers.get("range", "").replace(" ", ""))
    if found is None or found.group(0) == "bytes=-" or request.headers.get("if-range", etag) != etag:
        return None
    return found.group(1), found.group(2)


def in_file(wanted: tuple[str, str], size: int) -> tuple[int, int]:
    """The range in a file of this size.

    Raises:
        RangeNotSatisfiable: it begins after the end.
    """
    first, last = wanted
    begin = int(first) if first else max(size - int(last), 0)
    end = min(int(last), size - 1) if first and last else size - 1
    if begin > end:
        raise RangeNotSatisfiable
    return begin, end


async def between(chunks: AsyncGenerator[bytes], begin: int, end: int) -> AsyncGenerator[bytes]:
    """The bytes of a stream from `begin` on, up to and without `end`."""
    position = 0
    async with aclosing(chunks) as parts:
        async for chunk in parts:
            part = chunk[max(begin - position, 0) : max(end - position, 0)]
            position += len(chunk)
            if part:
                yield part
            if position >= end:
                return


def check_choices(choices: ExportChoices) -> ExportChoices:
    """What can be chosen together.

    Raises:
        Invalid: a kind of file that compresses by itself is to be compressed.
    """
    if choices.compression != "none" and choices.file in {"parquet", "folder"}:
        raise Invalid.field("compression", f"a {choices.file} is compressed already; leave it out")
    return choices
