"""A disk without room: 503 and never a false success, and all goes on by itself when there is room again."""

from __future__ import annotations

import asyncio
import hashlib
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import psycopg
import pytest
from httpx2 import ASGITransport, AsyncClient
from sqlalchemy import text

from app.accounts.models import Role, Scope
from app.accounts.tokens import create_token
from app.config import Settings
from app.db import SessionMaker
from app.embedded import EmbeddedPostgres
from app.migrate import upgrade
from app.supervisor import Keeper
from tests.borrowed import borrowed_app
from tests.factories import make_project, make_user
from tests.faults.history import History, play, violations
from tests.faults.house import open_house

OVERLAP = 2
MEGABYTES = 160


@pytest.fixture
def small_disk() -> Iterator[Path]:
    """A folder that is a disk of its own."""
    folder = Path(tempfile.mkdtemp(prefix="rankloop-disk-"))
    mount = ["mount", "-t", "tmpfs", "-o", f"size={MEGABYTES}m,mode=755", "tmpfs", str(folder)]
    done = subprocess.run(mount, capture_output=True, text=True, check=False)
    if done.returncode:
        folder.rmdir()
        pytest.skip(f"no disk of its own can be made here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)
        shutil.rmtree(folder, ignore_errors=True)


def fill(folder: Path) -> Path:
    """Take all the room; removing the file that is answered gives it back."""
    filler = folder / "filler"
    with filler.open("wb", buffering=0) as stream, suppress(OSError):
        while True:
            stream.write(b"\0" * 4096)
    return filler


@pytest.mark.slow
async def test_a_database_without_room_takes_nothing_and_loses_nothing(small_disk: Path, tmp_path: Path) -> None:
    server = EmbeddedPostgres(small_disk)
    try:
        server.start().create_database("rankloop")
        upgrade(server.url())
        async with open_house(server.url(), tmp_path, num_tasks=24, num_people=8, overlap=OVERLAP) as house:

            async def run_out_of_room(history: History) -> None:
                await history.reach(10)
                filler = fill(small_disk)
                await asyncio.to_thread(want_room_for_the_log, server)
                refused = history.num_unanswered
                while True:
                    await asyncio.sleep(0.05)
                    if history.num_unanswered >= refused + 8:
                        break
                filler.unlink()
                await keep(server)

            history = await play(house.people, house.project_id, disturb=run_out_of_room)
            facts = await house.facts()
        assert violations(history, facts) == []
        assert history.troubles[503]
        assert len(facts.rankings) >= 24 * OVERLAP
    finally:
        server.stop()


def want_room_for_the_log(server: EmbeddedPostgres) -> None:
    """The next commit needs a new segment of the write-ahead log, for which there is none."""
    with suppress(psycopg.Error), psycopg.connect(server.url(), autocommit=True) as connection:
        for _ in range(10):
            connection.execute("select pg_switch_wal()")
            connection.execute("create table room as select generate_series(1, 1000)")
            connection.execute("drop table room")


async def keep(server: EmbeddedPostgres) -> None:
    """What `rankloop up` does with its database, until nobody needs it any more."""
    keeper = Keeper("PostgreSQL", server)
    while True:
        await asyncio.to_thread(keeper.look_after)
        await asyncio.sleep(0.1)


async def test_a_file_without_room_is_refused_until_there_is(small_disk: Path, sessionmaker: SessionMaker) -> None:
    async with sessionmaker.begin() as session:
        owner, project = await make_user(session, role=Role.ADMIN), await make_project(session)
        _, secret = await create_token(session, user_id=owner.id, name="worker", scopes=[Scope.WORKER])
        insert = "insert into runs (project_id, kind) values (:project, 'reward')"
        await session.execute(text(insert), {"project": project.id})
    body = b"weights" * 100_000
    params = {"offset": "0", "size": str(len(body)), "sha256": hashlib.sha256(body).hexdigest()}
    with borrowed_app(Settings(data_dir=small_disk), sessionmaker) as app:
        async with AsyncClient(transport=ASGITransport(app), base_url="http://127.0.0.1:8000/api/v1") as client:
            client.headers["authorization"] = f"Bearer {secret}"
            claim = (await client.post("/runs:claim", json={"worker": "w", "kinds": ["reward"]})).json()
            client.headers["rankloop-fence"] = str(claim["fence"])
            filler = fill(small_disk)
            address = f"/runs/{claim['id']}/artifacts/model.safetensors"
            refused = await client.put(address, params=params, content=body)
            assert (refused.status_code, refused.json()["title"]) == (503, "Unavailable")
            filler.unlink()
            taken = await client.put(address, params=params, content=body)
            assert (taken.status_code, taken.json()["complete"]) == (200, True)
