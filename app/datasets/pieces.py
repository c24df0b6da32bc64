"""The lines of a dataset as they are stored: one file in pieces of whole lines, compressed, which never change.

A piece knows at which byte and at which row of the file it begins. So an export costs the database little more than
handing out the pieces, a broken download goes on without reading what came before, and the file takes a fifth of the
space that its lines would take as rows.
"""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import AsyncGenerator, Iterable, Iterator
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

import zstandard
from psycopg import AsyncConnection
from psycopg.rows import class_row
from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from app.background import end
from app.datasets.models import Dataset, DatasetPiece
from app.db import SessionMaker

PIECE_BYTES = 1024 * 1024
LEVEL = 3
T = TypeVar("T")
# In PostgreSQL's binary form: as text, bytes would be sent twice as long, and cost as much as decompressing them.
FIND = """
select start, num_bytes, first_row, num_rows, lines from dataset_pieces
where dataset_id = %(dataset_id)s and start >= (
    select max(start) from dataset_pieces
    where dataset_id = %(dataset_id)s and (start <= %(byte)s::bigint or first_row <= %(row)s::int)
)
order by start limit %(limit)s"""
# What one question to the database brings, still compressed.
PIECES_AT_ONCE = 8


@dataclass(frozen=True)
class Piece:
    """Some whole lines, open: they begin at byte `start` of the file with row `first_row`."""

    start: int
    first_row: int
    num_rows: int
    lines: bytes

    def line(self, row: int) -> bytes:
        """One row of the file, without its newline."""
        return self.lines.split(b"\n")[row - self.first_row]


@dataclass(frozen=True)
class Stored:
    """A row of the table."""

    start: int
    num_bytes: int
    first_row: int
    num_rows: int
    lines: bytes


class Pieces:
    """Writes the lines of one dataset, in order."""

    def __init__(self, session: AsyncSession, dataset_id: uuid.UUID) -> None:
        self._session = session
        self._dataset_id = dataset_id
        self._start = self._row = 0

    async def write(self, lines: bytes) -> None:
        """Store some more whole lines."""
        for content in cut(lines):
            num_rows = content.count(b"\n")
            values = {"dataset_id": self._dataset_id, "start": self._start, "num_bytes": len(content)}
            values |= {"first_row": self._row, "num_rows": num_rows}
            compressed = await asyncio.to_thread(zstandard.compress, content, LEVEL)
            await self._session.execute(insert(DatasetPiece).values(**values, lines=compressed))
            self._start += len(content)
            self._row += num_rows


def cut(lines: bytes) -> Iterator[bytes]:
    """Whole lines, as many as a piece has room for; a longer line is a piece of its own."""
    begin = 0
    while begin < len(lines):
        end = lines.rfind(b"\n", begin, begin + PIECE_BYTES) + 1 or lines.index(b"\n", begin) + 1
        yield lines[begin:end]
        begin = end


async def count_bytes(session: AsyncSession, dataset: Dataset) -> int:
    """How long the file is.

    Raises:
        RuntimeError: rows are missing.
    """
    columns = (func.coalesce(func.sum(DatasetPiece.num_bytes), 0), func.coalesce(func.sum(DatasetPiece.num_rows), 0))
    size, num_rows = (await session.execute(select(*columns).where(DatasetPiece.dataset_id == dataset.id))).one()
    check_rows(dataset, num_rows)
    return int(size)


def check_rows(dataset: Dataset, num_rows: int) -> None:
    """Refuse to give out a file that lost its end as if it were whole."""
    if num_rows != dataset.num_rows:
        raise RuntimeError(f"dataset {dataset.id} ends at row {num_rows} of {dataset.num_rows}")


async def read_rows(session: AsyncSession, dataset_id: uuid.UUID, rows: Iterable[int]) -> list[bytes]:
    """The lines of these rows, without their newlines, in the order of the file."""
    found: list[bytes] = []
    piece: Piece | None = None
    for row in sorted(rows):
        if piece is None or row >= piece.first_row + piece.num_rows:
            (stored,) = await find(session, dataset_id, row=row, limit=1)
            piece = opened(stored)
        found.append(piece.line(row))
    return found


async def read_file(sessionmaker: SessionMaker, dataset: Dataset, *, begin: int = 0) -> AsyncGenerator[bytes]:
    """The file from some byte on, a piece at a time: the next one is opened while this one is converted and sent.

    Raises:
        RuntimeError: rows are missing at its end.
    """
    async with aclosing(one_ahead(read_pieces(sessionmaker, dataset, begin))) as pieces:
        async for piece in pieces:
            yield piece.lines[max(begin - piece.start, 0) :]


async def read_pieces(sessionmaker: SessionMaker, dataset: Dataset, begin: int) -> AsyncGenerator[Piece]:
    """The pieces from that on which holds the byte `begin`.

    No connection is held while a slow reader takes its time: a dataset never changes, so each question is one of its
    own.
    """
    at, num_rows = begin, 0
    while num_rows < dataset.num_rows:
        async with sessionmaker.begin() as session:
            found = await find(session, dataset.id, byte=at, limit=PIECES_AT_ONCE)
        if not found or found[0].start + found[0].num_bytes <= at:
            check_rows(dataset, num_rows)
        for stored in found:
            yield await asyncio.to_thread(opened, stored)
        at, num_rows = stored.start + stored.num_bytes, stored.first_row + stored.num_rows


async def find(
    session: AsyncSession, dataset_id: uuid.UUID, *, limit: int, byte: int | None = None, row: int | None = None
) -> list[Stored]:
    """The piece that holds this byte or this row, and those behind it."""
    connection = (await (await session.connection()).get_raw_connection()).driver_connection
    assert isinstance(connection, AsyncConnection)
    asked = {"dataset_id": dataset_id, "byte": byte, "row": row, "limit": limit}
    async with connection.cursor(row_factory=class_row(Stored), binary=True) as cursor:
        await cursor.execute(FIND, asked)
        return await cursor.fetchall()


def opened(stored: Stored) -> Piece:
    """A piece as it was before it was compressed."""
    return Piece(stored.start, stored.first_row, stored.num_rows, zstandard.decompress(stored.lines))


async def one_ahead(items: AsyncGenerator[T]) -> AsyncGenerator[T]:
    """The same items, each of which is made while the one before is used."""
    async with aclosing(items):
        waiting = asyncio.create_task(take(items))
        try:
            while (item := await waiting) is not None:
                waiting = asyncio.create_task(take(items))
                yield item
        finally:
            await end(waiting)


async def take(items: AsyncGenerator[T]) -> T | None:
    """The next item; none at the end."""
    return await anext(items, None)
