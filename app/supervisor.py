"""What `rankloop up` does: everything on one machine. It starts the database, web processes and workers, keeps them
running, and ends them in order. The parts find each other by environment variables, as they do on many machines.
"""

from __future__ import annotations

import asyncio
import http.client
import importlib.util
import json
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import FrameType
from typing import Protocol

from app.accounts import service as accounts
from app.accounts import sessions, tokens
from app.accounts.models import Scope
from app.config import Settings, address_file
from app.db import check_connection, make_engine, standalone_session
from app.embedded import EmbeddedPostgres
from app.loop import subscriptions
from app.loop.demo import ensure_demo
from app.migrate import upgrade
from app.operations.backup import refuse_unfinished
from app.processes import die_with_parent
from app.serve import SECONDS_TO_FINISH, CannotStart, bind

NAME_OF_WORKER_TOKEN = "rankloop up"  # noqa: S105 (a name)
FIRST_DELAY = 0.5
LONGEST_DELAY = 30.0
SECONDS_OF_HEALTH = 60.0
"""A part that ran for so long is started again at once; one that ended sooner waits twice as long as before."""
SECONDS_TO_ANSWER = 60.0
SECONDS_TO_HAND_BACK = 15.0
LARGEST_LOG = 5_000_000


@dataclass(frozen=True)
class UpOptions:
    """What the command line asks for."""

    data_dir: Path
    host: str = "127.0.0.1"
    port: int = 8000
    web: int = 1
    workers: int = 1
    demo: bool = True
    as_json: bool = False


class Part(Protocol):
    """Something that is kept running."""

    @property
    def is_running(self) -> bool:
        """Whether it runs right now."""

    def start(self) -> object:
        """Start it, or start it again."""


class Child:
    """A child process in a group of its own, which dies with this one. Its lines go to a log and, marked, to stderr."""

    def __init__(
        self, name: str, command: Sequence[str], *, environment: Mapping[str, str], logs: Path, fds: Sequence[int] = ()
    ) -> None:
        self.name = name
        self._command = command
        self._environment = environment
        self._fds = fds
        self._log = make_log(name, logs)
        self._process: subprocess.Popen[str] | None = None
        self._reader: threading.Thread | None = None

    @property
    def is_running(self) -> bool:
        """Whether the process is alive."""
        return self._process is not None and self._process.poll() is None

    @property
    def process_id(self) -> int | None:
        """Its number, also when it has ended."""
        return self._process.pid if self._process is not None else None

    def start(self) -> None:
        """Start the process. What an earlier one left behind of its group is ended first."""
        self.kill()
        self._process = subprocess.Popen(
            self._command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            env=dict(self._environment),
            pass_fds=self._fds,
            start_new_session=True,
            # The function calls nothing but the kernel, so threads of this process do no harm to it.
            preexec_fn=die_with_parent(signal.SIGKILL),  # noqa: PLW1509
        )
        self._reader = threading.Thread(target=self._read, args=[self._process], daemon=True)
        self._reader.start()

    def terminate(self) -> None:
        """Ask the process to end."""
        if self._process is not None and self._process.poll() is None:
            self._process.terminate()

    def kill(self) -> None:
        """End the whole group at once."""
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        if self._reader is not None:
            self._reader.join(timeout=2)

    def close(self) -> None:
        """End the group, and close the log."""
        self.kill()
        for handler in self._log.handlers:
            handler.close()

    def _read(self, process: subprocess.Popen[str]) -> None:
        assert process.stdout is not None
        with process.stdout:
            for line in process.stdout:
                self._log.info("%s", line.rstrip())


class Keeper:
    """Keeps one part running: starts it again when it ends, later and later while it keeps ending."""

    def __init__(self, name: str, part: Part, clock: Callable[[], float] = time.monotonic) -> None:
        self.name = name
        self.part = part
        self._clock = clock
        self._delay = FIRST_DELAY
        self._started_at = clock()
        self._start_again_at: float | None = None

    def look_after(self) -> None:
        """To be called a few times a second."""
        now = self._clock()
        if self.part.is_running:
            return
        if self._start_again_at is None:
            if now - self._started_at >= SECONDS_OF_HEALTH:
                self._delay = FIRST_DELAY
            say(f"{self.name} ended; it is started again in {self._delay:g} s")
            self._start_again_at = now + self._delay
            self._delay = min(2 * self._delay, LONGEST_DELAY)
        elif now >= self._start_again_at:
            self._start_again_at = None
            self._started_at = now
            try:
                self.part.start()
            except Exception as error:  # noqa: BLE001 - a full disk, no memory for a process: it may be over the next time
                say(f"{self.name} can't be started: {error}")


