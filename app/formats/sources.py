"""The bytes of a file as our lines: what kind of file it is, which format it has, record by record in bounded memory.

JSON lines, one JSON array, CSV, Parquet or plain text; gzip and zstd are opened. Nothing is trusted: sizes are counted
after unpacking, and whatever can't be read becomes a line of the report.
"""

from __future__ import annotations

import asyncio
import csv
import io
import re
import tempfile
import zlib
from collections.abc import AsyncGenerator, AsyncIterable, AsyncIterator, Hashable, Iterator
from contextlib import aclosing
from dataclasses import dataclass, field, replace
from typing import Any

import ijson
import zstandard

from app.errors import Invalid, TooLarge
from app.formats.imports import (
    IMPORTS,
    OWN,
    ROUNDS,
    TEXT,
    Kind,
    from_cells,
    lines_of,
    recognise,
    table_delimiter,
    unread_of,
)
from app.formats.items import Misfit
from app.formats.parquet_lines import opened_parquet
from app.ndjson import BYTE_ORDER_MARK, MAX_LINE_BYTES, MAX_LINES, BadLine, Line, read_lines, split_lines
from app.spreadsheets import unquoted

HEAD_BYTES = 64 * 1024
PREVIEW_SIZE = 3
ROUND_START = re.compile(rb"\s*\[Round \d+\]")
FORMATS = ("auto", OWN, TEXT, ROUNDS, *IMPORTS)


def known_format(name: str) -> str:
    """The name of a format, or `auto`.

    Raises:
        ValueError: there is none of this name.
    """
    if name not in FORMATS:
        raise ValueError(f"must be one of {', '.join(FORMATS)}")
    return name


@dataclass
class FileReader:
    """Reads one file for one kind of import; afterwards it says what it found."""

    kind: Kind
    format: str = "auto"
    max_bytes: int = 64 * 1024 * 1024
    whose: Hashable = None
    """Who sent it: what is dear to open, each person opens one of at a time."""
    container: str = ""
    num_unfit: int = 0
    """Records that hold nothing of this kind, such as a question without ranks where rankings are imported."""
    preview: list[dict[str, Any]] = field(default_factory=list)

    async def lines(self, chunks: AsyncIterable[bytes]) -> AsyncGenerator[Line | BadLine]:
        """The lines of the file.

        Raises:
            TooLarge: it has more bytes or records than are taken.
            Invalid: it can't be read at all, or holds nothing of this kind.
        """
        num_lines = 0
        async with aclosing(self._records(limited(chunks, self.max_bytes))) as records:
            async for record in records:
                if record.number > MAX_LINES:
                    raise TooLarge(f"The file has more than {MAX_LINES:,} records. Send it in parts.")
                for line in [record] if isinstance(record, BadLine) else self._converted(record):
                    num_lines += 1
                    yield line
        if num_lines == 0 and self.num_unfit:
            raise Invalid.field("file", f"none of its {self.num_unfit:,} records holds what this import takes")

    def _converted(self, record: Line) -> Iterator[Line | BadLine]:
        """A record as lines of this kind."""
        if self.format == "auto":
            self.format = recognise(record.value)
        unread = unread_of(self.format, record.value)
        try:
            for value in lines_of(self.format, record.value, self.kind):
                if value is None:
                    self.num_unfit += 1
                    continue
                if len(self.preview) < PREVIEW_SIZE:
                    self.preview.append(value)
                yield Line(record.number, value, unread)
        except (Misfit, AttributeError, TypeError, KeyError, ValueError) as error:
            rule = str(error) if isinstance(error, Misfit) else f"is not shaped as {self.format} should be"
            yield BadLine(record.number, rule)

    async def _records(self, chunks: AsyncIterator[bytes]) -> AsyncGenerator[Line | BadLine]:
        """The records of whatever kind of file it is."""
        head, chunks = await peek(chunks)
        unpack = unpacker(head)
        if unpack is not None:
            head, chunks = await peek(limited(unpack(chunks), self.max_bytes))
        start = head.removeprefix(BYTE_ORDER_MARK).lstrip()
        if head.startswith(b"PAR1"):
            self.container, found = "parquet", parquet_records(chunks, self.max_bytes, self.whose)
        elif ROUND_START.match(start) and self.format in ("auto", ROUNDS):
            self.container, self.format, found = "text", ROUNDS, round_records(chunks)
        elif self.format == TEXT:
            self.container, found = "text", text_records(chunks, self.kind)
        elif start.startswith(b"["):
            self.container, found = "json", array_records(chunks)
        elif start.startswith(b"{"):
            self.container, found = "jsonl", jsonl_records(chunks, self.max_bytes)
        else:
            found = self._table_or_lines(start, chunks)
        async with aclosing(found) as records:
            async for record in records:
                yield record

    def _table_or_lines(self, start: bytes, chunks: AsyncIterator[bytes]) -> AsyncGenerator[Line | BadLine]:
        """A table where the first line names columns that we know; else JSON lines, which say what is wrong."""
        header = start.split(b"\n", 1)[0].decode("utf-8", "replace").strip()
        delimiter = table_delimiter(header)
        if delimiter is None:
            self.container = "jsonl"
            return jsonl_records(chunks, self.max_bytes)
        self.container = "csv"
        return csv_records(chunks, delimiter, self.max_bytes)


