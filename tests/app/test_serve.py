"""Several web processes on one socket: they count together, finish what they began, and end."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import psutil
import psycopg
import pytest

from app.serve import CannotStart, bind

pytestmark = [pytest.mark.real_commits, pytest.mark.slow]
SECONDS = 60
# Not `rankloop serve`: it refuses the database of the tests, which runs with fsync off.
PROGRAM = """
import sys, time
from pathlib import Path
import app.serve
from app.config import Settings
from app.serve import app_of_the_environment, bind, serve
def slowly():
    if (Path(sys.argv[1]) / "slowly").exists():
        time.sleep(6)  # longer than uvicorn waits by itself
    return app_of_the_environment()
app.serve.app_of_the_environment = slowly
if __name__ == "__main__":
    listener = bind("127.0.0.1", 0)
    print(listener.getsockname()[1], flush=True)
    serve(Settings(data_dir=Path(sys.argv[1]), database_url=sys.argv[2]), listener, processes=2)
"""


ONE_IN_HASTE = "from app.slow_clients import Impatient\nImpatient.head_seconds = 0.5\n" + PROGRAM.replace("=2", "=1")


@pytest.fixture
def two_processes(tmp_path: Path, fresh_database_url: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """Two processes behind one address."""
    with started(PROGRAM, tmp_path, fresh_database_url) as both:
        yield both


@contextmanager
def started(text: str, tmp_path: Path, fresh_database_url: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    """A program that serves, and its address."""
    program = tmp_path / "serving.py"
    program.write_text(text)
    command = [sys.executable, str(program), str(tmp_path), fresh_database_url]
    root = Path(__file__).resolve().parents[2]
    # What one that is killed leaves behind is the test's.
    environment = {"PYTHONPATH": str(root), "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root, env=environment) as process:
        assert process.stdout is not None
        try:
            yield process, f"http://127.0.0.1:{int(process.stdout.readline())}"
        finally:
            # Asked to end, it ends the processes that it started; killed, it would leave them behind.
            process.terminate()
            with suppress(subprocess.TimeoutExpired):
                process.wait(SECONDS)
            process.kill()


def test_they_count_together_and_finish_what_they_began(
    two_processes: tuple[subprocess.Popen[str], str], fresh_database_url: str
) -> None:
    process, url = two_processes
    for _ in range(20):
        assert httpx2.get(f"{url}/health", timeout=SECONDS).status_code == 200
    await_two(url, but=set())
    counts = httpx2.get(f"{url}/metrics", timeout=SECONDS).text
    assert 'rankloop_http_requests_total{method="GET",route="/health",status="200"} 20.0' in counts
    memory = re.findall(r'^process_resident_memory_bytes\{pid="\d+"\} (\S+)$', counts, re.MULTILINE)
    assert all(float(number) > 10**7 for number in memory)
    assert {"process_cpu_seconds_total", "process_open_fds"} <= set(re.findall(r"^(\w+)\{pid=", counts, re.MULTILINE))
    answers: list[int] = []

    def ask() -> None:
        headers = {"authorization": "Bearer rl_nobodys"}
        answers.append(httpx2.get(f"{url}/api/v1/projects", headers=headers, timeout=SECONDS).status_code)

    with psycopg.connect(fresh_database_url) as holder:
        holder.execute("lock table api_tokens in access exclusive mode")
        asking = threading.Thread(target=ask)
        asking.start()
        await_waiting(fresh_database_url)
        process.send_signal(signal.SIGTERM)
        await_refusal(url)
    asking.join(SECONDS)
    assert answers == [401], "a request that had begun was not finished"
    assert process.wait(SECONDS) == 0


def test_they_end_when_who_started_them_is_killed(
    two_processes: tuple[subprocess.Popen[str], str], fresh_database_url: str
) -> None:
    process, url = two_processes
    children = [psutil.Process(int(number)) for number in await_two(url, but=set())]
    answers: list[int] = []

    def ask() -> None:
        headers = {"authorization": "Bearer rl_nobodys"}
        answers.append(httpx2.get(f"{url}/api/v1/projects", headers=headers, timeout=SECONDS).status_code)

    try:
        with psycopg.connect(fresh_database_url) as holder:
            holder.execute("lock table api_tokens in access exclusive mode")
            asking = threading.Thread(target=ask)
            asking.start()
            await_waiting(fresh_database_url)
            process.kill()
            await_port(urlsplit(url).port or 0)
            assert asking.is_alive(), "the port was to be free before the last request is answered"
        asking.join(SECONDS)
        assert answers == [401], "a request that had begun was not finished"
        await_end(children)
    finally:
        for child in children:
            with suppress(psutil.NoSuchProcess):
                child.kill()


def test_who_says_nothing_is_sent_away(tmp_path: Path, fresh_database_url: str) -> None:
    """Of the process that people start; how it does that is the matter of tests/security/test_slow_clients.py."""
    with started(ONE_IN_HASTE, tmp_path, fresh_database_url) as (_, url):
        assert httpx2.get(f"{url}/health", timeout=SECONDS).status_code == 200
        with socket.create_connection(("127.0.0.1", urlsplit(url).port or 0), timeout=20) as silent:
            assert silent.recv(1) == b"", "a connection on which nothing is said stays"


def test_hup_replaces_them_one_by_one_however_slowly_they_start(
    two_processes: tuple[subprocess.Popen[str], str], tmp_path: Path
) -> None:
    process, url = two_processes
    before = await_two(url, but=set())
    (tmp_path / "slowly").touch()
    process.send_signal(signal.SIGHUP)
    await_two(url, but=before)
    assert process.poll() is None


def await_two(url: str, *, but: set[str]) -> set[str]:
    """Until two processes answer, and none of these."""
    deadline = time.monotonic() + 2 * SECONDS
    while len(found := processes_of(url)) != 2 or found & but:
        assert time.monotonic() < deadline, f"{found} answer"
        time.sleep(0.2)
    return found


def processes_of(url: str) -> set[str]:
    """The numbers of the processes that count together; whoever is asked answers for all that live."""
    for _ in range(3):  # one that is about to end may let go of a connection before it has answered
        with suppress(httpx2.HTTPError):
            counts = httpx2.get(f"{url}/metrics", timeout=SECONDS).text
            return set(re.findall(r'^process_resident_memory_bytes\{pid="(\d+)"\}', counts, re.MULTILINE))
    raise AssertionError("nobody answers")


def await_port(port: int) -> None:
    """Until another program may listen."""
    deadline = time.monotonic() + SECONDS / 4
    while time.monotonic() < deadline:
        with suppress(CannotStart):
            bind("127.0.0.1", port).close()
            return
        time.sleep(0.1)
    raise AssertionError("the port is taken by processes that nobody looks after")


def await_end(processes: list[psutil.Process]) -> None:
    """Until all have ended; one that nobody asks for its end is a zombie."""
    deadline = time.monotonic() + SECONDS / 4
    while any(is_alive(each) for each in processes):
        assert time.monotonic() < deadline, "a process outlives the one that started it"
        time.sleep(0.1)


def is_alive(process: psutil.Process) -> bool:
    """Whether it still does anything."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


def await_waiting(url: str) -> None:
    """Until a request waits for the lock."""
    query = "select from pg_stat_activity where wait_event_type = 'Lock' and datname = current_database()"
    deadline = time.monotonic() + SECONDS
    with psycopg.connect(url, autocommit=True) as connection:
        while connection.execute(query).fetchone() is None:
            assert time.monotonic() < deadline
            time.sleep(0.02)


def await_refusal(url: str) -> None:
    """Until nobody accepts any more; the socket itself stays open in the parent, so a request goes unanswered."""
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        try:
            httpx2.get(f"{url}/health", timeout=0.3)
        except httpx2.HTTPError:
            return
    raise AssertionError("the processes go on taking requests")
