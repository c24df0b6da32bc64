"""Files of runs on disk. The server chooses every path, and the path holds the fence: a worker that lost its run
writes where nobody looks.
"""

from __future__ import annotations

import hashlib
import os
import re
import uuid
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread

from app.errors import Conflict, Invalid, TooLarge

NAME = re.compile(r"[a-z0-9][a-z0-9_.-]{0,99}(/[a-z0-9][a-z0-9_.-]{0,99}){0,3}")
MAX_CHUNK = 8 * 1024 * 1024


class ChunkOutOfOrder(Conflict):
    """Send the chunks in order, from where the last one ended."""


class Damaged(Invalid):
    """The file that arrived is not the one that was announced. Send it again from the start."""


@dataclass(frozen=True)
class Upload:
    """A file on its way: announced size in bytes and SHA-256."""

    root: Path
    run_id: uuid.UUID
    fence: int
    name: str
    size: int
    sha256: str

    @property
    def path(self) -> Path:
        """Where the complete file lies."""
        return artifact_path(self.root, self.run_id, self.fence, self.name)

    @property
    def partial(self) -> Path:
        """Where it grows until then."""
        return self.path.with_name(self.path.name + ".part")


def artifact_path(root: Path, run_id: uuid.UUID, fence: int, name: str) -> Path:
    """Where a run's file lies.

    Raises:
        Invalid: the name is not one that the server would choose.
    """
    if not NAME.fullmatch(name):
        raise Invalid.field(
            "name", "use a-z, 0-9, '_', '.', '-', at most three folders, and begin each part with a letter or digit"
        )
    return root / str(run_id) / f"f{fence}" / name


async def receive_chunk(upload: Upload, *, offset: int, chunks: AsyncIterator[bytes]) -> tuple[int, bool]:
    """Append a chunk; after the last, verify and publish the file. Returns (bytes received, complete).

    Raises:
        ChunkOutOfOrder: the chunk does not begin where the file ends.
        TooLarge: it is over 8 MiB, or goes beyond the announced size.
        Damaged: the complete file has another SHA-256.
    """
    body = bytearray()
    async for chunk in chunks:
        body += chunk
        if len(body) > MAX_CHUNK or offset + len(body) > upload.size:
            raise TooLarge("A chunk has at most 8 MiB and ends within the announced size.")
    return await anyio.to_thread.run_sync(append, upload, offset, bytes(body))


def append(upload: Upload, offset: int, body: bytes) -> tuple[int, bool]:
    """The blocking part of `receive_chunk`."""
    upload.path.parent.mkdir(parents=True, exist_ok=True)
    with upload.partial.open("r+b" if offset and upload.partial.exists() else "wb") as file:
        if file.seek(0, os.SEEK_END) < offset:
            raise ChunkOutOfOrder(f"{file.tell()} bytes are here; the chunk begins at {offset}.")
        file.seek(offset)
        file.truncate()
        file.write(body)
        received = file.tell()
        file.flush()
        os.fsync(file.fileno())
    if received < upload.size:
        return received, False
    if file_sha256(upload.partial) != upload.sha256:
        upload.partial.unlink()
        raise Damaged
    upload.partial.replace(upload.path)
    sync_folder(upload.path.parent)
    return received, True


def file_sha256(path: Path) -> str:
    """SHA-256 of a file, as hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sync_folder(folder: Path) -> None:
    """Make a rename in this folder survive a power cut."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