class Supervisor:
    """All parts of one `rankloop up`."""

    def __init__(self, options: UpOptions) -> None:
        self.options = options
        self.settings = Settings(data_dir=options.data_dir.resolve())
        self.listener: socket.socket | None = None
        self.database: EmbeddedPostgres | None = None
        self.web: list[Child] = []
        self.workers: list[Child] = []
        self._is_stopping = False
        self._is_hurried = False

    def run(self) -> None:
        """Start everything, keep it running until Ctrl+C or SIGTERM, end everything."""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            # Under nohup, a closed terminal is no reason to end.
            if number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN:
                signal.signal(number, self._on_signal)
        with suppress(KeyboardInterrupt):
            try:
                self._start()
                self._keep()
            finally:
                self._is_stopping = True
                self._stop()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        """The first signal ends what is being done; one more ends the parts without waiting for them."""
        if self._is_stopping:
            self._is_hurried = True
            return
        self._is_stopping = True
        raise KeyboardInterrupt

    def _start(self) -> None:
        began = time.monotonic()
        logs = self.settings.data_dir / "logs"
        logs.mkdir(parents=True, exist_ok=True)
        # Kept open here: a web process that is started again takes it over, and who asks meanwhile waits.
        listener = self.listener = bind(self.options.host, self.options.port)
        self.settings.public_url = self._address(listener)
        address_file(self.settings.data_dir).write_text(self.settings.public_url, encoding="utf-8")
        self._start_database()
        asyncio.run(self._check_database())
        refuse_unfinished(self.settings.require_database_url())
        upgrade(self.settings.require_database_url())
        token = asyncio.run(self._prepare())
        self._start_web(listener, logs)
        self._start_workers(token, listener, logs)
        await_answer(listener, self.web)
        self._announce(time.monotonic() - began)

    def _address(self, listener: socket.socket) -> str:
        if "public_url" in self.settings.model_fields_set:
            return self.settings.public_url
        return local_url(listener)

    def _start_database(self) -> None:
        """The embedded PostgreSQL, unless an address is given."""
        if self.settings.database_url or os.environ.get("DATABASE_URL"):
            return
        self.database = EmbeddedPostgres(self.settings.data_dir)
        self.database.start()
        self.database.create_database("rankloop")
        self.settings.database_url = self.database.url("rankloop")

    async def _check_database(self) -> None:
        """It answers, and keeps what it accepts; else `DatabaseUnreachable` says what to do."""
        engine = make_engine(self.settings.require_database_url(), pool_size=1)
        try:
            await check_connection(engine)
        finally:
            await engine.dispose()

    async def _prepare(self) -> str:
        """What a new database needs: an admin, the demo. Answers the workers' token, a new one at each start."""
        subscriptions.subscribe()
        async with standalone_session(self.settings.require_database_url()) as session:
            admin = await accounts.ensure_admin(session)
            await tokens.revoke_tokens_named(session, name=NAME_OF_WORKER_TOKEN)
            _, secret = await tokens.create_token(
                session, user_id=admin.id, name=NAME_OF_WORKER_TOKEN, scopes=[Scope.WORKER], days=None
            )
            if self.options.demo:
                await ensure_demo(session)
            return secret

    async def _make_sign_in_link(self) -> str:
        async with standalone_session(self.settings.require_database_url()) as session:
            admin = await accounts.ensure_admin(session)
            return await sessions.create_sign_in_link(session, user=admin, public_url=self.settings.public_url)

    def _start_web(self, listener: socket.socket, logs: Path) -> None:
        """Web processes share one listening socket, which outlives each of them."""
        fd, environment = listener.fileno(), self._environment()
        if self.options.web > 1:
            counts = self.settings.data_dir / "metrics"
            shutil.rmtree(counts, ignore_errors=True)
            counts.mkdir()
            environment["PROMETHEUS_MULTIPROC_DIR"] = str(counts)
        command = [sys.executable, "-m", "rankloop", "serve", "--fd", str(fd)]
        for number in range(1, self.options.web + 1):
            name = f"web-{number}" if self.options.web > 1 else "web"
            child = Child(name, command, environment=environment, logs=logs, fds=[fd])
            child.start()
            self.web.append(child)

    def _start_workers(self, token: str, listener: socket.socket, logs: Path) -> None:
        if self.options.workers and not has_trainer():
            say("There is no worker: torch is not installed, so nothing is sampled or trained here. It comes with")
            say("  pip install 'rankloop[trainer]'")
            return
        environment = self._environment() | {"RANKLOOP_URL": local_url(listener), "RANKLOOP_TOKEN": token}
        # A worker speaks to Rankloop over REST only, and on this machine never through a proxy.
        for name in ("DATABASE_URL", "RANKLOOP_DATABASE_URL"):
            environment.pop(name, None)
        environment["NO_PROXY"] = ",".join(filter(None, [os.environ.get("NO_PROXY"), reachable_address(listener)[0]]))
        for number in range(1, self.options.workers + 1):
            name = f"worker-{number}" if self.options.workers > 1 else "worker"
            child = Child(name, [sys.executable, "-m", "rankloop", "worker"], environment=environment, logs=logs)
            child.start()
            self.workers.append(child)

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "RANKLOOP_DATA_DIR": str(self.settings.data_dir),
            "RANKLOOP_DATABASE_URL": self.settings.require_database_url(),
            "RANKLOOP_PUBLIC_URL": self.settings.public_url,
            "PYTHONUNBUFFERED": "1",
            # Threads of torch that wait by spinning keep the other parts of a small machine from working.
            "OMP_WAIT_POLICY": os.environ.get("OMP_WAIT_POLICY", "PASSIVE"),
        }

    def _announce(self, seconds: float) -> None:
        link = asyncio.run(self._make_sign_in_link())
        if self.options.as_json:
            processes = {child.name: child.process_id for child in [*self.web, *self.workers]}
            facts = {
                "address": self.settings.public_url,
                "sign_in_link": link,
                "data_dir": str(self.settings.data_dir),
                "processes": processes,
                "seconds": round(seconds, 2),
            }
            print(json.dumps(facts), flush=True)  # noqa: T201 (what a command says)
            return
        print(  # noqa: T201 (what a command says)
            f"Rankloop runs at {self.settings.public_url} (started in {seconds:.1f} s).\n"
            f"Sign in as admin, once, within 15 minutes: {link}\n"
            f"Data and logs are in {self.settings.data_dir}. Ctrl+C ends everything.",
            flush=True,
        )

    def _keep(self) -> None:
        keepers = [Keeper(child.name, child) for child in [*self.web, *self.workers]]
        if self.database is not None:
            keepers.insert(0, Keeper("PostgreSQL", self.database))
        while True:
            for keeper in keepers:
                keeper.look_after()
            time.sleep(0.2)

    def _stop(self) -> None:
        """Workers hand their runs back, then the web finishes its requests, then the database closes."""
        if self.web:
            say("Stopping.")
        self._end(self.workers, SECONDS_TO_HAND_BACK)
        if self.listener is not None:
            self.listener.close()
        self._end(self.web, SECONDS_TO_FINISH + 2)
        if self.database is not None:
            self.database.stop()

    def _end(self, children: Sequence[Child], seconds: float) -> None:
        for child in children:
            child.terminate()
        deadline = time.monotonic() + seconds
        while any(child.is_running for child in children) and time.monotonic() < deadline and not self._is_hurried:
            time.sleep(0.05)
        for child in children:
            child.close()