# Bytes


async def limited(chunks: AsyncIterable[bytes], max_bytes: int) -> AsyncGenerator[bytes]:
    """The stream, as long as it has no more than so many bytes."""
    num_bytes = 0
    async for chunk in chunks:
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise TooLarge(f"The file is larger than the {max_bytes:,} bytes that are taken here. Send it in parts.")
        yield chunk


async def peek(chunks: AsyncIterator[bytes]) -> tuple[bytes, AsyncGenerator[bytes]]:
    """The first bytes, and the whole stream with them."""
    head = bytearray()
    async for chunk in chunks:
        head += chunk
        if len(head) >= HEAD_BYTES:
            break
    return bytes(head[:HEAD_BYTES]), chained(bytes(head), chunks)


async def chained(head: bytes, chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """What was read already, and the rest."""
    if head:
        yield head
    async for chunk in chunks:
        yield chunk


def unpacker(head: bytes) -> Any:
    """What opens a compressed file, by its first bytes; None for one that is not."""
    if head.startswith(b"\x1f\x8b"):
        return lambda chunks: unpacked(chunks, lambda: zlib.decompressobj(wbits=31))
    if head.startswith(b"\x28\xb5\x2f\xfd"):
        return lambda chunks: unpacked(chunks, lambda: zstandard.ZstdDecompressor().decompressobj())
    return None


async def unpacked(chunks: AsyncIterator[bytes], make: Any) -> AsyncGenerator[bytes]:
    """A compressed stream opened, in pieces that stay small however much a bomb grows.

    Raises:
        Invalid: it is damaged, or ends too early.
    """
    opener = make()
    try:
        async for chunk in chunks:
            for start in range(0, len(chunk), 4096):
                if piece := opener.decompress(chunk[start : start + 4096]):
                    yield piece
    except (zlib.error, zstandard.ZstdError) as error:
        raise Invalid.field("file", f"can't be unpacked: {error}") from error
    if not opener.eof:
        raise Invalid.field("file", "can't be unpacked: it ends too early")


# Records


async def jsonl_records(chunks: AsyncIterator[bytes], max_bytes: int) -> AsyncGenerator[Line | BadLine]:
    """One object a line."""
    async for line in read_lines(chunks, max_bytes=max_bytes):
        yield line


@dataclass
class AsyncFile:
    """A stream as the file that ijson reads."""

    chunks: AsyncIterator[bytes]

    async def read(self, size: int) -> bytes:
        """The next bytes, however many come; none at the end."""
        if size == 0:
            return b""
        return await anext(self.chunks, b"")


async def array_records(chunks: AsyncIterator[bytes]) -> AsyncGenerator[Line | BadLine]:
    """The objects of one JSON array, as they come."""
    number = 0
    try:
        async for value in ijson.items(AsyncFile(without_mark(chunks)), "item", use_float=True):
            number += 1
            is_object = isinstance(value, dict)
            yield Line(number, value) if is_object else BadLine(number, "is no object; the array must hold objects")
    except (ijson.JSONError, UnicodeDecodeError, ValueError) as error:
        yield BadLine(number + 1, f"is not JSON: {str(error).splitlines()[0][:200]}")


async def without_mark(chunks: AsyncIterator[bytes]) -> AsyncGenerator[bytes]:
    """The stream without a byte order mark."""
    is_first = True
    async for chunk in chunks:
        yield chunk.removeprefix(BYTE_ORDER_MARK) if is_first else chunk
        is_first = False


async def csv_records(chunks: AsyncIterator[bytes], delimiter: str, max_bytes: int) -> AsyncGenerator[Line | BadLine]:
    """The rows of a table by the names of its header. A quoted cell may hold newlines."""
    csv.field_size_limit(MAX_LINE_BYTES)
    names: list[str] | None = None
    number = 0
    async for text in csv_rows(chunks, max_bytes):
        number += 1
        try:
            cells = next(csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True), [])
        except csv.Error as error:
            yield BadLine(number, f"is no row of a table: {error}")
            continue
        if names is None:
            names = cells
        elif len(cells) == len(names):
            yield Line(number, from_cells(dict(zip(names, map(unquoted, cells), strict=True))))
        elif cells:
            yield BadLine(number, f"has {len(cells)} cells where the header names {len(names)}")


