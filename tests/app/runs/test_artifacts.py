"""Files of runs: whole, verified, and never outside their folder."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from app.errors import Invalid, TooLarge
from app.runs.artifacts import MAX_CHUNK, ChunkOutOfOrder, Damaged, Upload, artifact_path, receive_chunk

BODY = b"weights" * 1000


async def once(body: bytes) -> AsyncIterator[bytes]:
    yield body


def upload_of(root: Path, body: bytes = BODY, *, size: int | None = None) -> Upload:
    sha256 = hashlib.sha256(body).hexdigest()
    return Upload(root, uuid.uuid4(), 1, "model.safetensors", len(body) if size is None else size, sha256)


async def test_chunks_in_order_become_the_file(tmp_path: Path) -> None:
    upload = upload_of(tmp_path)
    assert await receive_chunk(upload, offset=0, chunks=once(BODY[:4000])) == (4000, False)
    assert not upload.path.exists()
    assert await receive_chunk(upload, offset=4000, chunks=once(BODY[4000:])) == (len(BODY), True)
    assert upload.path.read_bytes() == BODY


async def test_a_chunk_that_is_sent_again_does_no_harm(tmp_path: Path) -> None:
    upload = upload_of(tmp_path)
    for _ in range(2):
        await receive_chunk(upload, offset=0, chunks=once(BODY[:4000]))
    assert await receive_chunk(upload, offset=4000, chunks=once(BODY[4000:])) == (len(BODY), True)
    assert upload.path.read_bytes() == BODY


async def test_a_gap_is_refused(tmp_path: Path) -> None:
    upload = upload_of(tmp_path)
    await receive_chunk(upload, offset=0, chunks=once(BODY[:10]))
    with pytest.raises(ChunkOutOfOrder):
        await receive_chunk(upload, offset=4000, chunks=once(BODY[4000:]))


async def test_a_damaged_file_is_not_kept(tmp_path: Path) -> None:
    upload = upload_of(tmp_path)
    with pytest.raises(Damaged):
        await receive_chunk(upload, offset=0, chunks=once(BODY[:-1] + b"x"))
    assert not upload.path.exists()
    assert not upload.partial.exists()


async def test_more_than_was_announced_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TooLarge):
        await receive_chunk(upload_of(tmp_path, size=10), offset=0, chunks=once(BODY))
    with pytest.raises(TooLarge):
        await receive_chunk(upload_of(tmp_path, size=10**9), offset=0, chunks=once(b"x" * (MAX_CHUNK + 1)))


async def test_an_empty_file_is_a_file(tmp_path: Path) -> None:
    upload = upload_of(tmp_path, b"")
    assert await receive_chunk(upload, offset=0, chunks=once(b"")) == (0, True)
    assert upload.path.read_bytes() == b""


@pytest.mark.parametrize(
    "name",
    ["../x", "/etc/passwd", "a/../b", "a//b", ".hidden", "a/.b", "A", "a b", "a\\b", "a\x00b", "", "a/b/c/d/e", "é"],
)
def test_only_names_that_stay_inside(tmp_path: Path, name: str) -> None:
    with pytest.raises(Invalid):
        artifact_path(tmp_path, uuid.uuid4(), 1, name)


def test_the_path_holds_run_and_fence(tmp_path: Path) -> None:
    run_id = uuid.uuid4()
    path = artifact_path(tmp_path, run_id, 3, "checkpoint/manifest.json")
    assert path == tmp_path / str(run_id) / "f3" / "checkpoint" / "manifest.json"
