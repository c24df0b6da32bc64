"""Backup and restore: the database and every delivered file, of one instant, each with its hash.

A backup is a folder: `database.dump` (pg_dump's custom format), `artifacts/` as the app keeps them, `manifest.json`. It
has its name only when it is complete. What a worker is still sending belongs to no instant, and is not in it.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psycopg
from psycopg import sql

from app.operations import programs
from app.runs.artifacts import artifact_path, file_sha256, sync_folder
from rankloop import __version__

FORMAT = 1
DUMP = "database.dump"
MANIFEST = "manifest.json"
ARTIFACTS = "artifacts"
SET_ASIDE = "before_restore"
"""The schema in which replaced tables wait until the restored ones are verified: the sign of a restore under way."""
UNFINISHED = "A restore into this database runs, or was interrupted: the tables from before it are set aside."
UNFINISHED_TODO = (
    "If none runs, `rankloop restore FOLDER --replace` begins it again, and `rankloop restore --undo` puts them back."
)
FEED_GAP = 10**9
"""The old database may have run on for so many transactions after the backup: no cursor of that time is ahead."""
Tell = Callable[[str], None]

TABLES = "select tablename from pg_tables where schemaname = 'public' order by tablename"
# The same for the same rows in whatever order: a count, and the sum of the first 64 bits of each row's SHA-256.
FINGERPRINT = """
select count(*),
       coalesce(sum(('x' || left(encode(sha256(convert_to(t::text, 'UTF8')), 'hex'), 16))::bit(64)::bigint), 0)
from public.{} t
"""


class BackupRefused(Exception):
    """A backup or a restore that can't be done as it was asked; the message says what to do."""


@dataclass(frozen=True)
class Backup:
    """What a backup's manifest says."""

    made_at: str
    rankloop: str
    postgresql: int
    """The server's major version."""
    revision: str
    """The newest migration that the database had."""
    tables: dict[str, dict[str, str]]
    """Name of a table -> count of its rows and a sum over their hashes, as decimal digits."""
    files: dict[str, dict[str, Any]]
    """Path below the folder -> size in bytes and SHA-256."""
    missing: list[str]
    """Files that the database names and nobody has any more, left out because they were asked to be."""
    format: int = FORMAT


