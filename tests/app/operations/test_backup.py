"""Backup, destroy, restore: counts, hashes and every rule of the database are what they were."""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import psycopg
import pytest
import typer
from alembic import command
from psycopg import sql
from sqlalchemy import select
from typer.testing import CliRunner

from app.cli import register
from app.config import Settings
from app.db import SessionMaker, make_engine, make_sessionmaker
from app.migrate import alembic_config, upgrade
from app.operations import backup, cli, programs
from app.operations.backup import BackupRefused, back_up, read, refuse_unfinished, restore
from app.operations.doctor import examine
from app.operations.programs import ProgramFailed, without_password
from app.prompts.models import Prompt
from app.rankings.changes import list_changes
from app.rankings.models import Ranking
from app.rankings.service import follow_rankings
from app.runs.artifacts import artifact_path
from app.runs.models import Artifact
from app.supervisor import Supervisor, UpOptions
from app.tasks.models import Task
from tests.app.test_migrations import everything
from tests.conftest import DatabaseServer
from tests.factories import add, make_ranking, make_run, make_task

pytestmark = pytest.mark.real_commits
WEIGHTS = b"weights" * 1000


def quiet(*what: object, **more: object) -> None:
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
    with another(database_server) as url:
        yield url


@contextmanager
def another(database_server: DatabaseServer) -> Iterator[str]:
    name = database_server.create()
    yield database_server.url(name)
    database_server.drop(name)


@pytest.fixture
def further(database_server: DatabaseServer) -> Iterator[str]:
    """The address of a third one."""
    with another(database_server) as url:
        yield url


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
    assert without_offset(everything(elsewhere)) == without_offset(rules)
    assert {name: data for name, data in files(artifacts).items() if not name.endswith(".part")} == files(new)
    with psycopg.connect(elsewhere) as connection, pytest.raises(psycopg.errors.RestrictViolation):
        # A trigger of ours: rankings are never edited.
        connection.execute("update rankings set rationale = 'better'")


def without_offset(rules: list[str]) -> list[str]:
    """All but the number that a restore sets, for the feeds of rankings to go on."""
    found = [rule for rule in rules if not rule.startswith("function feed_offset ")]
    assert len(found) == len(rules) - 1
    return found


async def test_who_follows_the_feeds_goes_on_after_a_restore_into_another_cluster(
    site: tuple[str, Path], elsewhere: str, further: str, tmp_path: Path, database_server: DatabaseServer
) -> None:
    """The old cluster had counted far beyond the new one. So it is again with a backup of what was restored."""
    url, artifacts = site
    count_far_ahead(url)
    known: list[uuid.UUID] = []
    for number, (source, target) in enumerate([(url, elsewhere), (elsewhere, further)]):
        folder = tmp_path / f"kept {number}"
        # Another database's transaction, which runs all the while, holds nothing back of what was restored.
        with psycopg.connect(database_server.url("postgres")) as busy:
            busy.execute("select pg_current_xact_id()")
            back_up(source, artifacts=artifacts, target=folder, tell=quiet)
            artifacts = tmp_path / f"restored {number}"
            restore(folder, url=target, artifacts=artifacts, replace=False, tell=quiet)
            async with opened(target) as sessions:
                before = await both_feeds(sessions)
        assert len(before) == 3 + number
        assert [ranking for _, ranking in before][: len(known)] == known
        async with opened(target) as sessions:
            new = await rank_again(sessions)
            # A cursor of the day when the old cluster was lost, later than the backup's.
            late = (before[-1][0][0] + 10**6, 1)
            for cursor in (before[-1][0], late):
                assert [ranking for _, ranking in await both_feeds(sessions, after=cursor, at_least=1)] == [new]
            known = [ranking for _, ranking in await both_feeds(sessions)]


async def test_a_database_that_was_restored_before_feeds_had_an_offset_gets_it_by_migrating(
    site: tuple[str, Path],
) -> None:
    url, _ = site
    command.downgrade(alembic_config(url), "0033")
    count_far_ahead(url)
    upgrade(url)
    async with opened(url) as sessions:
        before = await both_feeds(sessions, at_least=3)
        new = await rank_again(sessions)
        assert [ranking for _, ranking in await both_feeds(sessions, after=before[-1][0], at_least=1)] == [new]


