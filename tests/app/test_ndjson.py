"""JSON lines in and out: what a line is, what is refused and in which words, bounded memory."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

import orjson
import pytest

from app.errors import TooLarge
from app.ndjson import MAX_LINE_BYTES, BadLine, Line, read_lines, write_lines


async def chunks(*parts: bytes) -> AsyncIterator[bytes]:
    for part in parts:
        yield part


async def read(*parts: bytes, max_bytes: int = 10**9, max_lines: int = 100) -> list[Line | BadLine]:
    return [line async for line in read_lines(chunks(*parts), max_bytes=max_bytes, max_lines=max_lines)]


async def test_lines_are_found_wherever_the_chunks_are_cut() -> None:
    content = '{"a": "é"}\r\n\n{"b": [1, 2]}'.encode()
    whole = [Line(1, {"a": "é"}), Line(3, {"b": [1, 2]})]
    for cut in range(len(content) + 1):
        assert await read(content[:cut], content[cut:]) == whole


async def test_the_byte_order_mark_of_an_editor_is_passed_over() -> None:
    assert await read(b'\xef\xbb\xbf{"a": 1}\n') == [Line(1, {"a": 1})]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b'{"a": 1', "is not JSON: "),
        (b"hello", "at column 1"),
        (b"[1]", "is an array; each line must be one JSON object"),
        (b"3", "is no object"),
        (b"[", "write one JSON object a line"),
        (b'{"a": "\xff"}', "is not UTF-8 (byte 8)"),
        (b'{"a": "\\ud800"}', "lone surrogate"),
        (b'{"a": NaN}', "is not JSON"),
        (b"[" * 5000, "is not JSON"),
    ],
)
async def test_a_line_that_is_no_object_says_why(content: bytes, words: str) -> None:
    good, bad = await read(b'{"a": 1}\n', content)
    assert good == Line(1, {"a": 1})
    assert isinstance(bad, BadLine)
    assert bad.number == 2
    assert words in bad.rule


async def test_a_file_of_more_bytes_than_allowed_is_refused() -> None:
    assert len(await read(b'{"a": 1}\n', b'{"a": 2}\n', max_bytes=18)) == 2
    with pytest.raises(TooLarge, match="larger than the 17 bytes"):
        await read(b'{"a": 1}\n', b'{"a": 2}\n', max_bytes=17)


async def test_a_file_of_more_lines_than_allowed_is_refused() -> None:
    assert len(await read(b"{}\n" * 3, max_lines=3)) == 3
    with pytest.raises(TooLarge, match="more than 3 lines"):
        await read(b"{}\n" * 4, max_lines=3)


async def test_a_line_that_never_ends_is_refused_before_it_is_held_whole() -> None:
    with pytest.raises(TooLarge, match="A line is longer"):
        await read(*[b"x" * 1024 * 1024] * (MAX_LINE_BYTES // 1024 // 1024 + 1))


async def test_rows_are_written_as_lines_that_read_the_same() -> None:
    rows: Sequence[dict[str, object]] = [{"a": "line\nbreak"}, {"b": None}]

    async def each() -> AsyncIterator[dict[str, object]]:
        for row in rows:
            yield row

    written = b"".join([chunk async for chunk in write_lines(each())])
    assert [orjson.loads(line) for line in written.splitlines()] == rows
