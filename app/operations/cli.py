"""The operator's commands: `doctor`, `backup`, `restore`."""

from __future__ import annotations

import json
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import psycopg
import typer

from app.config import Settings
from app.embedded import EmbeddedPostgresError

DataDir = Annotated[
    Path, typer.Option(envvar="RANKLOOP_DATA_DIR", help="Folder of the database, the artifacts and the models.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
DEFAULT_DATA_DIR = Path(".data")
MARKS = {"ok": "ok  ", "warn": "WARN", "bad": "BAD "}


def register(cli: typer.Typer) -> None:
    """Add the operator's commands to the program."""
    cli.command()(doctor)
    cli.command()(backup)
    cli.command()(restore)


def doctor(data_dir: DataDir = DEFAULT_DATA_DIR, as_json: AsJson = False) -> None:
    """Look whether everything is well, and say what to do where it is not. Exit code 1: something is bad."""
    from app.operations.doctor import examine

    findings = examine(Settings(data_dir=data_dir).at_known_address())
    if as_json:
        typer.echo(json.dumps([asdict(finding) for finding in findings]))
    else:
        for finding in findings:
            typer.echo(f"{MARKS[finding.level]} {finding.name}: {finding.said}")
            if finding.todo:
                typer.echo(f"     -> {finding.todo}")
    raise typer.Exit(any(finding.level == "bad" for finding in findings))


def backup(
    folder: Annotated[Path, typer.Argument(help="A new folder, best on another disk.")],
    data_dir: DataDir = DEFAULT_DATA_DIR,
    skip_missing: Annotated[
        bool, typer.Option("--skip-missing", help="Leave out delivered files that are gone.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Keep the database and all delivered files, of one instant, with their hashes. Rankloop may run meanwhile."""
    from app.operations.backup import back_up

    with plain_refusals(), database(data_dir) as settings:
        url, artifacts, target = settings.require_database_url(), settings.artifacts_dir, folder.absolute()
        made = back_up(url, artifacts=artifacts, target=target, tell=progress, skip_missing=skip_missing)
    size = sum(file["size"] for file in made.files.values())
    rows = sum(int(table["rows"]) for table in made.tables.values())
    if as_json:
        counts = {"rows": rows, "files": len(made.files), "bytes": size, "missing": made.missing}
        typer.echo(json.dumps({"folder": str(folder), **counts}))
        return
    for name in made.missing:
        typer.echo(f"left out, as it is gone: {name}", err=True)
    typer.echo(f"{folder} holds {rows} rows of {len(made.tables)} tables and {len(made.files)} files, {size} bytes.")


def restore(
    folder: Annotated[Path | None, typer.Argument(help="A folder that `rankloop backup` made.")] = None,
    data_dir: DataDir = DEFAULT_DATA_DIR,
    replace: Annotated[bool, typer.Option("--replace", help="Put it in the place of what is there.")] = False,
    end_sessions: Annotated[
        bool, typer.Option("--end-sessions", help="Nobody is signed in afterwards; sign-in links end, too.")
    ] = False,
    undo: Annotated[
        bool, typer.Option("--undo", help="Put back what a restore that was interrupted had set aside.")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Bring back a backup, all or nothing, and verify it. Stop Rankloop first."""
    from app.operations import backup as backups

    if (folder is None) != undo:
        raise typer.BadParameter("Name the folder of a backup, or --undo and no folder.")
    with plain_refusals(), ended_in_order(), database(data_dir) as settings:
        url, artifacts = settings.require_database_url(), settings.artifacts_dir
        if folder is None:
            backups.undo(url=url, artifacts=artifacts)
            typer.echo("What was here before the interrupted restore is here again.")
            return
        place = folder.absolute()
        kept = backups.restore(
            place, url=url, artifacts=artifacts, replace=replace, tell=progress, end_sessions=end_sessions
        )
    if as_json:
        typer.echo(json.dumps({"folder": str(folder), "made_at": kept.made_at, "revision": kept.revision}))
        return
    typer.echo(
        f"This is the state of {kept.made_at} again (Rankloop {kept.rankloop}, revision {kept.revision}). "
        "`rankloop migrate` brings it to this version, and so does `rankloop up`.\n"
        "What was taken away since then is back: tokens that were revoked, people who were switched off or erased, "
        "roles, passwords, invitations, webhooks; so are "
        + ("" if end_sessions else "sessions and sign-in links (--end-sessions ends those), and ")
        + "deliveries to webhooks that were due. Look through them before you start it."
    )


@contextmanager
def ended_in_order() -> Iterator[None]:
    """SIGTERM and a closed terminal do what Ctrl+C does: what was set aside is put back."""
    numbers = [signal.SIGTERM, signal.SIGHUP]
    # Under nohup, a closed terminal is no reason to end.
    before = {number: signal.getsignal(number) for number in numbers if signal.getsignal(number) != signal.SIG_IGN}
    for number in before:
        signal.signal(number, signal.default_int_handler)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def progress(what: str) -> None:
    """One line for each part, on stderr."""
    typer.echo(f"  {what}", err=True)


@contextmanager
def plain_refusals() -> Iterator[None]:
    """What can't be done is one line and exit code 1."""
    from app.operations.backup import BackupRefused
    from app.operations.programs import ProgramFailed

    try:
        yield
    except (BackupRefused, ProgramFailed, EmbeddedPostgresError, psycopg.OperationalError, OSError) as error:
        typer.echo(f"rankloop: {str(error).strip()}", err=True)
        raise typer.Exit(1) from error


@contextmanager
def database(data_dir: Path) -> Iterator[Settings]:
    """Settings with the address of a database. Where none is named and none runs, the embedded one runs meanwhile."""
    from app.embedded import EmbeddedPostgres, running_url

    settings = Settings(data_dir=data_dir.absolute())
    try:
        url: str | None = settings.require_database_url()
    except ValueError:
        url = running_url(data_dir)
    if url is not None:
        yield settings.model_copy(update={"database_url": url.replace("postgres://", "postgresql://", 1)})
        return
    with EmbeddedPostgres(data_dir) as server:
        server.create_database("rankloop")
        yield settings.model_copy(update={"database_url": server.url("rankloop")})