def up(options: UpOptions) -> None:
    """Run everything on this machine until Ctrl+C or SIGTERM.

    Raises:
        CannotStart, EmbeddedPostgresError, DatabaseUnreachable, BackupRefused, RankloopError: the message says what to
            do.
    """
    Supervisor(options).run()


def has_trainer() -> bool:
    """Whether the extra `trainer` is installed."""
    return all(importlib.util.find_spec(module) is not None for module in ("torch", "transformers"))


def await_answer(listener: socket.socket, web: Sequence[Child]) -> None:
    """Wait until the web answers.

    Raises:
        CannotStart: it ended, or was silent for a minute.
    """
    host, port = reachable_address(listener)
    deadline = time.monotonic() + SECONDS_TO_ANSWER
    while time.monotonic() < deadline and all(child.is_running for child in web):
        connection = http.client.HTTPConnection(host, port, timeout=1)
        with suppress(OSError, http.client.HTTPException), closing(connection):
            connection.request("GET", "/health")
            if connection.getresponse().status == http.HTTPStatus.OK:
                return
        time.sleep(0.05)
    raise CannotStart("The web process did not start. Its last lines stand above, and in logs/web.log.")


def reachable_address(listener: socket.socket) -> tuple[str, int]:
    """Host and port by which this machine reaches its own socket: "any address" is answered with the loopback."""
    host, port = listener.getsockname()[:2]
    return {"0.0.0.0": "127.0.0.1", "::": "::1"}.get(host, host), port  # noqa: S104


def local_url(listener: socket.socket) -> str:
    """The address by which this machine reaches its own web processes."""
    host, port = reachable_address(listener)
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_log(name: str, folder: Path) -> logging.Logger:
    """Lines of one child: to `<folder>/<name>.log` as they are, to stderr with the child's name before them."""
    log = logging.getLogger(f"rankloop.child.{name}")
    log.setLevel(logging.INFO)
    log.propagate = False
    log.handlers.clear()
    to_file = RotatingFileHandler(folder / f"{name}.log", maxBytes=LARGEST_LOG, backupCount=2, encoding="utf-8")
    to_terminal = logging.StreamHandler()
    to_terminal.setFormatter(logging.Formatter(f"[{name}] %(message)s"))
    log.addHandler(to_file)
    log.addHandler(to_terminal)
    return log


def say(line: str) -> None:
    """A line for the person who started it: on stderr, so that stdout is free for `--json`."""
    print(line, file=sys.stderr, flush=True)  # noqa: T201 (what a command says)
