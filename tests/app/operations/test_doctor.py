"""The doctor sees each fault, says what to do, and changes nothing."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import psycopg
import pytest
import typer
from psycopg import sql
from typer.testing import CliRunner

from app.config import Settings
from app.db import make_engine, make_sessionmaker
from app.operations import cli, doctor, gpus
from app.operations.doctor import examine
from app.runs.models import Artifact
from tests.factories import add, make_project, make_run

pytestmark = pytest.mark.real_commits


@pytest.fixture
def settings(fresh_database_url: str, tmp_path: Path) -> Settings:
    folder = tmp_path / "data"
    folder.mkdir(mode=0o700)
    return Settings(data_dir=folder, database_url=fresh_database_url)


@pytest.fixture(autouse=True)
def no_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Loading it takes seconds each time; what it says is the matter of test_gpus.py."""
    monkeypatch.setattr(gpus, "ask_torch", lambda: None)


def levels(settings: Settings) -> dict[str, str]:
    return {finding.name: finding.level for finding in examine(settings)}


def test_every_check_answers_and_what_is_wrong_has_a_way_out(settings: Settings) -> None:
    findings = examine(settings)
    assert {finding.name for finding in findings} >= {
        *(
            "database",
            "durability",
            "log",
            "clock",
            "connections",
            "backup",
            "migrations",
            "workers",
            "queue",
            "models",
        ),
        *("data folder", "disk", "address", "mail", "provider", "gpu"),
    }
    wrong = {finding.name for finding in findings if finding.level != "ok"}
    # The server of the tests runs with fsync off, and has no worker.
    assert {"durability", "workers"} <= wrong <= {"durability", "workers", "disk", "connections"}
    assert all(finding.todo for finding in findings if finding.level != "ok")


async def test_each_fault_is_seen(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    changes: list[tuple[str, str, dict[str, object]]] = [
        ("address", "warn", {"public_url": "http://rank.example.org"}),
        ("address", "bad", {"public_url": "rank.example.org"}),
        ("data folder", "bad", {"data_dir": settings.data_dir / "none"}),
        ("mail", "bad", {"smtp_host": "127.0.0.1", "smtp_port": port}),
        ("provider", "bad", {"oidc_issuer": "https://no-such-host.invalid"}),
        ("database", "bad", {"database_url": "postgresql://rankloop:secret@127.0.0.1:1/rankloop"}),
    ]
    for name, level, update in changes:
        assert levels(settings.model_copy(update=update))[name] == level, update
    settings.data_dir.chmod(0o755)
    assert levels(settings)["data folder"] == "warn"
    monkeypatch.setattr(doctor, "LITTLE_ROOM", 10**18)
    assert levels(settings)["disk"] == "warn"
    monkeypatch.setattr(doctor, "NO_ROOM", 10**18)
    assert levels(settings)["disk"] == "bad"

    class Late:
        @staticmethod
        def now(zone: object) -> datetime:
            return datetime.now(UTC) + timedelta(seconds=30)

    monkeypatch.setattr(doctor, "datetime", Late)
    assert levels(settings)["clock"] == "bad"


def test_a_log_that_quotes_rows_is_seen(settings: Settings) -> None:
    with psycopg.connect(settings.require_database_url(), autocommit=True) as connection:
        name = sql.Identifier(connection.info.dbname)
        connection.execute(sql.SQL("alter database {} set log_error_verbosity to 'default'").format(name))
    assert levels(settings)["log"] == "warn"


async def test_faults_in_the_database_are_seen(settings: Settings) -> None:
    engine = make_engine(settings.require_database_url())
    async with make_sessionmaker(engine).begin() as session:
        run = await make_run(session, project := await make_project(session))
        run.created_at = datetime.now(UTC) - timedelta(hours=2)
        await add(session, Artifact(run_id=run.id, name="w.bin", fence=1, size=3, sha256="0" * 64))
    await engine.dispose()
    assert levels(settings)["queue"] == "warn"
    assert levels(settings)["models"] == "ok"
    with psycopg.connect(settings.require_database_url()) as connection:
        connection.execute(
            "insert into versions (project_id, number, kind, alias, run_id, is_live) "
            "values (%s, 9, 'reward', 'a', %s, true)",
            [project.id, run.id],
        )
    assert levels(settings)["models"] == "bad"
    for revision, level in (("0001", "bad"), ("9999", "warn")):
        with psycopg.connect(settings.require_database_url()) as connection:
            connection.execute("update alembic_version set version_num = %s", [revision])
        assert levels(settings)["migrations"] == level


@pytest.fixture
def stranger() -> Iterator[tuple[str, dict[str, int]]]:
    """A site that answers each token with the status that it has in the dict."""
    known: dict[str, int] = {}

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(known[self.headers["authorization"].removeprefix("Bearer ")])
            self.send_header("content-length", "0")
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            """Nobody reads it."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", known
        server.shutdown()


def test_a_machine_of_workers_is_asked_for_the_site_and_no_database(
    tmp_path: Path, stranger: tuple[str, dict[str, int]], monkeypatch: pytest.MonkeyPatch
) -> None:
    address, known = stranger
    settings = Settings(data_dir=tmp_path)
    assert levels(settings)["database"] == "bad"
    monkeypatch.setenv("RANKLOOP_URL", address)
    for status, level in ((200, "ok"), (403, "ok"), (401, "bad"), (502, "bad")):
        monkeypatch.setenv("RANKLOOP_TOKEN", token := f"rl_{status}")
        known[token] = status
        found = {finding.name: finding for finding in examine(settings)}
        assert "database" not in found
        assert (found["site"].level, bool(found["site"].todo)) == (level, level == "bad")
    monkeypatch.setenv("RANKLOOP_URL", "http://127.0.0.1:1")
    assert levels(settings)["site"] == "bad"


def test_the_command_speaks_to_programs_and_by_its_exit_code(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = typer.Typer()
    cli.register(program)
    monkeypatch.setenv("DATABASE_URL", "postgresql://rankloop:secret@127.0.0.1:1/rankloop")
    answer = CliRunner().invoke(program, ["doctor", "--json", "--data-dir", str(settings.data_dir)])
    assert answer.exit_code == 1
    assert [item["level"] for item in json.loads(answer.stdout) if item["name"] == "database"] == ["bad"]
    assert "secret" not in answer.stdout
    monkeypatch.setenv("DATABASE_URL", settings.require_database_url())
    plain = CliRunner().invoke(program, ["doctor", "--data-dir", str(settings.data_dir)])
    assert "BAD  durability: fsync" in plain.stdout
    kept = settings.data_dir.parent / "kept"
    for arguments in (["backup", str(kept), "--json"], ["restore", str(kept), "--replace", "--json"]):
        answer = CliRunner().invoke(program, [*arguments, "--data-dir", str(settings.data_dir)])
        assert answer.exit_code == 0, answer.output
    again = CliRunner().invoke(program, ["backup", str(kept), "--data-dir", str(settings.data_dir)])
    assert again.exit_code == 1
    assert "is there already" in again.output
