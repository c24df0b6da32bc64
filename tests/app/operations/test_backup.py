"""Backup, destroy, restore: counts, hashes and every rule of the database are what they were."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psycopg
import pytest
from psycopg import sql

from app.db import make_engine, make_sessionmaker
from app.operations import backup, programs
from app.operations.backup import BackupRefused, back_up, read, restore
from app.operations.programs import ProgramFailed, without_password
from app.runs.artifacts import artifact_path
from app.runs.models import Artifact
from tests.app.test_migrations import everything
from tests.conftest import DatabaseServer
from tests.factories import add, make_ranking, make_run, make_task

pytestmark = pytest.mark.real_commits
WEIGHTS = b"weights" * 1000


def quiet(what: str) -> None:
    """Nobody watches."""


@pytest.fixture
async def site(fresh_database_url: str, tmp_path: Path) -> tuple[str, Path]:
    """A database with rankings and a delivered file, and the folder of artifacts."""
    artifacts = tmp_path / "data" / "artifacts"
    engine = make_engine(fresh_database_url)
    async with make_sessionmaker(engine).begin() as session:
        task = await make_task(session, overlap=3)
        for _ in range(3):
            await make_ranking(session, task)
        run = await make_run(session)
        sha256 = hashlib.sha256(WEIGHTS).hexdigest()
        await add(session, Artifact(run_id=run.id, name="policy/w.bin", fence=2, size=len(WEIGHTS), sha256=sha256))
        path = artifact_path(artifacts, run.id, 2, "policy/w.bin")
    path.parent.mkdir(parents=True)
    path.write_bytes(WEIGHTS)
    path.with_name("unfinished.part").write_bytes(b"half")
    await engine.dispose()
    return fresh_database_url, artifacts


@pytest.fixture
def elsewhere(database_server: DatabaseServer) -> Iterator[str]:
    """The address of another, empty database."""
    name = database_server.create()
    yield database_server.url(name)
    database_server.drop(name)


def rows(url: str) -> dict[str, Any]:
    """Every row of every table, in words."""
    with psycopg.connect(url) as connection:
        tables = [name for (name,) in connection.execute(backup.TABLES)]
        query = "select t::text from public.{} t order by 1"
        return {table: connection.execute(sql.SQL(query).format(sql.Identifier(table))).fetchall() for table in tables}


def files(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_what_was_destroyed_comes_back_row_by_row_and_rule_by_rule(
    site: tuple[str, Path], elsewhere: str, tmp_path: Path
) -> None:
    url, artifacts = site
    target = tmp_path / "kept"
    before, rules = rows(url), everything(url)
    assert len(before["rankings"]) == 3, "the test is blind"
    back_up(url, artifacts=artifacts, target=target, tell=quiet)
    assert json.loads((target / "manifest.json").read_text())["tables"]["rankings"]["rows"] == "3"
    assert not list(target.rglob("*.part"))
    new = tmp_path / "new" / "artifacts"
    restore(target, url=elsewhere, artifacts=new, replace=False, tell=quiet)
    assert rows(elsewhere) == before
    assert everything(elsewhere) == rules
    assert {name: data for name, data in files(artifacts).items() if not name.endswith(".part")} == files(new)
    with psycopg.connect(elsewhere) as connection, pytest.raises(psycopg.errors.RestrictViolation):
        # A trigger of ours: rankings are never edited.
        connection.execute("update rankings set rationale = 'better'")


def test_nothing_is_overwritten_unasked_and_nothing_is_lost_by_a_failure(
    site: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, artifacts = site
    target = tmp_path / "kept"
    back_up(url, artifacts=artifacts, target=target, tell=quiet)
    with psycopg.connect(url) as connection:
        connection.execute("insert into users (name, role) values ('Late', 'annotator')")
    late = rows(url)
    with pytest.raises(BackupRefused, match="--replace"):
        restore(target, url=url, artifacts=artifacts, replace=False, tell=quiet)
    with psycopg.connect(url), pytest.raises(BackupRefused, match="1 connections"):
        restore(target, url=url, artifacts=artifacts, replace=True, tell=quiet)

    def fails(*arguments: Any, **options: Any) -> None:
        raise ProgramFailed("the disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(programs, "run", fails)
        with pytest.raises(ProgramFailed):
            restore(target, url=url, artifacts=artifacts, replace=True, tell=quiet)
    assert rows(url) == late
    restore(target, url=url, artifacts=artifacts, replace=True, tell=quiet)
    assert len(rows(url)["users"]) == len(late["users"]) - 1
    with psycopg.connect(url) as connection:
        assert connection.execute("select to_regnamespace('before_restore')").fetchone() == (None,)


def test_a_damaged_backup_is_refused_before_anything_happens(
    site: tuple[str, Path], elsewhere: str, tmp_path: Path
) -> None:
    url, artifacts = site
    good = tmp_path / "kept"
    back_up(url, artifacts=artifacts, target=good, tell=quiet)
    for number, harm in enumerate([flip, remove, add_a_file, cut_the_manifest]):
        target = tmp_path / f"kept {number}"
        shutil.copytree(good, target)
        harm(target)
        with pytest.raises(BackupRefused):
            restore(target, url=elsewhere, artifacts=tmp_path / "new", replace=False, tell=quiet)
    assert rows(elsewhere) == {}
    assert not (tmp_path / "new").exists()


def flip(folder: Path) -> None:
    dump = folder / "database.dump"
    data = bytearray(dump.read_bytes())
    data[len(data) // 2] ^= 1
    dump.write_bytes(data)


def remove(folder: Path) -> None:
    next(folder.rglob("w.bin")).unlink()


def add_a_file(folder: Path) -> None:
    (folder / "more.txt").touch()


def cut_the_manifest(folder: Path) -> None:
    (folder / "manifest.json").write_text("{")


def test_a_file_that_is_not_what_was_delivered_is_told_and_no_backup_is_left(
    site: tuple[str, Path], tmp_path: Path
) -> None:
    url, artifacts = site
    next(artifacts.rglob("w.bin")).write_bytes(b"other")
    with pytest.raises(BackupRefused, match=r"w\.bin is not the file"):
        back_up(url, artifacts=artifacts, target=tmp_path / "kept", tell=quiet)
    next(artifacts.rglob("w.bin")).unlink()
    with pytest.raises(BackupRefused, match=r"w\.bin is missing"):
        back_up(url, artifacts=artifacts, target=tmp_path / "kept", tell=quiet)
    assert not (tmp_path / "kept").exists()
    made = back_up(url, artifacts=artifacts, target=tmp_path / "kept", tell=quiet, skip_missing=True)
    assert made.missing == [next(iter(made.missing))]
    assert made.missing[0].endswith("/f2/policy/w.bin")
    assert read(tmp_path / "kept") == made


def test_the_password_is_not_in_the_list_of_processes() -> None:
    address, environment = without_password("postgresql://ada:s3cret@db.example:5433/rank?sslmode=require")
    assert "s3cret" not in address
    assert environment["PGPASSWORD"] == "s3cret"
    assert {"host=db.example", "port=5433", "dbname=rank", "user=ada", "sslmode=require"} <= set(address.split())
