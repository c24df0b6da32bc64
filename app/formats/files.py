"""Records as the bytes of a file: JSON lines, CSV, Parquet; compressed; or a zip archive. The same bytes every time."""

from __future__ import annotations

import asyncio
import csv
import io
import zipfile
import zlib
from collections.abc import AsyncGenerator, Iterable, Mapping
from contextlib import aclosing
from typing import Any, Literal, Protocol

import orjson
import zstandard

from app.errors import Invalid
from app.formats.exports import Columns
from app.spreadsheets import quoted

FileKind = Literal["jsonl", "csv", "parquet", "folder"]
Compression = Literal["none", "gzip", "zstd"]
Record = Mapping[str, Any]
ROW_GROUP = 2_000
# 1 January 1980, the first that a zip archive can name: no clock goes into the bytes.
NO_DATE = (1980, 1, 1, 0, 0, 0)


class Writer(Protocol):
    """Writes records as they come; gives out what bytes there are."""

    def write(self, records: Iterable[Record]) -> bytes:
        """Some records."""
        ...

    def end(self) -> bytes:
        """The end of the file."""
        ...


class Csv:
    """RFC 4180 with a header and, for spreadsheets, a byte order mark. What is no text or number is JSON."""

    def __init__(self, columns: Columns) -> None:
        self._text = io.StringIO(newline="")
        self._columns = columns
        self._rows = csv.writer(self._text)
        self._text.write("\ufeff")
        self._rows.writerow(columns)

    def write(self, records: Iterable[Record]) -> bytes:
        """Some rows."""
        self._rows.writerows([cell(record.get(name)) for name in self._columns] for record in records)
        return self._taken()

    def end(self) -> bytes:
        """The header, if nothing was written."""
        return self._taken()

    def _taken(self) -> bytes:
        content = self._text.getvalue().encode()
        self._text.seek(0)
        self._text.truncate()
        return content


def cell(value: Any) -> Any:
    """A value as a cell. Text that a spreadsheet would run is quoted, which our import takes away again."""
    if value is None or isinstance(value, int | float):
        return value
    return quoted(value if isinstance(value, str) else orjson.dumps(value).decode())


class Sink(io.RawIOBase):
    """A file that can only be written, whose bytes are taken away as they come."""

    def __init__(self) -> None:
        super().__init__()
        self._parts: list[bytes] = []
        self._position = 0

    def writable(self) -> bool:
        """It can."""
        return True

    def tell(self) -> int:
        """How much was written."""
        return self._position

    def write(self, data: Any) -> int:
        """Keep some bytes."""
        content = bytes(data)
        self._parts.append(content)
        self._position += len(content)
        return len(content)

    def take(self) -> bytes:
        """What was written since."""
        content = b"".join(self._parts)
        self._parts.clear()
        return content


class Parquet:
    """Parquet with zstd, in row groups of a fixed size, so that memory is bounded and the bytes are the same."""

    def __init__(self, columns: Columns) -> None:
        arrow, parquet = load_pyarrow()
        self._arrow = arrow
        self._columns = columns
        self._schema = arrow.schema([(name, arrow_type(arrow, kind)) for name, kind in columns.items()])
        self._sink = Sink()
        self._writer = parquet.ParquetWriter(self._sink, self._schema, compression="zstd")
        self._waiting: list[dict[str, Any]] = []

    def write(self, records: Iterable[Record]) -> bytes:
        """The row groups that are full."""
        for record in records:
            self._waiting.append({name: plain(record.get(name), kind) for name, kind in self._columns.items()})
            if len(self._waiting) == ROW_GROUP:
                self._flush()
        return self._sink.take()

    def end(self) -> bytes:
        """The last row group and the footer."""
        if self._waiting:
            self._flush()
        self._writer.close()
        return self._sink.take()

    def _flush(self) -> None:
        self._writer.write_table(self._arrow.Table.from_pylist(self._waiting, schema=self._schema))
        self._waiting.clear()


def load_pyarrow() -> tuple[Any, Any]:
    """The library, which is not part of the plain installation.

    Raises:
        Invalid: it is not there.
    """
    try:
        import pyarrow as pa
        from pyarrow import parquet
    except ImportError as error:
        raise Invalid.field("file", "Parquet needs pyarrow on the server: pip install 'rankloop[parquet]'") from error
    return pa, parquet


def arrow_type(arrow: Any, kind: str) -> Any:
    """The Parquet type of a column."""
    turn = arrow.struct([("role", arrow.string()), ("content", arrow.string())])
    return {
        "text": arrow.string(),
        "texts": arrow.list_(arrow.string()),
        "messages": arrow.list_(turn),
        "turns": arrow.list_(arrow.list_(turn)),
        "int": arrow.int64(),
        "ints": arrow.list_(arrow.int64()),
        "float": arrow.float64(),
        "bool": arrow.bool_(),
        "json": arrow.string(),
    }[kind]


def plain(value: Any, kind: str) -> Any:
    """A value as Parquet holds it: what has no fixed shape is JSON."""
    return orjson.dumps(value).decode() if kind == "json" and value is not None else value


def make_writer(kind: FileKind, columns: Columns) -> Writer | None:
    """The writer of a table; None for JSON lines, which `formats.exports` writes by itself.

    Raises:
        Invalid: a library is missing.
    """
    if kind == "csv":
        return Csv(columns)
    return Parquet(columns) if kind == "parquet" else None


async def compressed(chunks: AsyncGenerator[bytes], how: Compression) -> AsyncGenerator[bytes]:
    """The stream in one gzip member or zstd frame, without a clock or a name in it. In a thread: it takes its time."""
    squeeze: Any = zlib.compressobj(6, wbits=31) if how == "gzip" else zstandard.ZstdCompressor(3).compressobj()
    async with aclosing(chunks):
        async for chunk in chunks:
            if part := chunk if how == "none" else await asyncio.to_thread(squeeze.compress, chunk):
                yield part
    if how != "none":
        yield squeeze.flush()


async def zipped(members: AsyncGenerator[tuple[str, AsyncGenerator[bytes]]]) -> AsyncGenerator[bytes]:
    """A zip archive, member by member, in constant memory."""
    sink = Sink()
    with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED, allowZip64=True) as archive:
        async for name, chunks in members:
            entry = zipfile.ZipInfo(name, NO_DATE)
            entry.compress_type = zipfile.ZIP_DEFLATED
            entry.external_attr = 0o644 << 16
            with archive.open(entry, "w", force_zip64=True) as member:
                async for chunk in chunks:
                    await asyncio.to_thread(member.write, chunk)
                    yield sink.take()
            yield sink.take()
    yield sink.take()