def count_far_ahead(url: str) -> None:
    """As if the cluster had counted its transactions to a million millions."""
    with psycopg.connect(url) as connection:
        connection.execute("set session_replication_role to replica")  # rankings are never edited: no triggers
        for table in ("rankings", "ranking_changes"):
            connection.execute(sql.SQL("update {} set transaction_id = 10^12 + number").format(sql.Identifier(table)))


@asynccontextmanager
async def opened(url: str) -> AsyncIterator[SessionMaker]:
    engine = make_engine(url)
    yield make_sessionmaker(engine)
    await engine.dispose()


async def both_feeds(
    sessions: SessionMaker, after: tuple[int, int] | None = None, at_least: int = 0
) -> list[tuple[tuple[int, int], uuid.UUID]]:
    """The cursor and the ranking of each change, as both feeds tell them. The newest is served when every older
    transaction of the server has ended, other tests' too.
    """
    for _ in range(400):
        async with sessions() as session:
            project = await session.scalar(select(Ranking.project_id).limit(1))
            assert project is not None
            rankings = await follow_rankings(session, project_id=project, after=after)
            changed = await list_changes(session, project_id=project, after=after)
        found = [((change.transaction_id, change.number), change.view.ranking.id) for change in changed]
        if len(found) >= at_least:
            assert [view.ranking.id for view in rankings] == [ranking for _, ranking in found]
            return found
        await asyncio.sleep(0.05)
    raise AssertionError("What is new is never served.")


async def rank_again(sessions: SessionMaker) -> uuid.UUID:
    """One more ranking, which its own transaction sees at once."""
    async with sessions.begin() as session:
        first = (await session.scalars(select(Ranking).order_by(Ranking.number).limit(1))).one()
        task = await session.get_one(Task, first.task_id)
        ranking = await make_ranking(session, await make_task(session, await session.get_one(Prompt, task.prompt_id)))
        seen = await follow_rankings(session, project_id=first.project_id)
        assert seen[-1].ranking.id == ranking.id
        return ranking.id


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


# The program `rankloop` with a restore that stops, for good, right after one of its steps.
STOPS = """
import signal, sys, time
# Whoever runs the tests under nohup ignores it, and so would this program.
signal.signal(signal.SIGHUP, signal.SIG_DFL)
from app.operations import backup, cli, programs
import typer
where = sys.argv.pop(1)
module = {"run": programs, "swap": backup}[where]
does = getattr(module, where)
def stops(*arguments, **options):
    does(*arguments, **options)
    print("stopped", flush=True)
    time.sleep(600)
setattr(module, where, stops)
program = typer.Typer()
cli.register(program)
program()
"""


def end_a_restore(where: str, number: signal.Signals, *, url: str, artifacts: Path, folder: Path) -> None:
    """Begin a restore, and send a signal when it has done this step."""
    arguments = [sys.executable, "-c", STOPS, where, "restore", str(folder), "--replace"]
    root = str(Path(__file__).resolve().parents[3])
    values = {"DATABASE_URL": url, "RANKLOOP_DATA_DIR": str(artifacts.parent), "PYTHONPATH": root}
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=root, env=os.environ | values) as started:
        assert started.stdout is not None
        try:
            assert started.stdout.readline() == "stopped\n"
            started.send_signal(number)
            assert started.wait(60) != 0
        finally:
            started.kill()
    # The server needs a moment to see that nobody is there any more.
    others = "select from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid()"
    with psycopg.connect(url, autocommit=True) as connection:
        while connection.execute(others).fetchone() is not None:
            time.sleep(0.05)


@pytest.fixture
def later(site: tuple[str, Path], tmp_path: Path) -> tuple[dict[str, Any], dict[str, bytes]]:
    """A backup, and rows and files that came after it."""
    url, artifacts = site
    back_up(url, artifacts=artifacts, target=tmp_path / "kept", tell=quiet)
    with psycopg.connect(url) as connection:
        connection.execute("insert into users (name, role) values ('Late', 'annotator')")
    (artifacts / "late.bin").write_bytes(b"late")
    return rows(url), files(artifacts)