async def csv_rows(chunks: AsyncIterator[bytes], max_bytes: int) -> AsyncGenerator[str]:
    """Whole rows: lines are put together until every quote is closed.

    Raises:
        Invalid: the file is not UTF-8.
        TooLarge: a row is.
    """
    row = bytearray()
    is_open = False
    async for line in split_lines(without_mark(chunks), max_bytes=max_bytes):
        row += line + b"\n"
        is_open ^= bool(line.count(b'"') % 2)
        if is_open:
            if len(row) > MAX_LINE_BYTES:
                raise TooLarge(f"A row is longer than {MAX_LINE_BYTES:,} bytes. Is a quote left open?")
            continue
        try:
            yield row.decode()
        except UnicodeDecodeError as error:
            raise Invalid.field("file", "is not UTF-8; save the table as “CSV UTF-8”") from error
        row.clear()
    if row:
        yield row.decode("utf-8", "replace")


async def text_records(chunks: AsyncIterator[bytes], kind: Kind) -> AsyncGenerator[Line | BadLine]:
    """Plain text: each line is a prompt; of a corpus, what stands between empty lines is a text."""
    paragraph: list[str] = []
    start = number = 0
    async for raw in split_lines(without_mark(chunks), max_bytes=2**63):
        number += 1
        try:
            line = raw.decode().rstrip("\r\n")
        except UnicodeDecodeError as error:
            yield BadLine(number, f"is not UTF-8 (byte {error.start + 1}); save the file as UTF-8")
            continue
        if kind != "corpus":
            if line.strip():
                yield Line(number, {"prompt": line.strip()})
        elif line.strip():
            start = start if paragraph else number
            paragraph.append(line)
        elif paragraph:
            yield Line(start, {"text": "\n".join(paragraph)})
            paragraph = []
    if paragraph:
        yield Line(start, {"text": "\n".join(paragraph)})


async def round_records(chunks: AsyncIterator[bytes]) -> AsyncGenerator[Line | BadLine]:
    """ChatGLM's conversations: a round whose number does not grow begins another one."""
    lines: list[str] = []
    start = number = last = 0
    async for raw in split_lines(without_mark(chunks), max_bytes=2**63):
        number += 1
        found = ROUND_START.match(raw)
        this = int(re.sub(rb"\D", b"", found.group(0))) if found else None
        if this is not None and lines and this <= last:
            yield read_rounds(start, lines)
            lines = []
        if not lines:
            start = number
        last = last if this is None else this
        lines.append(raw.decode("utf-8", "replace").rstrip("\r\n"))
    if lines:
        yield read_rounds(start, lines)


def read_rounds(number: int, lines: list[str]) -> Line | BadLine:
    """One conversation."""
    from app.formats.chats import rounds

    try:
        (item,) = rounds("\n".join(lines).lstrip())
    except Misfit as error:
        return BadLine(number, str(error))
    return Line(number, item)


async def parquet_records(
    chunks: AsyncIterator[bytes], max_bytes: int, whose: Hashable
) -> AsyncGenerator[Line | BadLine]:
    """The rows of a Parquet file, which must be whole before it can be read: it waits in a temporary file.

    Raises:
        Invalid: it is damaged, or the library is missing.
        TooLarge: its rows are, once they are unpacked.
        OneAtATime, TooManyAtOnce: others are being read.
    """
    with tempfile.TemporaryFile() as file:
        async for chunk in chunks:
            await asyncio.to_thread(file.write, chunk)
        async with aclosing(opened_parquet(file, whose)) as lines:
            async for line in read_lines(lines, max_bytes=max_bytes):
                yield replace(line, value=from_cells(line.value)) if isinstance(line, Line) else line
