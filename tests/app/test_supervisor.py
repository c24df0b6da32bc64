"""`rankloop up`: everything starts, comes back after `kill -9`, and ends; nothing is left behind."""

from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx2
import psycopg
import pytest

from app import supervisor
from app.embedded import running_url
from app.supervisor import Child, Keeper

pytestmark = pytest.mark.slow


@contextmanager
def reachable_folder() -> Iterator[Path]:
    """A data folder that the database's user can reach, also when the tests run as root."""
    path = Path(tempfile.mkdtemp(prefix="rankloop-test-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


@pytest.fixture
def folder() -> Iterator[Path]:
    """A data folder."""
    with reachable_folder() as path:
        yield path


class Running:
    """A `rankloop up` in another process."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-m", "rankloop", "up", "--json", "--data-dir", str(folder), "--no-demo", *options]
        self.began = time.monotonic()
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
        )

    def facts(self) -> dict[str, Any]:
        """What it says when it is ready."""
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.end()
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self, number: int = signal.SIGTERM) -> str:
        """End it; what it wrote to stderr."""
        self.process.send_signal(number)
        _, errors = self.process.communicate(timeout=60)
        return errors

    def clean_up(self) -> None:
        self.process.kill()
        with self.process:  # waits, and closes the pipes
            pass


@pytest.fixture
def up(folder: Path) -> Iterator[Callable[..., Running]]:
    started: list[Running] = []

    def start(*options: str) -> Running:
        started.append(Running(folder, *options))
        return started[-1]

    yield start
    for running in started:
        running.clean_up()
    assert eventually(lambda: not processes_of(folder)), processes_of(folder)


@dataclass
class Everything:
    """One `rankloop up` with a worker, for all tests that kill a part of it."""

    folder: Path
    running: Running
    facts: dict[str, Any]


@pytest.fixture(scope="module")
def everything() -> Iterator[Everything]:
    pytest.importorskip("torch", reason="the extra `trainer` is not installed")
    with reachable_folder() as folder:
        running = Running(folder, "--port", "0")
        try:
            yield Everything(folder, running, running.facts())
        finally:
            running.clean_up()
            assert eventually(lambda: not processes_of(folder)), processes_of(folder)


def processes_of(folder: Path) -> list[str]:
    """All living processes that name the data folder in their command or environment, orphans too."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            text = (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
        except OSError:
            continue
        if str(folder).encode() in text and int(process.name) != os.getpid():
            found.append(f"{process.name} {text.replace(bytes(1), b' ')[:120]!r}")
    return found


def eventually(condition: Callable[[], bool], seconds: float = 60) -> bool:
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def answers(address: str, path: str = "/health") -> bool:
    try:
        return httpx2.get(f"{address}{path}", timeout=20).status_code == 200
    except httpx2.HTTPError:
        return False


def write_row(folder: Path) -> None:
    with psycopg.connect(str(running_url(folder))) as connection:
        connection.execute("create table if not exists kept (number serial)")
        connection.execute("insert into kept default values")


def count_rows(folder: Path) -> int:
    with psycopg.connect(str(running_url(folder))) as connection:
        row = connection.execute("select count(*) from kept").fetchone()
        assert row is not None
        return int(row[0])


def accepts_connections(folder: Path) -> bool:
    url = running_url(folder)
    try:
        psycopg.connect(url or "host=/nowhere").close()
    except psycopg.OperationalError:
        return False
    return True


def postgres_process(folder: Path) -> int:
    return int((folder / "postgres/data/postmaster.pid").read_text().splitlines()[0])


def test_it_starts_ends_and_finds_everything_at_the_second_start(folder: Path, up: Callable[..., Running]) -> None:
    first = up("--port", "0", "--workers", "0")
    facts = first.facts()
    assert answers(facts["address"])
    assert facts["sign_in_link"].startswith(f"{facts['address']}/sign-in/link#")
    write_row(folder)
    first.end(signal.SIGINT)
    assert first.process.returncode == 0
    assert processes_of(folder) == []
    second = up("--port", "0", "--workers", "0")
    second.facts()
    assert count_rows(folder) == 1


def test_a_killed_supervisor_leaves_no_process_and_can_be_started_again(
    folder: Path, up: Callable[..., Running]
) -> None:
    first = up("--port", "0", "--workers", "0", "--web", "2")
    facts = first.facts()
    port = facts["address"].rpartition(":")[2]
    write_row(folder)
    first.process.kill()
    second = up("--port", port, "--workers", "0")
    assert answers(second.facts()["address"])
    assert count_rows(folder) == 1
    second.end()
    assert processes_of(folder) == []


def test_a_killed_web_process_is_started_again(everything: Everything) -> None:
    os.kill(everything.facts["processes"]["web"], signal.SIGKILL)
    # The socket outlives the process: who asks meanwhile waits, and is not refused.
    assert httpx2.get(f"{everything.facts['address']}/health", timeout=30).status_code == 200


def test_a_killed_database_is_started_again_with_what_was_committed(everything: Everything) -> None:
    write_row(everything.folder)
    os.kill(postgres_process(everything.folder), signal.SIGKILL)
    assert eventually(lambda: accepts_connections(everything.folder))
    assert count_rows(everything.folder) == 1
    assert eventually(lambda: answers(everything.facts["address"], "/sign-in"))


def test_a_killed_worker_is_started_again(everything: Everything) -> None:
    killed = everything.facts["processes"]["worker"]
    os.kill(killed, signal.SIGKILL)

    def is_back() -> bool:
        lines = [line for line in processes_of(everything.folder) if "rankloop worker" in line]
        return any(not line.startswith(f"{killed} ") for line in lines)

    assert eventually(is_back)


def test_a_second_start_on_the_same_folder_is_refused(everything: Everything) -> None:
    second = Running(everything.folder, "--port", "0")
    _, errors = second.process.communicate(timeout=60)
    assert second.process.returncode == 1
    assert f"{everything.folder} is in use by another Rankloop (process {everything.running.process.pid})" in errors


def test_a_taken_port_is_told_with_the_way_out(up: Callable[..., Running]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
        running = up("--port", str(port))
        _, errors = running.process.communicate(timeout=60)
    assert running.process.returncode == 1
    assert f"cannot listen on 127.0.0.1, port {port}: Address already in use" in errors
    assert "--port" in errors


def test_an_unreachable_database_is_told_with_the_way_out(
    up: Callable[..., Running], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", "postgresql://rankloop:secret@127.0.0.1:1/rankloop")
    running = up("--port", "0")
    _, errors = running.process.communicate(timeout=60)
    assert running.process.returncode == 1
    assert "rankloop:***@127.0.0.1:1/rankloop cannot be reached" in errors
    assert "correct DATABASE_URL" in errors
    assert "Traceback" not in errors


def test_without_the_extra_it_runs_without_a_worker_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    monkeypatch.setattr(supervisor, "has_trainer", lambda: False)
    running = supervisor.Supervisor(supervisor.UpOptions(folder))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        running._start_workers("a token", listener, folder)
    assert running.workers == []
    assert "pip install 'rankloop[trainer]'" in capsys.readouterr().err


def test_a_child_is_ended_with_all_its_group(folder: Path) -> None:
    program = "import subprocess, time; subprocess.Popen(['sleep', '600']); print('ready', flush=True); time.sleep(600)"
    child = Child("child", [sys.executable, "-c", program], environment={"MARK": str(folder)}, logs=folder)
    child.start()
    assert eventually(lambda: "ready" in (folder / "child.log").read_text())
    assert eventually(lambda: len(processes_of(folder)) == 2)
    child.close()
    assert eventually(lambda: processes_of(folder) == [])


def test_lines_of_a_child_go_to_its_log_and_marked_to_stderr(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    child = Child("child", ["echo", "Hello"], environment=os.environ, logs=folder)
    child.start()
    assert eventually(lambda: not child.is_running)
    child.close()
    assert (folder / "child.log").read_text() == "Hello\n"
    assert capsys.readouterr().err == "[child] Hello\n"


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Broken:
    """A part that ends as soon as it is started."""

    is_running = False

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.starts: list[float] = []

    def start(self) -> None:
        self.starts.append(self.clock.now)


class Unstartable(Broken):
    """A part for which there is no room."""

    def start(self) -> None:
        super().start()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_what_keeps_ending_is_started_later_and_later() -> None:
    clock = Clock()
    part = Broken(clock)
    keeper = Keeper("part", part, clock)
    while clock.now < 200:
        keeper.look_after()
        clock.now += 0.25
    gaps = [after - before for before, after in zip(part.starts, part.starts[1:], strict=False)]
    # 0.5 s doubled up to 30 s, plus the tick in which the end is seen.
    assert part.starts[0] == 0.5
    assert gaps == [1.25, 2.25, 4.25, 8.25, 16.25, 30.25, 30.25, 30.25, 30.25, 30.25]


def test_what_cant_be_started_is_tried_again(capsys: pytest.CaptureFixture[str]) -> None:
    clock = Clock()
    part = Unstartable(clock)
    keeper = Keeper("part", part, clock)
    while clock.now < 3:
        keeper.look_after()
        clock.now += 0.25
    assert len(part.starts) == 2
    assert "part can't be started: [Errno 28] No space left on device" in capsys.readouterr().err


def test_what_ran_well_is_started_again_at_once() -> None:
    clock = Clock()
    part = Broken(clock)
    keeper = Keeper("part", part, clock)
    while len(part.starts) < 6:
        keeper.look_after()
        clock.now += 0.25
    part.is_running = True
    clock.now += 100
    keeper.look_after()
    part.is_running = False
    ended = clock.now
    while len(part.starts) < 7:
        keeper.look_after()
        clock.now += 0.25
    assert part.starts[-1] - ended == 0.5
