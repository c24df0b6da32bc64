"""JSON lines: uploads, read line by line in bounded memory, and rows written as lines. It knows no domain."""

from __future__ import annotations

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import orjson

from app.errors import TooLarge

MEDIA_TYPE = "application/x-ndjson"
CHUNK_BYTES = 256 * 1024
MAX_LINE_BYTES = 4 * 1024 * 1024
MAX_LINES = 1_000_000
BYTE_ORDER_MARK = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Line:
    """One object, and the number of the line on which it stood (from 1)."""

    number: int
    value: dict[str, Any]
    unread: Sequence[str] = ()
    """Fields of the record it came from that nobody reads."""


@dataclass(frozen=True)
class BadLine:
    """A line that holds no JSON object, and why."""

    number: int
    rule: str


class Upload(Protocol):
    """A file that comes from a form."""

    async def read(self, size: int = -1) -> bytes:
        """The next bytes; none at the end."""
        ...


async def read_upload(upload: Upload) -> AsyncIterator[bytes]:
    """The chunks of an uploaded file."""
    while chunk := await upload.read(CHUNK_BYTES):
        yield chunk


async def read_lines(
    chunks: AsyncIterable[bytes], *, max_bytes: int, max_lines: int = MAX_LINES
) -> AsyncIterator[Line | BadLine]:
    """The lines of an upload. Empty ones are passed over, and so is the byte order mark that some editors write.

    Raises:
        TooLarge: the whole has more bytes or lines than are taken, or one line has.
    """
    number = 0
    async for raw in split_lines(chunks, max_bytes=max_bytes):
        number += 1
        if number > max_lines:
            raise TooLarge(f"The file has more than {max_lines:,} lines. Send it in parts.")
        content = raw.removeprefix(BYTE_ORDER_MARK).strip() if number == 1 else raw.strip()
        if content:
            yield parse_line(number, content)


async def split_lines(chunks: AsyncIterable[bytes], *, max_bytes: int) -> AsyncIterator[bytes]:
    """Cut at newlines; no more than a line and a chunk are held at once."""
    rest = bytearray()
    num_bytes = 0
    async for chunk in chunks:
        num_bytes += len(chunk)
        if num_bytes > max_bytes:
            raise TooLarge(f"The file is larger than the {max_bytes:,} bytes that are taken here. Send it in parts.")
        *whole, tail = chunk.split(b"\n")
        for piece in whole:
            rest += piece
            yield bytes(rest)
            rest.clear()
        rest += tail
        if len(rest) > MAX_LINE_BYTES:
            raise TooLarge(f"A line is longer than {MAX_LINE_BYTES:,} bytes. Each line holds one JSON object.")
    if rest:
        yield bytes(rest)


def parse_line(number: int, content: bytes) -> Line | BadLine:
    """One line as an object, or what is wrong with it."""
    try:
        value = orjson.loads(content)
    except orjson.JSONDecodeError as error:
        return BadLine(number, explain(content, error))
    if isinstance(value, dict):
        return Line(number, value)
    kind = "an array" if isinstance(value, list) else "no object"
    return BadLine(number, f"is {kind}; each line must be one JSON object, like {{…}}")


def explain(content: bytes, error: orjson.JSONDecodeError) -> str:
    """What the person who wrote the file can do about it."""
    try:
        content.decode()
    except UnicodeDecodeError as not_utf8:
        return f"is not UTF-8 (byte {not_utf8.start + 1}); save the file as UTF-8"
    if "surrogate" in error.msg:
        return "holds a lone surrogate (half of a UTF-16 pair), which is no character; remove it"
    if content == b"[" or content.startswith(b"[{"):
        return "begins an array; write one JSON object a line, without brackets and commas around them"
    return f"is not JSON: {error.msg} at column {error.colno}"


async def write_lines(rows: AsyncIterable[Any]) -> AsyncIterator[bytes]:
    """Rows as JSON lines, in chunks that are worth sending."""
    buffer = bytearray()
    async for row in rows:
        buffer += orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)
        if len(buffer) >= CHUNK_BYTES:
            yield bytes(buffer)
            buffer.clear()
    if buffer:
        yield bytes(buffer)