@pytest.mark.parametrize(
    ("where", "goes_on"),
    [
        ("run", True),
        ("swap", False),
        pytest.param("run", False, marks=pytest.mark.soak),
        pytest.param("swap", True, marks=pytest.mark.soak),
    ],
)
def test_a_restore_that_was_killed_starts_no_other_site_and_can_be_taken_back(
    site: tuple[str, Path],
    later: tuple[dict[str, Any], dict[str, bytes]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    where: str,
    goes_on: bool,
) -> None:
    url, artifacts = site
    target, program = tmp_path / "kept", typer.Typer()
    end_a_restore(where, signal.SIGKILL, url=url, artifacts=artifacts, folder=target)
    refused_everywhere(url, artifacts.parent, tmp_path, monkeypatch)
    cli.register(program)
    if goes_on:
        restore(target, url=url, artifacts=artifacts, replace=True, tell=quiet)
        assert len(rows(url)["users"]) == len(later[0]["users"]) - 1
        assert "late.bin" not in files(artifacts)
    else:
        answer = CliRunner().invoke(program, ["restore", "--undo", "--data-dir", str(artifacts.parent)])
        assert answer.exit_code == 0, answer.output
        assert (rows(url), files(artifacts)) == later
        with pytest.raises(BackupRefused, match="Nothing was set aside"):
            backup.undo(url=url, artifacts=artifacts)
    refuse_unfinished(url)
    assert not (artifacts.parent / "artifacts.replaced").exists()


def refused_everywhere(url: str, data_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing starts, migrates or keeps what is there, and the doctor says why."""
    # The server of the tests runs with fsync off, which is refused before.
    monkeypatch.setattr("app.db.check_connection", well)
    monkeypatch.setattr(Supervisor, "_check_database", well)
    monkeypatch.setattr("app.serve.serve", quiet)
    monkeypatch.setenv("DATABASE_URL", url)
    program = typer.Typer()
    register(program)
    for words in (["migrate"], ["serve", "--port", "0"], ["backup", str(tmp_path / "more")]):
        answer = CliRunner().invoke(program, [*words, "--data-dir", str(data_dir)])
        assert answer.exit_code == 1, words
        assert "restore --undo" in answer.output, words
    supervisor = Supervisor(UpOptions(data_dir, port=0))
    with pytest.raises(BackupRefused, match="interrupted"):
        supervisor._start()
    assert supervisor.listener is not None
    supervisor.listener.close()
    found = {finding.name: finding for finding in examine(Settings(data_dir=data_dir, database_url=url))}
    assert found["restore"].level == "bad"


async def well(*arguments: object) -> None:
    """Nothing is wrong."""


@pytest.mark.parametrize("where", ["run", "swap"])
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_restore_that_is_asked_to_end_puts_back_what_was_there(
    site: tuple[str, Path],
    later: tuple[dict[str, Any], dict[str, bytes]],
    tmp_path: Path,
    where: str,
    number: signal.Signals,
) -> None:
    url, artifacts = site
    end_a_restore(where, number, url=url, artifacts=artifacts, folder=tmp_path / "kept")
    assert (rows(url), files(artifacts)) == later
    refuse_unfinished(url)


def test_a_restore_ends_sessions_where_it_is_asked_to_and_says_what_is_alive_again(
    site: tuple[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url, artifacts = site
    with psycopg.connect(url) as connection:
        for table in ("sessions", "sign_in_links"):
            query = "insert into {} (token_hash, user_id, expires_at) select 'x', id, now() from users limit 1"
            connection.execute(sql.SQL(query).format(sql.Identifier(table)))
    back_up(url, artifacts=artifacts, target=tmp_path / "kept", tell=quiet)
    program = typer.Typer()
    cli.register(program)
    monkeypatch.setenv("DATABASE_URL", url)
    words = ["restore", str(tmp_path / "kept"), "--replace", "--data-dir", str(artifacts.parent)]
    for more, num_sessions in ([], 1), (["--end-sessions"], 0):
        answer = CliRunner().invoke(program, [*words, *more])
        assert answer.exit_code == 0, answer.output
        assert "tokens that were revoked" in answer.output
        assert ("sessions and sign-in links (--end-sessions" in answer.output) == bool(num_sessions)
        assert len(rows(url)["sessions"]) == len(rows(url)["sign_in_links"]) == num_sessions


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