def back_up(url: str, *, artifacts: Path, target: Path, tell: Tell, skip_missing: bool = False) -> Backup:
    """Write a backup to the new folder `target`; the app may run and be written to meanwhile.

    `skip_missing`: files that are gone, such as old checkpoints that somebody deleted, are named in the manifest.

    Raises:
        BackupRefused: the folder is there, a restore was interrupted, or a file is missing or not the one that was
            delivered.
        ProgramFailed: pg_dump is missing or failed.
    """
    if target.exists():
        raise BackupRefused(f"{target} is there already. Name a new folder for each backup.")
    partial = target.with_name(f"{target.name}.partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(mode=0o700, parents=True)
    with instant(url) as (connection, snapshot):
        if is_unfinished(connection):
            raise BackupRefused(f"{UNFINISHED} {UNFINISHED_TODO}")
        major = connection.info.server_version // 10_000
        tell("database")
        arguments = ["--format=custom", f"--snapshot={snapshot}", "--no-owner", "--no-privileges", "--schema=public"]
        programs.run("pg_dump", [*arguments, f"--file={partial / DUMP}"], url=url, major=major)
        files = {DUMP: described(partial / DUMP)}
        # Tables first: files are fetched for the same instant, however many arrive meanwhile.
        tables, revision, missing = fingerprints(connection), schema_revision(connection), []
        for name, expected in delivered_files(connection):
            tell(name)
            if skip_missing and not (artifacts / name).exists():
                missing.append(name)
                continue
            files[f"{ARTIFACTS}/{name}"] = copy_verified(artifacts / name, partial / ARTIFACTS / name, expected)
    made_at = datetime.now(UTC).isoformat(timespec="seconds")
    backup = Backup(made_at, __version__, major, revision, tables, files, missing)
    write_synced(partial / MANIFEST, json.dumps(asdict(backup), indent=1).encode())
    partial.rename(target)
    sync_folder(target.parent)
    return backup


@contextmanager
def instant(url: str) -> Iterator[tuple[psycopg.Connection[Any], str]]:
    """A read-only connection that sees one instant, and the snapshot's name, by which pg_dump sees the same one."""
    with psycopg.connect(url, connect_timeout=5) as connection:
        connection.read_only = True
        connection.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
        connection.execute("set local timezone to 'UTC'")
        row = connection.execute("select pg_export_snapshot()").fetchone()
        assert row is not None
        yield connection, row[0]


def fingerprints(connection: psycopg.Connection[Any]) -> dict[str, dict[str, str]]:
    """Count and sum of hashes of every table."""
    found = {}
    for (table,) in connection.execute(TABLES).fetchall():
        row = connection.execute(sql.SQL(FINGERPRINT).format(sql.Identifier(table))).fetchone()
        assert row is not None
        found[table] = {"rows": str(row[0]), "sum": str(row[1])}
    return found


def schema_revision(connection: psycopg.Connection[Any]) -> str:
    """The newest migration.

    Raises:
        BackupRefused: the database has never been migrated.
    """
    if connection.execute("select to_regclass('public.alembic_version')").fetchone() == (None,):
        raise BackupRefused("This database has no table of Rankloop's. Is DATABASE_URL the right one?")
    row = connection.execute("select version_num from public.alembic_version").fetchone()
    return str(row[0]) if row else ""


def delivered_files(connection: psycopg.Connection[Any]) -> list[tuple[str, dict[str, Any]]]:
    """Path below the artifacts' folder, size and SHA-256 of every file that a run delivered."""
    rows = connection.execute("select run_id, fence, name, size, sha256 from public.artifacts order by run_id, name")
    root = Path()
    return [
        (artifact_path(root, run_id, fence, name).as_posix(), {"size": size, "sha256": sha256})
        for run_id, fence, name, size, sha256 in rows
    ]


def copy_verified(source: Path, target: Path, expected: dict[str, Any]) -> dict[str, Any]:
    """Copy a file to where it is safe from a power cut, and check what arrived.

    Raises:
        BackupRefused: it is missing, or another one.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        shutil.copyfile(source, target)
    except FileNotFoundError as error:
        raise BackupRefused(
            f"{source} is missing: a run delivered it, and it can't be had again. Bring it back, or leave out what is "
            "gone with --skip-missing."
        ) from error
    with target.open("rb") as file:
        os.fsync(file.fileno())
    if described(target) != expected:
        raise BackupRefused(f"{source} is not the file that its SHA-256 stands for: it is damaged, here or before.")
    return expected


def described(path: Path) -> dict[str, Any]:
    """Size in bytes and SHA-256 of a file."""
    return {"size": path.stat().st_size, "sha256": file_sha256(path)}


def write_synced(path: Path, content: bytes) -> None:
    """Write a file that survives a power cut."""
    with path.open("wb") as file:
        file.write(content)
        file.flush()
        os.fsync(file.fileno())


def read(folder: Path) -> Backup:
    """A backup's manifest, after every file of it was read and found whole.

    Raises:
        BackupRefused: the folder is no backup, is of a newer format, or a file is missing, damaged or too many.
    """
    try:
        values = json.loads((folder / MANIFEST).read_bytes())
        if values["format"] != FORMAT:
            raise BackupRefused(f"{folder} has format {values['format']}; this version of Rankloop reads {FORMAT}.")
        backup = Backup(**values)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise BackupRefused(f"{folder} is no complete backup: its {MANIFEST} can't be read.") from error
    found = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {MANIFEST}
    wrong = sorted(found ^ backup.files.keys())
    wrong += [name for name in sorted(found & backup.files.keys()) if described(folder / name) != backup.files[name]]
    if wrong:
        raise BackupRefused(f"{folder} is damaged: {', '.join(wrong[:5])} missing, changed or not in {MANIFEST}.")
    return backup


def restore(
    folder: Path, *, url: str, artifacts: Path, replace: bool, tell: Tell, end_sessions: bool = False
) -> Backup:
    """Bring back a backup, all or nothing. What it replaces stays until what was restored has been verified.

    `end_sessions`: whoever was signed in when the backup was made has to sign in again.

    Raises:
        BackupRefused: the backup is damaged, the target is not empty (and `replace` is not set) or in use, or what was
            restored is not what was kept.
        ProgramFailed: pg_restore is missing or failed.
    """
    tell("checking the backup")
    backup = read(folder)
    with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
        check_target(connection, artifacts, replace=replace)
        fresh = artifacts.with_name(f"{artifacts.name}.restoring")
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(mode=0o700, parents=True)
        for name, expected in backup.files.items():
            if name != DUMP:
                tell(name)
                below = Path(name).relative_to(ARTIFACTS)
                copy_verified(folder / name, fresh / below, expected)
        tell("database")
        with set_aside(connection, artifacts):
            major = max(backup.postgresql, connection.info.server_version // 10_000)
            # --schema: what is in the schema, and not the schema itself, which is there.
            arguments = ["--single-transaction", "--exit-on-error", "--no-owner", "--no-privileges", "--schema=public"]
            programs.run("pg_restore", [*arguments, folder / DUMP], url=url, major=major)
            check_restored(connection, backup)
            if end_sessions:
                end_all_sessions(connection)
            move_feeds_on(connection)
            swap(fresh, artifacts)
    return backup


def undo(*, url: str, artifacts: Path) -> None:
    """Put back what a restore that was killed had set aside.

    Raises:
        BackupRefused: no restore was interrupted here, or one still runs.
    """
    with psycopg.connect(url, autocommit=True, connect_timeout=5) as connection:
        check_unused(connection)
        if not is_unfinished(connection):
            raise BackupRefused("Nothing was set aside here: no restore was interrupted.")
        put_back(connection, artifacts)


def check_target(connection: psycopg.Connection[Any], artifacts: Path, *, replace: bool) -> None:
    """Nothing is overwritten unasked, and nothing is replaced while somebody works with it."""
    check_unused(connection)
    was_killed = is_unfinished(connection)
    is_empty = not was_killed and not connection.execute(TABLES).fetchall() and not any(artifacts.glob("*"))
    if not is_empty and not replace:
        raise BackupRefused(
            "There is a database or a folder of artifacts here already. --replace puts the backup in its place."
        )
    if was_killed:
        put_back(connection, artifacts)


def check_unused(connection: psycopg.Connection[Any]) -> None:
    """Nobody else is connected, another restore neither."""
    others = connection.execute(
        "select count(*) from pg_stat_activity where datname = current_database() and pid <> pg_backend_pid() "
        "and backend_type = 'client backend'"
    ).fetchone()
    assert others is not None
    if others[0]:
        raise BackupRefused(f"{others[0]} connections use this database. Stop Rankloop (web and workers) first.")


def is_unfinished(connection: psycopg.Connection[Any]) -> bool:
    """Whether a restore runs or was killed: what was here before is still set aside."""
    return connection.execute("select to_regnamespace(%s)", [SET_ASIDE]).fetchone() != (None,)


def refuse_unfinished(url: str) -> None:
    """To be asked before a site is started or migrated: `public` may be empty, and the site's rows set aside.

    Raises:
        BackupRefused: a restore runs or was killed.
    """
    with psycopg.connect(url, connect_timeout=5) as connection:
        if is_unfinished(connection):
            raise BackupRefused(f"{UNFINISHED} {UNFINISHED_TODO}")


@contextmanager
def set_aside(connection: psycopg.Connection[Any], artifacts: Path) -> Iterator[None]:
    """Room for what is restored. What was here goes when all went well, and comes back when it did not."""
    old = replaced(artifacts)
    # Of a restore that was killed while it cleared up: what it had replaced, and nobody needs any more.
    shutil.rmtree(old, ignore_errors=True)
    public = "create schema public authorization pg_database_owner; grant usage on schema public to public"
    with connection.transaction():
        connection.execute(sql.SQL(f"alter schema public rename to {SET_ASIDE}"))
        connection.execute(sql.SQL(public))
    try:
        yield
    except BaseException:
        put_back(connection, artifacts)
        raise
    connection.execute(sql.SQL(f"drop schema {SET_ASIDE} cascade"))
    shutil.rmtree(old, ignore_errors=True)


def put_back(connection: psycopg.Connection[Any], artifacts: Path) -> None:
    """What was here before a restore, in the place of what it had brought. Once more is harmless."""
    old = replaced(artifacts)
    if old.exists():
        shutil.rmtree(artifacts, ignore_errors=True)
        old.rename(artifacts)
    with connection.transaction():
        connection.execute("drop schema public cascade")
        connection.execute(sql.SQL(f"alter schema {SET_ASIDE} rename to public"))


def check_restored(connection: psycopg.Connection[Any], backup: Backup) -> None:
    """Every table has the rows that were kept."""
    connection.execute("set timezone to 'UTC'")
    found = fingerprints(connection)
    wrong = sorted(table for table in found | backup.tables if found.get(table) != backup.tables.get(table))
    if wrong:
        raise BackupRefused(f"What was restored differs from what was kept, in {', '.join(wrong)}.")


def move_feeds_on(connection: psycopg.Connection[Any]) -> None:
    """Whoever followed the feeds of rankings goes on with their cursor, whatever this cluster has counted to."""
    # An older backup has no offset yet: the migration that brings it sets it.
    if connection.execute("select to_regprocedure('public.move_feeds_on(bigint)')").fetchone() != (None,):
        connection.execute("select public.move_feeds_on(%s)", [FEED_GAP])


def end_all_sessions(connection: psycopg.Connection[Any]) -> None:
    """Nobody is signed in, and no link signs anybody in, whatever was ended after the backup was made."""
    connection.execute("delete from public.sessions")
    connection.execute("delete from public.sign_in_links")


def swap(fresh: Path, artifacts: Path) -> None:
    """Put the restored files in their place; those that were there wait beside it."""
    artifacts.mkdir(mode=0o700, exist_ok=True)
    artifacts.rename(replaced(artifacts))
    fresh.rename(artifacts)
    sync_folder(artifacts.parent)


def replaced(artifacts: Path) -> Path:
    """Where files that are being replaced wait until the restore is complete."""
    return artifacts.with_name(f"{artifacts.name}.replaced")
