"""Parquet as JSON lines, in a process of its own: `python -m app.formats.parquet_lines < FILE`.

Five hundred bytes of Parquet may hold one long value a hundred thousand times, and what such a file says of its own
sizes may be a lie. So it is opened where memory and time have an end, without the environment's secrets; what comes
out is read as any JSON lines are, with the same limits. It knows nothing of what the rows mean.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Hashable, Iterator
from contextlib import aclosing, asynccontextmanager
from typing import IO, Any

import orjson

from app.errors import Invalid, TooLarge, TooManyRequests, Unavailable
from app.formats.files import load_pyarrow
from app.ndjson import CHUNK_BYTES
from app.processes import ROOT, harmless_environment, limit_memory, limit_time
from app.turns import NoRoom, Turns

# 63 MB in one row group take 0.31 GB, 0.25 GB of it for the library itself.
MEMORY_BYTES = 768 * 1024**2
# 64 MiB of honest rows take 2 seconds.
CPU_SECONDS = 60
BATCH_ROWS = 16
# Who opens a file or waits holds a connection to the database, as everybody does who imports: not all ten of them.
MOST_AT_ONCE = min(4, os.cpu_count() or 1)
MOST_WAITING = 4
REFUSED = 3
# The library's own allocator reserves a gigabyte before the first byte, and the system's 0.1 GB for each thread.
ALLOCATOR = {"ARROW_DEFAULT_MEMORY_POOL": "system", "MALLOC_ARENA_MAX": "1", "OMP_NUM_THREADS": "1"}


class OneAtATime(TooManyRequests):
    """Another Parquet file of yours is being read. Send this one when that is done."""


class TooManyAtOnce(Unavailable):
    """Too many Parquet files are being read. Try again in a minute, or send JSON lines, which wait for nobody."""


class Openers:
    """Who may have a process that opens a file: one each, one a core and at most four; a few others wait."""

    def __init__(self, at_once: int = MOST_AT_ONCE, most_waiting: int = MOST_WAITING) -> None:
        self._turns = Turns(at_once, most_waiting)
        self._busy: set[Hashable] = set()

    @asynccontextmanager
    async def turn(self, whose: Hashable) -> AsyncIterator[None]:
        """Wait for a turn, and have it.

        Raises:
            OneAtATime: this person has one, or waits for one.
            TooManyAtOnce: too many wait.
        """
        if whose in self._busy:
            raise OneAtATime
        self._busy.add(whose)
        try:
            async with self._turns.turn(whose):
                yield
        except NoRoom as error:
            raise TooManyAtOnce from error
        finally:
            self._busy.discard(whose)


OPENERS = Openers()


async def opened_parquet(file: IO[bytes], whose: Hashable) -> AsyncGenerator[bytes]:
    """A whole Parquet file as the bytes of JSON lines, a row each, when it is this person's turn.

    Raises:
        Invalid: it is damaged, or the library is missing.
        TooLarge: it takes more memory or time than it is given.
        OneAtATime, TooManyAtOnce: there is no turn for it.
    """
    async with OPENERS.turn(whose), aclosing(opened(file)) as chunks:
        async for chunk in chunks:
            yield chunk


async def opened(file: IO[bytes]) -> AsyncGenerator[bytes]:
    """The same, at once. Raises Invalid, TooLarge."""
    file.seek(0)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", __name__),
        stdin=file,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=ROOT,
        env=harmless_environment() | ALLOCATOR,
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stderr is not None
    try:
        while chunk := await process.stdout.read(CHUNK_BYTES):
            yield chunk
        said = (await process.stderr.read()).decode("utf-8", "replace")
        status = await process.wait()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    if status == REFUSED:
        raise Invalid.field("file", said)
    if status:
        raise TooLarge(
            "The rows of this Parquet file take more memory or time than it is given here. Send it in parts."
        )


def json_lines(file: IO[bytes]) -> Iterator[bytes]:
    """The rows of a Parquet file, each as a line.

    Raises:
        Invalid: it is damaged, or the library is missing.
        MemoryError: there is not enough for some of its rows.
    """
    arrow, parquet = load_pyarrow()
    try:
        for batch in parquet.ParquetFile(file).iter_batches(batch_size=BATCH_ROWS, use_threads=False):
            for row in batch.to_pylist():
                yield orjson.dumps(row, default=plain_value, option=orjson.OPT_APPEND_NEWLINE)
    except arrow.ArrowMemoryError:
        raise
    except (arrow.ArrowException, OSError, ValueError, TypeError) as error:
        raise Invalid.field("file", f"is no Parquet that can be read: {str(error)[:200]}") from error


def plain_value(value: Any) -> str:
    """What JSON has no kind for, such as bytes and decimals, as text."""
    return value.decode() if isinstance(value, bytes) else str(value)


def main() -> int:
    """In the process: the lines of the standard input, or why there are none. That it may die of them is meant."""
    limit_memory(MEMORY_BYTES)
    limit_time(CPU_SECONDS)
    try:
        for line in json_lines(sys.stdin.buffer):
            sys.stdout.buffer.write(line)
        sys.stdout.buffer.flush()
    except Invalid as error:
        sys.stderr.write(error.errors[0].rule)
        return REFUSED
    except BrokenPipeError:
        # Nobody reads on; at the end Python would try once more to write what is left.
        os._exit(1)
    return 0


if __name__ == "__main__":
    ended_as = main()
    sys.stdout.flush()
    sys.stderr.flush()
    # Not by way of the libraries' own ends: now and then one of their threads is still there, and they abort.
    os._exit(ended_as)
